// Direct convolution: the definition with its loops blocked for registers and first-level cache. No matrix is formed;
// every kernel works from a few small arrays on its stack, some from weights packed into a workspace. Everything is
// accepted: 1 to 3 dimensions, any stride, dilation, groups and padding, both layouts, all floating types, all three
// directions.
//
// This file cuts the work into tasks and hands them to threads. The kernels that take everything:
//   conv_direct_tile.inl             tiles of the input (or output gradient) that a band of outputs sees
//   conv_direct_slide_tile.inl       register tiles that slide over them
//   conv_direct_slide.inl            forward, gradient of the input
//   conv_direct_fold.inl             gradient of the input through padding that mirrors or repeats
//   conv_direct_backward_weight.inl  gradient of the weight
//   conv_direct_depthwise.inl        gradient of the input for depthwise channels_last
// Fast paths of the forward pass (conv_direct_forward.cpp):
//   conv_direct_rows.inl             one input channel per group, contiguous planes: depthwise, a single filter
//   conv_direct_lanes.inl            depthwise and narrow groups, channels_last
//   conv_direct_outs.inl             few input channels, channels_last
//   conv_direct_dots.inl             few output channels, channels_last
// Fast path of the gradient of the weight (conv_direct_group_weight.cpp):
//   conv_direct_group_weight.inl     depthwise and narrow groups
#include "conv_direct.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

DirectKernel kernel_of(const ConvGeometry& geometry, DType dtype, Direction direction) {
  DirectKernel fast;
  if (direction == Direction::forward) fast = direct_forward(geometry, dtype);
  if (direction == Direction::backward_weight) fast = direct_backward_weight(geometry, dtype);
  if (fast.run != nullptr) return fast;
  return dispatch_floating(dtype, [&](auto type) {
    return CONVEXT_SELECT_ISA(direct_kernel<typename decltype(type)::type>(geometry, direction));
  });
}

void run(const ConvArguments& args, Direction direction) {
  const DirectKernel kernel = kernel_of(args.geometry, args.dtype, direction);
  const DirectPlan plan = kernel.plan(args.geometry);
  if (kernel.pack != nullptr) parallel_for(plan.packs, [&](int64_t task, int) { kernel.pack(args, plan, task); });
  parallel_for(plan.tasks, [&](int64_t task, int) { kernel.run(args, plan, task); });
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }
int64_t workspace_bytes(const ConvGeometry& geometry, DType dtype, Direction direction) {
  const DirectKernel kernel = kernel_of(geometry, dtype, direction);
  return kernel.workspace_bytes == nullptr ? 0 : kernel.workspace_bytes(geometry);
}

}  // namespace

const ConvAlgorithm conv_direct = {
    "direct",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) { run(args, Direction::forward); },
    [](const ConvArguments& args) { run(args, Direction::backward_input); },
    [](const ConvArguments& args) { run(args, Direction::backward_weight); },
};

}  // namespace convext::cpu
