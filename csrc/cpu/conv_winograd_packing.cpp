// Winograd's weight, packed: conv_winograd_packing.h.
#include "conv_winograd_packing.h"

#include <algorithm>

#include "phases.h"

namespace convext::cpu::winograd_cpu {
namespace {

constexpr int64_t kTurned = -1;  // the arrangement of a weight that is kept turned

// Where the taps of a part of the output lie in the weight, `step` from tap to tap, as above.
template <typename T>
std::vector<int64_t> tap_offsets(const Plan<T>& plan, const OutputPhase& part, const ConvGeometry& g, int64_t step) {
  const int64_t* taps = part.phase.geometry.kernel;
  std::vector<int64_t> at;
  for (int64_t t = 0; t < taps[0]; ++t)
    for (int64_t r = 0; r < plan.g.kernel[1]; ++r)
      for (int64_t s = 0; s < plan.g.kernel[2]; ++s) {
        const int64_t tap = (t * taps[1] + r) * taps[2] + s;
        at.push_back(r < taps[1] && s < taps[2] ? g.weight_tap(part.phase.kernel_tap(g, tap)) * step : -1);
      }
  return at;
}

template <typename T>
void turn_weight(const PackArguments& args) {
  const WeightSteps steps = weight_steps(args.geometry, args.direction, args.channels_last);
  const ConvGeometry g = as_forward(args.geometry, args.direction);
  const int64_t lanes = gemm<Accumulate<T>>().lanes, outputs = g.group_outputs(), inputs = g.group_inputs();
  const Phase phase("pack weight");
  parallel_for(ceil_div(outputs, lanes), [&](int64_t vector, int) {
    const T* from = static_cast<const T*>(args.weight) + vector * lanes * steps.output;
    T* to = static_cast<T*>(args.packed) + vector * lanes * inputs * g.taps();
    const int64_t count = std::min(lanes, outputs - vector * lanes);
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t t = 0; t < g.taps(); ++t, to += lanes) {
        for (int64_t k = 0; k < count; ++k) to[k] = from[k * steps.output + c * steps.input + t * steps.tap];
        std::fill(to + count, to + lanes, T());
      }
  });
}

template <typename T>
void pack_weight(const PackArguments& args) {
  using A = Accumulate<T>;
  if (keeps_turned<T>(args.geometry, args.direction)) return turn_weight<T>(args);
  const Plan<T> plan = make_plan<T>(args.geometry, args.direction);
  const int64_t rows = args.geometry.group_inputs() * args.geometry.taps();
  const auto [output, input, tap] = weight_steps(args.geometry, args.direction, args.channels_last);
  std::vector<std::vector<int64_t>> at;
  for (const OutputPhase& part : plan.parts)
    at.push_back(plan.apart > 1 ? tap_offsets(plan, part, args.geometry, tap) : tap_offsets(plan, tap));
  const T* w = static_cast<const T*>(args.weight);
  A* u = static_cast<A*>(args.packed);
  const Phase phase("pack weight");
  const int64_t parts = int64_t(plan.parts.size());
  parallel_for(plan.g.groups * parts * plan.panels, [&](int64_t task, int) {
    const int64_t part = task / plan.panels, group = part / parts, k = task % plan.panels * plan.width;
    const T* from = w + group * args.geometry.group_outputs() * rows + k * output;
    A* to = u + part * plan.kernel->points() * plan.u_point() + k * plan.reduction;
    plan.kernel->transform_weight(from, output, input, at[part % parts].data(), plan.phases * plan.g.kernel[0],
                                  plan.inputs, std::min(plan.width, plan.outputs - k), plan.width, to, plan.u_point());
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
  return may_pack_on_the_way(g, direction) && dispatch_floating(dtype, [&](auto type) {
           return pays_on_the_way(make_plan<typename decltype(type)::type>(g, direction));
         });
}

}  // namespace convext::cpu::winograd_cpu
