// Windows as boxes: along each axis output o sees the input places [spans[o].first, spans[o].last), whatever rule they
// come from. Adaptive windows are boxes, so are ordinary ones without dilation. Spelled out once per call.
#pragma once
#include <memory>
#include <type_traits>

#include "dtype.h"
#include "parallel.h"
#include "pool_direct.h"

namespace convext::cpu {

// What the kernels read.
struct Boxes {
  const Range* spans[kMaxSpatial];    // per output
  const Range* seers[kMaxSpatial];    // per input place, the outputs whose boxes show it; gradients of averages only
  const double* counts[kMaxSpatial];  // per output, what an average counts along the axis
};

class BoxTables {
 public:
  explicit BoxTables(const PoolGeometry& g, bool with_seers = false) {
    int64_t outputs = 0, inputs = 0;
    for (int axis = 0; axis < kMaxSpatial; ++axis) outputs += g.output[axis], inputs += g.input[axis];
    ranges_.reset(new Range[outputs + (with_seers ? inputs : 0)]);
    counts_.reset(new double[outputs]);
    Range* range = ranges_.get();
    double* count = counts_.get();
    for (int axis = 0; axis < kMaxSpatial; ++axis) {
      boxes_.spans[axis] = range;
      boxes_.counts[axis] = count;
      for (int64_t o = 0; o < g.output[axis]; ++o) {
        const int64_t start = g.adaptive ? 0 : g.place(axis, o, 0);
        const Range span = g.adaptive ? cut(o, g.input[axis], g.output[axis])
                                      : Range{start + g.first_tap(axis, o), start + g.last_tap(axis, o)};
        const int64_t counted = g.adaptive ? span.last - span.first : g.counted_taps(axis, o);
        *count++ = double(g.divisor_override == 0 ? counted : axis == 0 ? g.divisor_override : 1);
        *range++ = span;
      }
    }
    for (int axis = 0; axis < kMaxSpatial; ++axis) {
      boxes_.seers[axis] = range;
      for (int64_t i = 0; with_seers && i < g.input[axis]; ++i) *range++ = g.spanning(axis, i);
    }
  }
  const Boxes& boxes() const { return boxes_; }

