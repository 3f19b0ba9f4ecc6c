// Windows as boxes: along each axis output o sees the input places [spans[o].first, spans[o].last), whatever rule they
// come from. Adaptive windows are boxes, so are ordinary ones without dilation. Spelled out once per call.
#pragma once
#include <memory>

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
        const int64_t start = g.place(axis, o, 0);
        *range++ = {start + g.first_tap(axis, o), start + g.last_tap(axis, o)};
        *count++ = double(g.divisor_override == 0 ? g.counted_taps(axis, o) : axis == 0 ? g.divisor_override : 1);
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

// run(plane, rows of outputs or inputs [first, last)): all planes, those of more than kPoolPart elements in parts of
// whole rows, smaller ones several to a task. `sizes`: of what is written.
template <typename Run>
void run_box_rows(const PoolGeometry& g, const int64_t* sizes, const Run& run) {
  const int64_t rows = sizes[0] * sizes[1], planes = g.batch * g.channels, places = g.input_places();
  int64_t splits = places / kPoolPart;
  splits = splits < 1 ? 1 : splits < rows ? splits : rows;
  const int64_t together = splits > 1 ? 1 : ceil_div(kPoolPart, places);
  parallel_for(ceil_div(planes, together) * splits, [&](int64_t task, int) {
    const int64_t split = task % splits, first = task / splits * together;
    const int64_t last = first + together < planes ? first + together : planes;
    for (int64_t plane = first; plane < last; ++plane)
      run(plane, Range{rows * split / splits, rows * (split + 1) / splits});
  });
}

}  // namespace convext::cpu
