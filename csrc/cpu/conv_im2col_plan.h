// How conv_im2col.cpp cuts a forward call: pixels, outputs and the sum, and whether u is packed. See there.
#pragma once
#include <limits>
#include <numeric>
#include <utility>

#include "conv_im2col.h"

namespace convext::cpu::im2col {

constexpr int64_t kPixelVectors = 7;  // contiguous: panels of nr pixels in a block; rows of 7 x 2^n are common
constexpr int64_t kPixelTiles = 9;    // channels_last: panels of mr pixels in a block
constexpr int64_t kGathered = 16;     // channels_last: with so many channels a pixel is read where it lies
constexpr int64_t kOutputs = 1024;    // output channels in a task
constexpr int64_t kWayPlaces = 1024;  // of all images, up to which a weight that serves one call is packed on the way
constexpr int64_t kWayOutputs = 256;  // of which it is packed at once
constexpr int64_t kWayWaste = 8;      // of threads' time, at most one part in so many
constexpr int64_t kUnfolding = 16;    // takes as long as multiplying with so many outputs
constexpr int64_t kReading = 8;       // u anew as long as so many outputs, the weight as so many pixels
constexpr int64_t kMostTurns = 4;     // of threads, which are looked at
constexpr double kUneven = 0.2;       // of a task: threads do not end together
constexpr int64_t kInPlace = 96;      // contiguous, pointwise: for so few output channels packing does not pay
constexpr int64_t kSameSet = 4096;    // bytes apart, lines compete for the same places of first-level cache
constexpr int64_t kWays = 16;         // how many of them are left to do so, at most: twice what the cache holds

struct ForwardPlan {
  Blocks reduction;
  EvenBlocks pixels, outputs;
  int64_t width;          // of the panels of gemm's a
  int64_t output_width;   // of the weight's panels
  int64_t weight_panels;  // per group
  bool rows;              // u's panels are rows: a pixel's channels and taps side by side, widened
  bool gathered;          // u is not packed: gemm gets pointers to the channels of each pixel, by tap
  bool in_place;          // u is not packed: the planes are its rows; channels_last: its columns, the pixels' channels
  bool on_the_way;        // the weight is packed where it is used
  int64_t tasks;
};

// Pointwise, contiguous: may gemm read u in the planes? They must be cut into whole panels. A panel is then a line of
// each plane, read anew for every panel of the weight: few of those, and not too many lines whose distance makes them
// push each other out of the cache.
template <typename A>
bool suits_in_place(const ConvGeometry& g, int64_t depth) {
  if (g.layout != Layout::contiguous || !is_pointwise(g) || g.input_places() % gemm<A>().nr != 0) return false;
  if (g.group_outputs() <= gemm<A>().mr) return true;
  const int64_t apart = g.input_places() * int64_t(sizeof(A)) % kSameSet;
  const int64_t different = kSameSet / std::max(std::gcd(apart, kSameSet), int64_t(64));
  return g.group_outputs() <= kInPlace && ceil_div(depth, different) <= kWays;
}

// Pointwise, no place has neighbours: those of all images that follow each other in memory are taken as one image's, so
// that small maps fill tiles and the weight is read once for all.
inline ConvGeometry one_image(const ConvGeometry& g) {
  if (g.batch < 2 || !is_pointwise(g) || g.layout != Layout::channels_last) return g;
  ConvGeometry all = g;
  all.batch = 1;
  for (int axis : {0, 1}) all.input[axis] = all.output[axis] = 1;
  all.input[2] = all.output[2] = g.batch * g.input_places();
  return all;
}

// A map of one place lies alike in both layouts.
inline ConvGeometry whatever_layout(const ConvGeometry& g) {
  ConvGeometry other = g;
  if (is_pointwise(g) && g.input_places() == 1) other.layout = Layout::channels_last;
  return other;
}

// Whose rows are u's.
template <typename E>
ConvGeometry rows_geometry(const ConvGeometry& g) {
  return kPairs<E> ? pair_geometry(g) : g;
}

// What packing on the way is for: so few places that all of them take the weight, a part at a time, from L2, and enough
// panels that threads have as many each.
inline bool may_pack_on_the_way(const ConvGeometry& g, int64_t width) {
  if (g.layout != Layout::channels_last || g.groups > 1 || g.taps() != 1 || g.output_places() * g.batch > kWayPlaces)
    return false;
  const int64_t panels = ceil_div(g.out_channels, width), threads = max_threads();
  return kWayWaste * (round_up(panels, threads) - panels) <= panels;
}

// Cuts pixels and outputs of all images into tasks so that the slowest thread is done first: it takes as many tasks as
// there are turns, the largest and others, each with all of its u to unfold and all of its weight to read.
inline void cut_tasks(int64_t images, int64_t unit, int64_t panels, int64_t places, int64_t outputs,
                      ForwardPlan* plan) {
  const int64_t threads = max_threads(), again = plan->in_place ? kReading : kUnfolding;
  const int64_t fewest = ceil_div(places, panels * unit), most = ceil_div(places, unit);
  double least = std::numeric_limits<double>::infinity();
  for (int64_t count = fewest; count <= most; count += 1 + count / 16) {
    const EvenBlocks pixels = cut_evenly(places, unit, count);
    const int64_t others = std::max(images * pixels.count, int64_t(1));
    for (int64_t turns = 0, last = 0; turns <= kMostTurns; ++turns) {  // none: as few parts as may be
      const int64_t parts = std::max({turns * threads / others, ceil_div(outputs, kOutputs), int64_t(1)});
      if (std::exchange(last, parts) == parts) continue;
      const EvenBlocks some = cut_evenly(outputs, plan->output_width, parts);
      const double turn = double(ceil_div(others * some.count, threads) - 1) + (threads > 1 ? kUneven : 0);
      const double all =
          double(some.size + again) * (double(std::min(pixels.size, places) + kReading) +
                                       turn * (double(places) / double(pixels.count) + double(kReading)));
      if (all < least) least = all, plan->pixels = pixels, plan->outputs = some;
    }
    if (others >= kMostTurns * threads && count >= fewest + threads) break;
  }
  plan->tasks = images * plan->pixels.count * plan->outputs.count;
}

template <typename T, typename E>
ForwardPlan plan_forward(Elements<T, E>, const ConvGeometry& g, bool on_the_way = false) {
  const Gemm<E>& kernel = gemm<E>();
  const int64_t inputs = rows_geometry<E>(g).group_inputs();
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t places = g.output_places();
  ForwardPlan plan;
  plan.on_the_way = on_the_way;
  plan.width = panel_width(contiguous ? g.group_outputs() : places, kernel.mr);
  plan.output_width = contiguous ? plan.width : kernel.nr;
  plan.weight_panels = ceil_div(g.group_outputs(), plan.output_width);
  plan.rows = !contiguous && !std::is_same_v<T, E> && !kPairs<E>;
  if constexpr (kPairs<E>)
    plan.gathered = !contiguous && g.group_inputs() % 2 == 0;
  else
    plan.gathered = !contiguous && std::is_same_v<T, E> && inputs >= kGathered;
  const bool by_channels = contiguous && 4 * g.taps() <= kReduction<E>;
  plan.reduction = cut(inputs * g.taps(), by_channels ? g.taps() : 1, kReduction<E>);
  if constexpr (std::is_same_v<T, E>)
    plan.in_place = contiguous ? suits_in_place<E>(g, plan.reduction.size) : is_pointwise(g);
  else
    plan.in_place = plan.gathered && is_pointwise(g);
  plan.gathered = plan.gathered && !plan.in_place;
  const int64_t unit = contiguous ? kernel.nr : plan.width;
  if (on_the_way) {
    const int64_t threads = max_threads(), turns = ceil_div(ceil_div(g.out_channels, kWayOutputs), threads);
    plan.pixels = cut_evenly(places, unit, ceil_div(places, kPixelTiles * unit));
    plan.outputs = cut_evenly(g.out_channels, plan.output_width, turns * threads);
    plan.tasks = plan.outputs.count;
    return plan;
  }
  cut_tasks(g.batch * g.groups, unit, contiguous ? kPixelVectors : kPixelTiles, places, g.group_outputs(), &plan);
  return plan;
}

}  // namespace convext::cpu::im2col
