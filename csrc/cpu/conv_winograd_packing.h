// The weight of winograd: how it lies, and when and where it is transformed.
//
// Beforehand (conv_winograd_packing.cpp): u[group][part][point][panel][term][lane], made once and kept while the weight
// does not change; of a weight that serves one call, a few threads make one each. On the way, where u is larger than
// the near caches, tiles are few and the products would wait for it:
//
//   a weight that serves one call is transformed a panel and some terms at a time, into a buffer that stays in L2.
//   With 8 tiles or fewer, u stays in registers (conv_winograd_few.inl) and the weight is read turned: vectors of
//   outputs side by side. A weight that is kept is kept so, a quarter of u, for memory is what such calls wait for
#pragma once
#include <vector>

#include "conv_winograd_plan.h"

namespace convext::cpu::winograd_cpu {

// How a weight lies: from output to output and from input to input of the convolution that is computed, and from tap to
// tap.
struct WeightSteps {
  int64_t output, input, tap;
};
inline WeightSteps weight_steps(const ConvGeometry& g, Direction direction, bool channels_last) {
  const int64_t rows = g.group_inputs() * g.taps();
  const int64_t stored_input = channels_last ? 1 : g.taps(), tap = channels_last ? g.group_inputs() : 1;
  return direction == Direction::forward ? WeightSteps{rows, stored_input, tap} : WeightSteps{stored_input, rows, tap};
}

// Where the taps of each part of the output, depth tap and phase lie in the weight of `geometry`, `step` from tap to
// tap; -1 for taps that are not there.
template <typename T>
std::vector<std::vector<int64_t>> tap_offsets(const Plan<T>& plan, const ConvGeometry& geometry, int64_t step) {
  const ConvGeometry& g = plan.g;
  const int64_t high = plan.kernel->size_h - plan.kernel->out_h + 1,
                wide = plan.kernel->size_w - plan.kernel->out_w + 1;
  std::vector<std::vector<int64_t>> all;
  for (const OutputPhase& part : plan.parts) {
    const int64_t* taps = part.phase.geometry.kernel;
    std::vector<int64_t> at;
    for (int64_t t = 0; t < taps[0]; ++t)
      for (int64_t i = 0; i < plan.phases; ++i)
        for (int64_t r = phase_of(g, i).h; r < phase_of(g, i).h + high * g.stride[1]; r += g.stride[1])
          for (int64_t s = phase_of(g, i).w; s < phase_of(g, i).w + wide * g.stride[2]; s += g.stride[2]) {
            const int64_t tap = (t * taps[1] + r) * taps[2] + s;
            const bool there = r < taps[1] && s < taps[2];
            at.push_back(!there           ? -1
                         : plan.apart > 1 ? geometry.weight_tap(part.phase.kernel_tap(geometry, tap)) * step
                                          : g.weight_tap(tap) * step);
          }
    all.push_back(at);
  }
  return all;
}

// A weight as it lies, or turned[vector of outputs][input][tap][lane].
template <typename T>
struct RawWeight {
  const T* data;
  WeightSteps steps;
  int64_t group, vector;  // from one group, and from one vector of outputs, to the next
  bool turned;
  std::vector<std::vector<int64_t>> taps;  // tap_offsets
};
template <typename T>
RawWeight<T> raw_weight(const Plan<T>& plan, const void* data, const ConvGeometry& g, Direction direction,
                        bool channels_last) {
  const WeightSteps steps = weight_steps(g, direction, channels_last);
  return {static_cast<const T*>(data),
          steps,
          g.group_outputs() * g.group_inputs() * g.taps(),
          gemm<Accumulate<T>>().lanes * steps.output,
          false,
          tap_offsets(plan, g, steps.tap)};
}
template <typename T>
RawWeight<T> turned_weight(const Plan<T>& plan, const void* data, const ConvGeometry& g) {
  const int64_t lanes = gemm<Accumulate<T>>().lanes, taps = g.taps();
  return {static_cast<const T*>(data), {1, taps * lanes, lanes}, 0, plan.inputs * taps * lanes, true,
          tap_offsets(plan, g, lanes)};
}

// A panel of u, of one group and part: u is where all of it lies.
template <typename T>
void make_u(const Plan<T>& plan, const RawWeight<T>& weight, int64_t group, int64_t part, int64_t panel,
            Accumulate<T>* u) {
  const int64_t k = panel * plan.width, parts = int64_t(plan.parts.size());
  plan.kernel->transform_weight(
      weight.data + group * weight.group + k * weight.steps.output, weight.steps.output, weight.steps.input,
      weight.taps[part].data(), plan.phases * plan.g.kernel[0], plan.inputs, std::min(plan.width, plan.outputs - k),
      plan.width, u + (group * parts + part) * plan.kernel->points() * plan.u_point() + k * plan.reduction,
      plan.u_point());
}

// What packing on the way is for: few tiles in all, whose products take no longer than writing and reading a large u.
// Of small weights, whose calls are short, that is said without a plan.
template <typename T>
bool pays_on_the_way(const Plan<T>& plan) {
  return !plan.by_tiles && plan.g.output[0] == 1 && plan.tiles * plan.g.batch <= kWayTiles && plan.large_u();
}
inline bool may_pack_on_the_way(const ConvGeometry& g, Direction direction) {
  constexpr int64_t kMostPoints = 100, kMostBytes = 8;
  if (g.groups > 1 || g.kernel[0] > 1 || direction == Direction::backward_weight) return false;
  if (direction == Direction::backward_input && repeats_padding(g)) return false;
  return round_up(g.in_channels, kWidestVector) * round_up(g.out_channels, kWidestVector) * kMostPoints * kMostBytes >=
         kWayBytes / 2;
}
// A few threads each make u of a weight that serves one call for themselves, where it is not large: lines that one
// writes and another reads cost more than what is done twice.
inline bool may_make_own_u(const ConvGeometry& g) {
  return max_threads() > 1 && max_threads() <= kOwnThreads && g.groups == 1;
}
template <typename T>
bool makes_own_u(const Plan<T>& plan) {
  return may_make_own_u(plan.g) && !plan.shared && !plan.large_u();
}
// A weight that is kept and would be transformed on the way is kept turned: as large as it is, and u a multiple of
// that.
template <typename T>
bool keeps_turned(const ConvGeometry& g, Direction direction) {
  return !strided(g) && may_pack_on_the_way(g, direction) && pays_on_the_way(make_plan<T>(g, direction)) &&
         make_plan<T>(g, direction, /*on_the_way=*/true).few;
}

// conv_winograd_packing.cpp
Packing packing(const ConvGeometry& g, DType dtype, Direction direction);
void pack(const PackArguments& args);
bool packs_on_the_way(const ConvGeometry& g, DType dtype, Direction direction);

}  // namespace convext::cpu::winograd_cpu
