// PoolAlgorithm::max_indices of pool_direct: the winner's flat index in its input plane, from its place in the window.
//
//   index = start of the window + (t dd H + r dh) W + s dw,  place = (t R + r) S + s
//
// with windows of T x R x S places, dd, dh and dw apart. Rows and depths are taken out of a byte by multiplying with
// the reciprocal of what they hold. A task is some outputs of contiguous planes, or some places of a channels_last
// image, where a window's start serves all channels. Traffic: places once, eight times as many bytes of indices.
// Limits: places are bytes, planes have less than 2^31 places (what is added up on the way may pass that and comes
// back), and no window lies wholly outside the input; else the naive one.
#include <memory>

#include "isa.h"
#include "parallel.h"
#include "pool.h"
#include "pool_direct.h"
#include "simd.h"

namespace convext::cpu {

// The distance of a window's place from its first: tap step + tap / columns row + tap / (rows columns) depth.
struct TapDistances {
  int32_t step, columns, row, places, depth, inputs;
};

}  // namespace convext::cpu

#define CONVEXT_KERNELS "pool_direct_indices.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

constexpr int64_t kIndices = 4096;  // of a task, about: 32 kB

// Whether every window shows a place of the input.
bool all_see(const PoolGeometry& g) {
  if (g.adaptive || plain_windows(g)) return true;
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    for (int64_t o = 0; o < g.output[axis]; ++o)
      if (g.first_tap(axis, o) >= g.last_tap(axis, o)) return false;
  return true;
}

// Where the windows of a plane begin; before the input, where they begin in the padding.
std::unique_ptr<int32_t[]> window_starts(const PoolGeometry& g) {
  std::unique_ptr<int32_t[]> starts(new int32_t[g.output_places() + kWidestVector]());
  const std::unique_ptr<int32_t[]> columns(new int32_t[g.output[2]]);
  for (int64_t q = 0; q < g.output[2]; ++q) columns[q] = int32_t(g.place(2, q, 0));
  int64_t at = 0;
  for (int64_t o = 0; o < g.output[0]; ++o)
    for (int64_t p = 0; p < g.output[1]; ++p) {
      const int64_t row = (g.place(0, o, 0) * g.input[1] + g.place(1, p, 0)) * g.input[2];
      for (int64_t q = 0; q < g.output[2]; ++q) starts[at++] = int32_t(row + columns[q]);
    }
  return starts;
}

TapDistances tap_distances_of(const PoolGeometry& g) {
  const auto apart = [&](int axis) { return g.adaptive ? 1 : g.dilation[axis]; };
  const int64_t row = g.input[2], depth = g.input[1] * row;
  return {int32_t(apart(2)),
          int32_t(g.kernel[2]),
          int32_t(apart(1) * row - g.kernel[2] * apart(2)),
          int32_t(g.kernel[1] * g.kernel[2]),
          g.kernel[0] == 1 ? 0 : int32_t(apart(0) * depth - g.kernel[1] * apart(1) * row),
          int32_t(g.input_places())};
}

}  // namespace

void pool_direct_indices(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  if (!g.byte_places() || g.input_places() > INT32_MAX || !all_see(g)) return max_pool_indices(args);
  const TapDistances distances = tap_distances_of(g);
  const auto starts = window_starts(g);
  const auto find = CONVEXT_SELECT_ISA(find_indices);
  const uint8_t* places = static_cast<const uint8_t*>(args.places);
  int64_t* const indices = static_cast<int64_t*>(args.output);
  const bool last = g.layout == Layout::channels_last;
  const int64_t outputs = g.output_places(), images = last ? g.batch : g.batch * g.channels;
  const int64_t channels = last ? g.channels : 1;
  // Several planes to a task where they are small, several tasks to a plane where it is large.
  const int64_t together = ceil_div(kIndices, outputs * channels), whole = outputs * channels / kIndices;
  const int64_t splits = whole < 1 ? 1 : whole < outputs ? whole : outputs;
  parallel_for(ceil_div(images, together) * splits, [&](int64_t task, int) {
    const int64_t split = task % splits, from = outputs * split / splits, until = outputs * (split + 1) / splits;
    const int64_t first = task / splits * together, end = first + together < images ? first + together : images;
    for (int64_t image = first; image < end; ++image) {
      const int64_t offset = (image * outputs + from) * channels;
      find(distances, starts.get() + from, places + offset, until - from, channels, indices + offset);
    }
  });
}

}  // namespace convext::cpu