 private:
  std::unique_ptr<Range[]> ranges_;
  std::unique_ptr<double[]> counts_;
  Boxes boxes_;
};

// The maxima of rows of outputs of one contiguous plane, and their places, by the active instruction set's kernel.
template <typename T>
using BoxMaxima = void (*)(const PoolGeometry& g, const Boxes& boxes, const T* x, Range rows, T* y, void* places);
template <typename T>
BoxMaxima<T> box_maxima();
// Without places, of some planes.
template <typename T>
using BoxValues = void (*)(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows, T* y);
template <typename T>
BoxValues<T> box_values();

// Distances, times `pitch`, of the places of a window from its first; as many as there are bytes where places are
// bytes, so that none is looked up past the end.
inline std::unique_ptr<int64_t[]> tap_distances(const PoolGeometry& g, int64_t pitch) {
  const int64_t window = g.window(), count = g.byte_places() ? 256 : window;
  std::unique_ptr<int64_t[]> distances(new int64_t[count]);
  for (int64_t tap = 0; tap < count; ++tap) {
    const int64_t row = tap / g.kernel[2];
    distances[tap] = ((row / g.kernel[1] * g.input[1] + row % g.kernel[1]) * g.input[2] + tap % g.kernel[2]) * pitch;
  }
  return distances;
}

// Where the boxes of all outputs begin, times `pitch`.
inline std::unique_ptr<int64_t[]> box_starts(const PoolGeometry& g, const Boxes& boxes, int64_t pitch) {
  std::unique_ptr<int64_t[]> starts(new int64_t[g.output_places()]);
  int64_t at = 0;
  for (int64_t o = 0; o < g.output[0]; ++o)
    for (int64_t p = 0; p < g.output[1]; ++p) {
      const int64_t row = (boxes.spans[0][o].first * g.input[1] + boxes.spans[1][p].first) * g.input[2];
      for (int64_t q = 0; q < g.output[2]; ++q) starts[at++] = (row + boxes.spans[2][q].first) * pitch;
    }
  return starts;
}

// dy and places lie `step` apart from one output to the next and `out` from one lane (a channel or a plane) to the
// next; sums `in` from lane to lane.
struct Lanes {
  int64_t count, step, out, in;
};
// Adds every dy to the place that won it, in the order of the outputs. Neighbouring outputs often have the same winner,
// whose sum the second has to wait for: meanwhile go the other lanes. A place that cannot be is passed over.
template <int kCount, typename T, typename P, typename S>
void add_to_winners(const PoolGeometry& g, const int64_t* starts, const int64_t* distances, const T* dy,
                    const P* places, Lanes lanes, S* sum, int64_t pitch) {
  const uint64_t end = g.input_places() * pitch, window = g.window();
  const int64_t outputs = g.output_places(), count = kCount > 0 ? kCount : lanes.count;
  for (int64_t out = 0; out < outputs; ++out, dy += lanes.step, places += lanes.step)
    for (int64_t l = 0; l < count; ++l) {
      const int64_t tap = places[l * lanes.out];
      if (sizeof(P) > 1 && uint64_t(tap) >= window) continue;
      const int64_t at = starts[out] + distances[tap];
      if (uint64_t(at) >= end) continue;
      if constexpr (std::is_same_v<T, S> && !std::is_arithmetic_v<T>)
        sum[at + l * lanes.in] = dy[l * lanes.out];  // halves stored as such: nobody else adds to the place
      else
        sum[at + l * lanes.in] += to_accumulate(dy[l * lanes.out]);
    }
}
template <typename T, typename S>
void add_to_winners(const PoolGeometry& g, const int64_t* starts, const int64_t* distances, const T* dy,
                    const void* places, int64_t from, Lanes lanes, S* sum, int64_t pitch) {
  const auto add = [&](const auto* at) {
    if (lanes.count == kPoolPlanes)
      add_to_winners<int(kPoolPlanes)>(g, starts, distances, dy, at + from, lanes, sum, pitch);
    else
      add_to_winners<0>(g, starts, distances, dy, at + from, lanes, sum, pitch);
  };
  if (g.byte_places())
    add(static_cast<const uint8_t*>(places));
  else
    add(static_cast<const int32_t*>(places));
}

// Elements read or written, whichever are more, of a task of boxes: they are dearer than the windows of kPoolPart.
constexpr int64_t kBoxPart = 8192;

// run(first plane, planes, rows of outputs or inputs [first, last)): all planes, `lanes` at a time where there are as
// many; those of more than kBoxPart elements in parts of whole rows, smaller ones several to a task. `sizes`: of what
// is written.
template <typename Run>
void run_box_planes(const PoolGeometry& g, int64_t lanes, const int64_t* sizes, const Run& run) {
  const int64_t rows = sizes[0] * sizes[1], planes = g.batch * g.channels;
  if (planes < lanes) lanes = 1;
  const int64_t inputs = g.input_places(), outputs = g.output_places();
  const int64_t places = (inputs > outputs ? inputs : outputs) * lanes, together = lanes * ceil_div(kBoxPart, places);
  int64_t splits = places / kBoxPart;
  splits = splits < 1 ? 1 : splits < rows ? splits : rows;
  parallel_for(ceil_div(planes, together) * splits, [&](int64_t task, int) {
    const int64_t split = task % splits, first = task / splits * together;
    run(first, first + together < planes ? together : planes - first,
        Range{rows * split / splits, rows * (split + 1) / splits});
  });
}
// The same, plane by plane: run(plane, rows).
template <typename Run>
void run_box_rows(const PoolGeometry& g, const int64_t* sizes, const Run& run) {
  run_box_planes(g, 1, sizes, [&](int64_t first, int64_t planes, Range rows) {
    for (int64_t plane = first; plane < first + planes; ++plane) run(plane, rows);
  });
}

}  // namespace convext::cpu
