// Direct convolution: the definition with its loops blocked for registers and first-level cache. No matrix is formed
// and no workspace is asked for; every kernel works from a few small arrays on its stack. Everything is accepted: 1 to
// 3 dimensions, any stride, dilation, groups and padding, both layouts, all floating types, all three directions.
//
// This file cuts the work into tasks and hands them to threads. The kernels:
//   conv_direct_tile.inl             tiles of the input (or output gradient) that a band of outputs sees
//   conv_direct_slide.inl            forward, gradient of the input
//   conv_direct_fold.inl             gradient of the input through padding that mirrors or repeats
//   conv_direct_backward_weight.inl  gradient of the weight
//   conv_direct_depthwise.inl        all three for depthwise channels_last
#include "conv_direct.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

DirectKernel kernel_of(const ConvGeometry& geometry, DType dtype, Direction direction) {
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
