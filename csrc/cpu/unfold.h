// The unfolded matrix of a convolution, made piece by piece, never whole.
//
//   u[j][m] = x[channel, place that output pixel m sees through the tap]        (zero in zero padding)
//
// Its columns m are the output pixels of one image, its rows j the weights of one output channel: a channel c of the
// group and a place `tap` in the weight as stored (flip_kernel turns it over). So y = w u, with
//
//   contiguous     j = c * taps + tap    rows as the weight is stored; pixels lie side by side in memory
//   channels_last  j = tap * inputs + c  channels lie side by side in memory
//
// The pieces are the panels that gemm.h multiplies, whose lanes are pixels. What lies side by side in memory is moved
// by vectors, the other way goes through a transpose in registers. Which places a tap sees is found once for up to 16
// pixels, for all channels: as runs of places one stride apart, so that every padding mode comes down to a few partial
// vector loads.
#pragma once
#include "dtype.h"

namespace convext::cpu {

constexpr int kMaxRun = 16;  // pixels looked at together

// Pixels [first, last) of up to kMaxRun see the places at, at + step, at + 2 step, ...; step is the stride along w.
struct Run {
  int first, last;
  int64_t at;
};

// A range of something: [begin, end).
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

template <typename T>
struct Unfold {
  using A = Accumulate<T>;
  // x is the first channel of one group in one image. Every lane of the panels is filled, zeros where there is none.
  // to[panel][row - rows.begin][lane]: lanes are pixels, `width` a panel (contiguous: whole vectors), panels are
  // panel_stride apart. x_end: the end of the whole tensor. scratch: line_bytes, null where those are none.
  void (*unfold_pixels)(const ConvGeometry& g, const T* x, const T* x_end, Span pixels, Span rows, A* to, int64_t width,
                        void* scratch);
  // channels_last, the other way round: to[pixel][row - rows.begin], pixels `step` elements apart; up to kMaxRun
  // elements behind a pixel's rows may be written.
  void (*unfold_rows)(const ConvGeometry& g, const T* x, Span pixels, Span rows, A* to, int64_t step);
  // to[j][i] = from[i][j] for i < rows, zero for rows <= i < lanes.
  void (*transpose)(const T* from, int64_t from_step, int64_t rows, int64_t columns, A* to, int64_t to_step,
                    int64_t lanes);
  // Rounds rows x columns elements to T.
  void (*convert)(const A* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step);
};

// Of the active instruction set.
template <typename T>
const Unfold<T>& unfold();

// Does every output pixel see just the input place of its own number?
inline bool is_pointwise(const ConvGeometry& g) {
  return g.taps() == 1 && g.stride[0] == 1 && g.stride[1] == 1 && g.stride[2] == 1 && !g.padded();
}

// channels x places (per group: channels / groups), seen through one tap.
inline ConvGeometry matrix_geometry(Layout layout, int64_t channels, int64_t groups, int64_t places) {
  ConvGeometry g;
  g.batch = 1;
  g.in_channels = g.out_channels = channels;
  g.groups = groups;
  g.input[2] = g.output[2] = places;
  g.layout = layout;
  return g;
}

// The geometry to unfold x by: a pointwise convolution's places are one long line.
inline ConvGeometry unfolding_geometry(const ConvGeometry& g) {
  return is_pointwise(g) ? matrix_geometry(g.layout, g.in_channels, g.groups, g.input_places()) : g;
}

struct OutputPlace {
  int64_t o, p, q;
};

inline OutputPlace output_place(const ConvGeometry& g, int64_t at) {
  return {at / (g.output[2] * g.output[1]), at / g.output[2] % g.output[1], at % g.output[2]};
}

// From panel to panel of unfold_pixels: behind each there is room for a vector that runs over.
inline int64_t panel_stride(int64_t width, int64_t depth) { return depth * width + kMaxRun; }

// What unfold_pixels needs, contiguous, for a block of `pixels` (unfold_lines.inl): its output rows, its panels, at
// most so many vector copies for each row of u, and for each line its phases, `pitch` elements apart. whole: lines
// start where the padded row does, and output rows share them; else at the first pixel of the block that sees them.
struct LineShape {
  int64_t row_taps, rows, panels, copies, phases, pitch;
  bool whole;
};
inline LineShape line_shape(const ConvGeometry& g, int64_t pixels, int64_t width) {
  LineShape s;
  const int64_t reach = (g.kernel[2] - 1) * g.dilation[2];
  s.row_taps = g.kernel[0] * g.kernel[1];
  s.rows = ceil_div(pixels - 1, g.output[2]) + 1;
  s.panels = ceil_div(pixels, width);
  s.copies = s.panels * (width / 2 + 1) + s.rows;
  s.phases = reach + 1 < g.stride[2] ? reach + 1 : g.stride[2];
  s.whole = g.output[2] <= pixels;
  s.pitch = (s.whole ? g.output[2] : pixels) + reach / g.stride[2] + width + kMaxRun;
  return s;
}
// From pixel to pixel of unfold_rows: an odd number of cache lines, so that a tile's rows do not compete for places.
inline int64_t row_stride(int64_t depth) { return ((ceil_div(depth, kMaxRun) + 1) | 1) * kMaxRun; }

constexpr int64_t kMostLineElements = 128 * 1024;  // kernels that reach so far that lines take more go without
inline int64_t line_bytes(const ConvGeometry& g, int64_t pixels, int64_t width, int64_t element) {
  if (g.layout == Layout::channels_last || is_pointwise(g)) return 0;
  const LineShape s = line_shape(g, pixels, width);
  const int64_t lines = s.rows * s.row_taps + 1;
  if (lines > kMostLineElements / s.phases || s.pitch > kMostLineElements / (lines * s.phases)) return 0;
  return (lines * 5 + g.kernel[2] + s.panels + 3 * s.phases + 3 * s.copies) * int64_t(sizeof(int64_t)) +
         lines * s.phases * s.pitch * element;
}

// The runs of `pixels` output pixels from `out` on through a tap (as stored), in the order of pixels; pixels that see
// a zero are in none.
inline int find_runs(const ConvGeometry& g, OutputPlace out, int64_t stored_tap, int pixels, Run* runs) {
  const int64_t tap = g.weight_tap(stored_tap);
  const int64_t t = tap / (g.kernel[2] * g.kernel[1]), r = tap / g.kernel[2] % g.kernel[1], s = tap % g.kernel[2];
  const int64_t width = g.input[2], stride = g.stride[2];
  const bool zeros = g.padding_mode == PaddingMode::zeros;
  int count = 0;
  for (int first = 0; first < pixels;) {  // one output row at a time
    const int64_t left = g.output[2] - out.q;
    const int row = left < pixels - first ? int(left) : pixels - first;
    const int64_t d = g.source(0, out.o, t), h = g.source(1, out.p, r);
    if (d >= 0 && h >= 0) {
      const int64_t line = (d * g.input[1] + h) * width, start = g.padded_place(2, out.q, s);
      // Pixels [inner, outer) of the row are inside the input.
      const int64_t before = start >= 0 ? 0 : stride == 1 ? -start : ceil_div(-start, stride);
      const int64_t inside = start >= width ? 0 : stride == 1 ? width - start : ceil_div(width - start, stride);
      const int inner = before < row ? int(before) : row, outer = inside < row ? int(inside) : row;
      if (!zeros)
        for (int i = 0; i < inner; ++i)
          runs[count++] = {first + i, first + i + 1, line + padded_source(start + i * stride, width, g.padding_mode)};
      if (inner < outer) runs[count++] = {first + inner, first + outer, line + start + inner * stride};
      if (!zeros)
        for (int i = inner < outer ? outer : inner; i < row; ++i)
          runs[count++] = {first + i, first + i + 1, line + padded_source(start + i * stride, width, g.padding_mode)};
    }
    first += row;
    out.q = 0;
    if (++out.p == g.output[1]) {
      out.p = 0;
      ++out.o;
    }
  }
  return count;
}

// How many taps from this one to the end of its kernel row, if the pixels see them side by side: then they are, with
// channels_last, one longer row of channels. Else 1.
inline int64_t joined_taps(const ConvGeometry& g, OutputPlace out, int64_t stored_tap, int pixels) {
  const int64_t s = stored_tap % g.kernel[2], count = g.kernel[2] - s;
  if (count == 1 || g.flip_kernel || g.dilation[2] != 1 || g.groups != 1) return 1;
  for (int i = 0; i < pixels; ++i) {
    const int64_t start = g.padded_place(2, out.q, s);
    if (start < 0 || start + count > g.input[2]) return 1;
    if (++out.q == g.output[2]) out.q = 0;
  }
  return count;
}

}  // namespace convext::cpu
