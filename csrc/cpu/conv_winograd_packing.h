// The weight of winograd: how it lies, and when and where it is transformed.
//
// Beforehand (conv_winograd_packing.cpp): u[group][part][point][panel][term][lane], made once and kept while the weight
// does not change. On the way, where u is larger than the near caches, tiles are few and the products would wait for
// it:
//
//   a weight that serves one call is transformed a panel and some terms at a time, into a buffer that stays in L2
//   with 8 tiles or fewer, u stays in registers (conv_winograd_few.inl) and the weight is read turned: vectors of
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

// Where the taps of each depth tap and phase lie in the weight, `step` from tap to tap; -1 for taps that a phase lacks.
template <typename T>
std::vector<int64_t> tap_offsets(const Plan<T>& plan, int64_t step) {
  const ConvGeometry& g = plan.g;
  const int64_t high = plan.kernel->size_h - plan.kernel->out_h + 1,
                wide = plan.kernel->size_w - plan.kernel->out_w + 1;
  std::vector<int64_t> at;
  for (int64_t t = 0; t < g.kernel[0]; ++t)
    for (int64_t i = 0; i < plan.phases; ++i)
      for (int64_t r = phase_of(g, i).h; r < phase_of(g, i).h + high * g.stride[1]; r += g.stride[1])
        for (int64_t s = phase_of(g, i).w; s < phase_of(g, i).w + wide * g.stride[2]; s += g.stride[2])
          at.push_back(r < g.kernel[1] && s < g.kernel[2] ? g.weight_tap((t * g.kernel[1] + r) * g.kernel[2] + s) * step
                                                          : -1);
  return at;
}

// A weight that is transformed on the way: as it lies, or turned[vector of outputs][input][tap][lane].
template <typename T>
struct RawWeight {
  const T* data;
  WeightSteps steps;
  int64_t vector;  // from one vector of outputs to the next
  bool turned;
  std::vector<int64_t> taps;  // tap_offsets
};
template <typename T>
RawWeight<T> raw_weight(const Plan<T>& plan, const ConvArguments& args, Direction direction) {
  if (!plan.on_the_way) return {};
  const int64_t lanes = gemm<Accumulate<T>>().lanes, taps = args.geometry.taps();
  if (args.packed_weight != nullptr)
    return {static_cast<const T*>(args.packed_weight),
            {1, taps * lanes, lanes},
            plan.inputs * taps * lanes,
            true,
            tap_offsets(plan, lanes)};
  const WeightSteps steps = weight_steps(args.geometry, direction, args.weight_channels_last);
  return {static_cast<const T*>(args.weight), steps, lanes * steps.output, false, tap_offsets(plan, steps.tap)};
}

// What packing on the way is for: few tiles in all, whose products take no longer than writing and reading a large u.
// Of small weights, whose calls are short, that is said without a plan.
template <typename T>
bool pays_on_the_way(const Plan<T>& plan) {
  return !plan.by_tiles && plan.g.output[0] == 1 && plan.parts.size() == 1 && plan.tiles * plan.g.batch <= kWayTiles &&
         plan.large_u();
}
inline bool may_pack_on_the_way(const ConvGeometry& g, Direction direction) {
  constexpr int64_t kMostPoints = 64, kMostBytes = 8;
  if (g.groups > 1 || g.kernel[0] > 1 || strided(g) || direction == Direction::backward_weight) return false;
  if (direction == Direction::backward_input && repeats_padding(g)) return false;
  return round_up(g.in_channels, kWidestVector) * round_up(g.out_channels, kWidestVector) * kMostPoints * kMostBytes >=
         kWayBytes / 2;
}
// A weight that is kept and would be transformed on the way is kept turned: as large as it is, and u a multiple of
// that.
template <typename T>
bool keeps_turned(const ConvGeometry& g, Direction direction) {
  return may_pack_on_the_way(g, direction) && pays_on_the_way(make_plan<T>(g, direction)) &&
         make_plan<T>(g, direction, /*on_the_way=*/true).few;
}

// conv_winograd_packing.cpp
Packing packing(const ConvGeometry& g, DType dtype, Direction direction);
void pack(const PackArguments& args);
bool packs_on_the_way(const ConvGeometry& g, DType dtype, Direction direction);

}  // namespace convext::cpu::winograd_cpu
