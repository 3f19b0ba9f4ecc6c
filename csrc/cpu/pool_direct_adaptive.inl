// Contiguous windows of unequal sizes (PoolGeometry::adaptive), and wide ones of the average: each a box of rows and
// columns without gaps. The rows of a window are shared by all windows beside each other, so first they are reduced
// into one, with vectors of columns, and that is then cut along its columns, one by one: rows x columns / lanes steps
// for the first, columns for the second. A gradient goes the other way: rows of dy that see an input row are summed,
// and that is spread; the next input row is often seen by the same, and is its copy.
// Traffic: input and output once from memory; a reduced row stays in the nearest cache.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// The input places of output `out` along one axis (dilation 1).
CONVEXT_INLINE Range window_of(const PoolGeometry& g, int axis, int64_t out) {
  const Range taps = taps_inside(g, axis, out);
  const int64_t start = g.place(axis, out, 0);
  return {start + taps.first, start + taps.last};
}

// Rows of a box: `depths` times `heights` of them, from column 0.
template <typename T>
struct BoxRows {
  const T* start;
  int64_t depths, depth_step, heights, height_step;
};
// Those of the windows (os, ps) of one row of outputs. With `joined` they follow each other in memory and are one.
template <typename T>
CONVEXT_INLINE BoxRows<T> box_rows(const PoolGeometry& g, const T* x, Range ds, Range hs, bool joined) {
  const int64_t width = g.input[2];
  return {x + (ds.first * g.input[1] + hs.first) * width, ds.last - ds.first, g.input[1] * width,
          joined ? 1 : hs.last - hs.first, width};
}

// Columns [first, first + count) of outputs, and the input columns of each.
struct Cuts {
  int64_t first, count;
  Range columns[kPoolColumns];
};
CONVEXT_INLINE void set_cuts(const PoolGeometry& g, int64_t first, Cuts* cuts) {
  cuts->first = first;
  cuts->count = least(kPoolColumns, g.output[2] - first);
  for (int64_t j = 0; j < cuts->count; ++j) cuts->columns[j] = window_of(g, 2, first + j);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
