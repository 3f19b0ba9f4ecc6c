// The gradient of the weight of im2col, with u the unfolded input (unfold.h), per group: dw = sum over images of dy
// u^T.
//
// The sum runs over places, and u is never made: its row (channel, tap) is a row of the padded input, shifted. So the
// one operand is copied, padded, strides sorted out, as [channel][place] (conv_direct_tile.inl), and read element by
// element through every tap; the other is turned into panels [place][lane], a few vectors of channels wide. A tile of
// sums, 6 rows x 2 vectors with AVX2, stays in registers over a block of about 256 places:
//
//   sums[row][lane] += rows[offset of row + place] * lanes[place][lane]
//
// Usually rows are of the input and lanes output channels. Where that is cheaper, and with stride 1 it is the same sum,
// the two are exchanged (`turned`): few output channels, or fewer to turn. Pointwise kernels have a file of their own,
// conv_im2col_pointwise_weight.cpp.
//
// A task is a block of dw, whose sums fit L2, over all images and blocks in order. Few weights would keep few threads
// busy: then the blocks of places are cut into up to 16 parts, each with sums of its own, which are added up in order.
// Both depend on the geometry only, so bits do not depend on threads. Traffic: rows are copied once per block of lanes
// and overlap of blocks, lanes turned once per block of channels, sums read and written once per block of places.
#include "conv_im2col_backward_weight.h"

#include <utility>

#include "conv_im2col.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_im2col_backward_weight.inl"
#include "for_each_isa.inl"

namespace convext::cpu::im2col {
namespace {

template <typename T>
const WeightKernels<T>& weight_kernels() {
  return CONVEXT_SELECT_ISA(kWeightKernels<T>);
}

template <typename T>
WeightThread<T> take_weight(Workspace& workspace, const WeightPlan& plan) {
  using A = Accumulate<T>;
  WeightThread<T> own;
  own.offsets = workspace.take<int64_t>(plan.offsets);
  own.tile = workspace.take<A>(plan.tile);
  own.panels = workspace.take<A>(plan.panels);
  return own;
}

template <typename T>
struct WeightSpace {
  Accumulate<T>* sums;  // per thread, or with several parts per part and task
  int64_t step, thread_bytes, bytes;

  WeightSpace(void* start, const WeightPlan& plan) {
    Workspace shared(start), own(nullptr);
    take_weight<T>(own, plan);
    step = round_up(plan.sums, 64);
    sums = shared.take<Accumulate<T>>(step * (plan.parts > 1 ? plan.parts * plan.tasks : max_threads()));
    thread_bytes = own.used();
    bytes = shared.used() + max_threads() * thread_bytes;
    threads_ = static_cast<char*>(start) + shared.used();
  }
  WeightThread<T> thread(int i, const WeightPlan& plan) const {
    Workspace mine(threads_ + i * thread_bytes);
    return take_weight<T>(mine, plan);
  }

 private:
  char* threads_;
};

template <typename T>
void run_backward_weight(const ConvArguments& args) {
  const WeightKernels<T>& kernels = weight_kernels<T>();
  const WeightPlan plan = kernels.plan(args.geometry, wanted_tasks());
  const WeightSpace<T> space(args.workspace, plan);
  if (plan.parts == 1) {
    parallel_for(plan.tasks, [&](int64_t task, int thread) {
      Accumulate<T>* sums = space.sums + thread * space.step;
      Phase phase("multiply");
      kernels.sum(args, plan, task, 0, space.thread(thread, plan), sums);
      phase.next("write");
      kernels.write(args, plan, task, sums, 0);
    });
    return;
  }
  parallel_for(plan.tasks * plan.parts, [&](int64_t i, int thread) {
    const Phase phase("multiply");
    kernels.sum(args, plan, i % plan.tasks, i / plan.tasks, space.thread(thread, plan), space.sums + i * space.step);
  });
  parallel_for(plan.tasks, [&](int64_t task, int) {
    const Phase phase("write");
    kernels.write(args, plan, task, space.sums + task * space.step, plan.tasks * space.step);
  });
}

}  // namespace

int64_t backward_weight_bytes(const ConvGeometry& g, DType dtype) {
  if (is_pointwise_weight(g)) return pointwise_weight_bytes(g, dtype);
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return WeightSpace<T>(nullptr, weight_kernels<T>().plan(g, wanted_tasks())).bytes;
  });
}
void backward_weight(const ConvArguments& args) {
  if (is_pointwise_weight(args.geometry)) return pointwise_weight(args);
  dispatch_floating(args.dtype, [&](auto type) { run_backward_weight<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu::im2col
