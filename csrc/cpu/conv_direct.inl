// The general kernels of the direct convolution for one instruction set: the files together, and which of them a call
// runs.

// Tiles first, the rest stands on them.
#include "conv_direct_tile.inl"
// Register tiles that slide over them.
#include "conv_direct_slide_tile.inl"
// Forward, gradient of the input.
#include "conv_direct_slide.inl"
// The others.
#include "conv_direct_backward_weight.inl"
#include "conv_direct_depthwise.inl"
#include "conv_direct_fold.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename T>
DirectKernel direct_kernel(const ConvGeometry& g, Direction direction) {
  const bool depthwise = depthwise_channels_last(g);
  switch (direction) {
    case Direction::forward: return {slide_plan<T, false>, slide_task<T, false>};
    case Direction::backward_input:
      if (depthwise) return {depthwise_plan<T>, depthwise_task<T>};
      return {backward_input_plan<T>, backward_input_task<T>};
    default: return {backward_weight_plan<T>, backward_weight_task<T>};
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
