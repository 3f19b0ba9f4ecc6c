// Winograd's weight, packed: conv_winograd_packing.h.
#include "conv_winograd_packing.h"

#include <algorithm>

#include "phases.h"

namespace convext::cpu::winograd_cpu {
namespace {

constexpr int64_t kTurned = -1;  // the arrangement of a weight that is kept turned

template <typename T>
void turn_weight(const PackArguments& args) {
  using A = Accumulate<T>;
  const Plan<T> plan = make_plan<T>(args.geometry, args.direction);
  const RawWeight<T> weight = raw_weight(plan, args.weight, args.geometry, args.direction, args.channels_last);
  const WeightSteps steps = weight.steps;
  const std::vector<int64_t>& at = weight.taps[0];
  const int64_t lanes = gemm<A>().lanes, taps = plan.g.taps();
  const Phase phase("pack weight");
  parallel_for(ceil_div(plan.outputs, lanes), [&](int64_t vector, int) {
    const T* from = weight.data + vector * weight.vector;
    T* to = static_cast<T*>(args.packed) + vector * lanes * plan.inputs * taps;
    const int64_t count = std::min(lanes, plan.outputs - vector * lanes);
    std::vector<A> turned(plan.turned_filters());
    for (int64_t c = 0; c < plan.inputs; c += kTurnedTerms) {
      const int64_t some = std::min(kTurnedTerms, plan.inputs - c);
      const TurnedFilters<A> filters = plan.kernel->turn_weight(from + c * steps.input, steps.output, steps.input,
                                                                at.data(), some, int(count), turned.data());
      for (int64_t i = 0; i < some; ++i, to += taps * lanes)
        for (int64_t t = 0; t < taps; ++t) {
          const A* lane = filters.data + i * filters.channel + t * filters.tap;
          T* stored = to + at[t] / steps.tap * lanes;  // taps are kept as the weight has them
          for (int64_t k = 0; k < lanes; ++k) stored[k] = k < count ? from_accumulate<T>(lane[k]) : T();
        }
    }
  });
}

template <typename T>
void pack_weight(const PackArguments& args) {
  using A = Accumulate<T>;
  if (keeps_turned<T>(args.geometry, args.direction)) return turn_weight<T>(args);
  const Plan<T> plan = make_plan<T>(args.geometry, args.direction);
  const RawWeight<T> weight = raw_weight(plan, args.weight, args.geometry, args.direction, args.channels_last);
  A* u = static_cast<A*>(args.packed);
  const Phase phase("pack weight");
  const int64_t parts = int64_t(plan.parts.size());
  parallel_for(plan.g.groups * parts * plan.panels, [&](int64_t task, int) {
    const int64_t part = task / plan.panels;
    make_u(plan, weight, part / parts, part % parts, task % plan.panels, u);
  });
}

}  // namespace

Packing packing(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return {};
  return dispatch_floating(dtype, [&](auto type) -> Packing {
    using T = typename decltype(type)::type;
    const Plan<T> plan = make_plan<T>(g, direction);
    if (keeps_turned<T>(g, direction))
      return {round_up(plan.outputs, gemm<Accumulate<T>>().lanes) * plan.inputs * g.taps() * int64_t(sizeof(T)),
              kTurned};
    const int64_t parts = int64_t(plan.parts.size()), elements = plan.g.groups * parts * plan.kernel->points();
    int64_t arrangement = int64_t(plan.tile) * 2 + plan.by_tiles;
    if (plan.apart > 1)  // which taps are whose
      for (const OutputPhase& part : plan.parts)
        arrangement = (arrangement * 8 + part.phase.tap[1]) * 8 + part.phase.tap[2];
    return {elements * plan.u_point() * int64_t(sizeof(Accumulate<T>)), arrangement};
  });
}

void pack(const PackArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { pack_weight<typename decltype(type)::type>(args); });
}

bool packs_on_the_way(const ConvGeometry& g, DType dtype, Direction direction) {
  const bool may = may_pack_on_the_way(g, direction);
  if (!may && !may_make_own_u(g)) return false;  // for most calls, without a plan
  return dispatch_floating(dtype, [&](auto type) {
    const auto plan = make_plan<typename decltype(type)::type>(g, direction);
    return (may && pays_on_the_way(plan)) || makes_own_u(plan);
  });
}

}  // namespace convext::cpu::winograd_cpu
