// Direct convolution: the definition with its loops blocked for registers and first-level cache. No matrix is formed;
// every kernel works from a few small arrays on its stack, some from weights packed into a workspace. Everything is
// accepted: 1 to 3 dimensions, any stride, dilation, groups and padding, both layouts, all floating types, all three
// directions.
//
// This file cuts the work into tasks and hands them to threads. The kernels that take everything:
//   conv_direct_tile.inl             tiles of the input (or output gradient) that a band of outputs sees
//   conv_direct_slide_tile.inl       register tiles that slide over them
//   conv_direct_slide.inl            forward
//   conv_direct_backward_weight.inl  gradient of the weight
// The gradient of the input is left to the kernels of the forward pass (input_gradient.h), but for one fast path:
//   conv_direct_strided_input.inl    strided depthwise: contiguous planes at stride 2, channels_last
// Fast paths of the forward pass (conv_direct_forward.cpp):
//   conv_direct_rows.inl             one input channel per group, contiguous planes: depthwise, a single filter
//   conv_direct_row_sums.inl         few output channels, many planes to sum over, contiguous
//   conv_direct_lanes.inl            depthwise and narrow groups, channels_last
//   conv_direct_turned.inl           depthwise, contiguous planes narrower than a vector
//   conv_direct_outs.inl             few input channels, channels_last
//   conv_direct_dots.inl             few output channels, channels_last
//   conv_direct_planes.inl           few input or output channels, contiguous planes
// Fast paths of the gradient of the weight (conv_direct_group_weight.cpp):
//   conv_direct_plane_weight.inl     depthwise 3 x 3 and few input channels, contiguous planes
//   conv_direct_place_weight.inl     depthwise 3 x 3, channels_last
//   conv_direct_group_weight.inl     depthwise and narrow groups
#include "conv_direct.h"
#include "blocking.h"
#include "input_gradient.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

DirectKernel kernel_of(const ConvGeometry& geometry, DType dtype, Direction direction) {
  if (direction == Direction::forward) {
    for (auto* fast_path : {direct_forward, direct_planes})
      if (const DirectKernel fast = fast_path(geometry, dtype); fast.run != nullptr) return fast;
  } else if (direction == Direction::backward_weight) {
    if (const DirectKernel fast = direct_backward_weight(geometry, dtype); fast.run != nullptr) return fast;
  }
  return dispatch_floating(dtype, [&](auto type) {
    return CONVEXT_SELECT_ISA(direct_kernel<typename decltype(type)::type>(geometry, direction));
  });
}

constexpr int64_t kPackedAlone = 32 * 1024;  // bytes: other threads would take longer to come

void run_kernel(const ConvArguments& args, Direction direction) {
  const DirectKernel kernel = kernel_of(args.geometry, args.dtype, direction);
  const DirectPlan plan = kernel.plan(args.geometry);
  if (kernel.pack != nullptr && !args.workspace_packed) {
    const auto pack = [&](int64_t task, int) { kernel.pack(args, plan, task); };
    if (kernel.workspace_bytes(args.geometry) <= kPackedAlone)
      for (int64_t task = 0; task < plan.packs; ++task) pack(task, 0);
    else
      parallel_for(plan.packs, pack);
  }
  parallel_for(plan.tasks, [&](int64_t task, int) { kernel.run(args, plan, task); });
}

int64_t kernel_bytes(const ConvGeometry& geometry, DType dtype, Direction direction) {
  const DirectKernel kernel = kernel_of(geometry, dtype, direction);
  return kernel.workspace_bytes == nullptr ? 0 : kernel.workspace_bytes(geometry);
}

constexpr int64_t kExchanged = 4096;  // weights of a task

// The weight of one phase: group, c/g, k/g, taps of the phase.
template <typename T>
void exchange_channels(const ConvGeometry& g, const StridePhase& phase, const T* w, T* to) {
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs(), taps = phase.geometry.taps();
  std::vector<int64_t> place(taps);  // in the weight, of each tap
  for (int64_t u = 0; u < taps; ++u) place[u] = g.weight_tap(phase.kernel_tap(g, u));
  const Blocks blocks = cut(g.groups, 1, ceil_div(kExchanged, std::max(inputs * outputs * taps, int64_t(1))));
  parallel_for(blocks.count, [&](int64_t block, int) {
    for (int64_t group = blocks[block].begin; group < blocks[block].end; ++group)
      for (int64_t k = 0; k < outputs; ++k) {
        const T* from = w + (group * outputs + k) * inputs * g.taps();
        T* column = to + group * inputs * outputs * taps + k * taps;
        for (int64_t c = 0; c < inputs; ++c, from += g.taps(), column += outputs * taps)
          for (int64_t u = 0; u < taps; ++u) column[u] = from[place[u]];
      }
  });
}

// The gradient of the input by the kernels of the forward pass, one stride phase after the other.
void run_phases(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  if (strided_input_fits(g, args.dtype)) return run_strided_input(args);
  const StridePhases phases(g);
  Workspace workspace(args.workspace);
  char* results = workspace.take<char>(phases.result_bytes(args.dtype));
  char* weight = workspace.take<char>(g.weight_elements() * size_of(args.dtype));
  char* rest = static_cast<char*>(args.workspace) + workspace.used();
  phases.run(args, results, [&](ConvArguments& part, const StridePhase& phase, int64_t) {
    dispatch_floating(args.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      exchange_channels(g, phase, static_cast<const T*>(args.weight), reinterpret_cast<T*>(weight));
    });
    part.weight = weight;
    part.workspace = rest;
    run_kernel(part, Direction::forward);
  });
}

int64_t phases_bytes(const ConvGeometry& g, DType dtype) {
  if (strided_input_fits(g, dtype)) return strided_input_bytes(g, dtype);
  const StridePhases phases(g);
  Workspace own(nullptr);
  own.take<char>(phases.result_bytes(dtype));
  own.take<char>(g.weight_elements() * size_of(dtype));
  return own.used() +
         phases.most(dtype, [&](const ConvGeometry& phase) { return kernel_bytes(phase, dtype, Direction::forward); });
}

void run(const ConvArguments& args, Direction direction) {
  if (direction == Direction::backward_input)
    compute_input_gradient(args, run_phases);
  else
    run_kernel(args, direction);
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }
int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  return direction == Direction::backward_input ? input_gradient_bytes(g, dtype, phases_bytes)
                                                : kernel_bytes(g, dtype, direction);
}

}  // namespace

const ConvAlgorithm conv_direct = {
    "direct",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) { run(args, Direction::forward); },
    [](const ConvArguments& args) { run(args, Direction::backward_input); },
    [](const ConvArguments& args) { run(args, Direction::backward_weight); },
    /*packing=*/nullptr,
    /*pack=*/nullptr,
    /*finishes=*/true,
    /*packs_on_the_way=*/nullptr,
    /*writes_channels_last=*/true,
};

}  // namespace convext::cpu
