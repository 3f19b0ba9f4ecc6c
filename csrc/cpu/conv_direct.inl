// The general kernels of the direct convolution for one instruction set: the files together, and which of them a call
// runs.

// Tiles first, the rest stands on them.
#include "conv_direct_tile.inl"
// Register tiles that slide over them.
#include "conv_direct_slide_tile.inl"
// Forward.
#include "conv_direct_slide.inl"
// The others.
#include "conv_direct_backward_weight.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename T>
DirectKernel direct_kernel(const ConvGeometry& g, Direction direction) {
  if (direction == Direction::forward) return {slide_plan<T>, slide_task<T>};
  return {backward_weight_plan<T>, backward_weight_task<T>};
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
