// Fast paths of the direct convolution's forward pass for one instruction set: the files together, and which of them a
// call runs.
#include "conv_direct_tile.inl"
// Padded rows, contiguous planes.
#include "conv_direct_padded.inl"
// One input channel per group, contiguous planes.
#include "conv_direct_rows.inl"
// Few output channels per group, several planes to sum over, contiguous.
#include "conv_direct_row_sums.inl"
// As many input as output channels per group, one or a few, channels_last.
#include "conv_direct_lanes.inl"
// The same, one channel per group, where contiguous planes are narrow.
#include "conv_direct_turned.inl"
// Few input channels, channels_last.
#include "conv_direct_outs.inl"
// Few output channels, channels_last.
#include "conv_direct_dots.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// A kernel without functions where none suits.
template <typename T>
DirectKernel direct_forward_kernel(const ConvGeometry& g) {
  if (suits_turned<T>(g)) return {turned_plan<T>, turned_task<T>, lanes_pack<T>, lanes_workspace<T>};
  if (suits_rows<T>(g)) return {rows_plan<T>, rows_task<T>};
  if (suits_row_sums<T>(g)) return {row_sums_plan<T>, row_sums_task<T>};
  if (suits_lanes<T>(g)) return {lanes_plan<T>, lanes_task<T>, lanes_pack<T>, lanes_workspace<T>};
  if (suits_outs<T>(g)) return {outs_plan<T>, outs_task<T>, outs_pack<T>, outs_workspace<T>};
  if (suits_dots<T>(g)) return {dots_plan<T>, dots_task<T>, dots_pack<T>, dots_workspace<T>};
  return {};
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
