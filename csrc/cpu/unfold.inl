// Vector code of unfold.h: packing into panels, transposing.
namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kTransposed = 128;  // columns transposed together
constexpr int kMaxParts = 4;          // more runs than this in a vector are moved element by element

struct RunList {
  int count;
  int64_t step;
  Run run[kMaxRun];

  CONVEXT_INLINE bool whole(int lanes) const {  // one plain vector
    return count == 1 && step == 1 && run[0].first == 0 && run[0].last == lanes;
  }
};

CONVEXT_INLINE void find(const ConvGeometry& g, OutputPlace out, int64_t tap, int pixels, RunList* runs) {
  runs->count = find_runs(g, out, tap, pixels, runs->run);
  runs->step = g.stride[2];
}

// contiguous: channels c of [0, inputs) whose row of this tap lies in `rows`.
CONVEXT_INLINE Span channels_of_tap(const ConvGeometry& g, Span rows, int64_t tap) {
  const int64_t taps = g.taps(), inputs = g.group_inputs();
  return {rows.begin > tap ? ceil_div(rows.begin - tap, taps) : 0,
          rows.end > tap ? least(ceil_div(rows.end - tap, taps), inputs) : 0};
}

// Every second element of the two vectors, lane after lane.
template <typename A, int... I>
CONVEXT_INLINE Vec<A> even_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <typename A, int... I>
CONVEXT_INLINE Vec<A> interleave_low(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * int(sizeof...(I)))...);
}
template <typename A, int... I>
CONVEXT_INLINE Vec<A> interleave_high(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (int(sizeof...(I)) / 2 + I / 2 + I % 2 * int(sizeof...(I)))...);
}
template <typename A>
using LaneNumbers = std::make_integer_sequence<int, kLanes<A>>;

// The pixels of one run at their lanes, zeros elsewhere; step 1 or 2. Addresses outside the run are not touched.
template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_run(const T* x, const Run& run, int64_t step) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  if (step == 1) return load_part(x + (run.at - run.first), run.first, run.last);
  const T* from = x + (run.at - 2 * run.first);
  const int first = 2 * run.first, last = 2 * run.last - 1;
  return even_lanes<A>(load_part(from, least(first, lanes), least(last, lanes)),
                       load_part(from + lanes, greatest(first - lanes, 0), greatest(last - lanes, 0)),
                       LaneNumbers<A>());
}

// One vector of pixels through one tap, for `channels` channels.
template <typename T>
CONVEXT_INLINE void copy_runs(const T* x, int64_t x_step, const RunList& runs, int64_t channels, Accumulate<T>* to,
                              int64_t to_step) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  if (runs.count == 0) {
    for (int64_t c = 0; c < channels; ++c, to += to_step) store(to, Vec<A>{});
  } else if (runs.whole(lanes)) {
    x += runs.run[0].at;
    for (int64_t c = 0; c < channels; ++c, x += x_step, to += to_step) store(to, load(x));
  } else if (runs.step <= 2 && runs.count == 1) {
    const Run run = runs.run[0];
    for (int64_t c = 0; c < channels; ++c, x += x_step, to += to_step) store(to, load_run(x, run, runs.step));
  } else if (runs.step <= 2 && runs.count <= kMaxParts) {
    for (int64_t c = 0; c < channels; ++c, x += x_step, to += to_step) {
      Vec<A> v = load_run(x, runs.run[0], runs.step);
      for (int i = 1; i < runs.count; ++i) v += load_run(x, runs.run[i], runs.step);
      store(to, v);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c, x += x_step, to += to_step) {
      T lane[lanes] = {};
      for (int i = 0; i < runs.count; ++i)
        for (int l = runs.run[i].first; l < runs.run[i].last; ++l)
          lane[l] = x[runs.run[i].at + (l - runs.run[i].first) * runs.step];
      store(to, load(lane));
    }
  }
}

// to[j * to_step + i] = row[i][j] for i < lanes, j < columns; a null row is a row of zeros. kSpill: steps follow each
// other and what comes after the last may be overwritten, so whole vectors are stored.
template <bool kSpill = false, typename T>
CONVEXT_INLINE void transpose_rows(const T* const* row, int64_t lanes, int64_t columns, Accumulate<T>* to,
                                   int64_t to_step) {
  using A = Accumulate<T>;
  constexpr int side = kLanes<A>;
  for (int64_t i0 = 0; i0 < lanes; i0 += side) {
    const int wide = int(least(lanes - i0, int64_t(side)));
    for (int64_t j0 = 0; j0 < columns; j0 += side) {
      const int high = int(least(columns - j0, int64_t(side)));
      Vec<A> a[side], b[side];
#pragma GCC unroll 16
      for (int i = 0; i < side; ++i) {
        a[i] = Vec<A>{};
        if (i < wide && row[i0 + i] != nullptr)
          a[i] = high == side ? load(row[i0 + i] + j0) : load_part(row[i0 + i] + j0, 0, high);
      }
      // Each round moves the top bit of (row, lane) to the bottom; after log2(side) rounds row and lane have changed
      // places.
#pragma GCC unroll 4
      for (int round = 1; round < side; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < side / 2; ++i) {
          b[2 * i] = interleave_low<A>(a[i], a[i + side / 2], LaneNumbers<A>());
          b[2 * i + 1] = interleave_high<A>(a[i], a[i + side / 2], LaneNumbers<A>());
        }
#pragma GCC unroll 16
        for (int i = 0; i < side; ++i) a[i] = b[i];
      }
      A* out = to + j0 * to_step + i0;
#pragma GCC unroll 16
      for (int j = 0; j < side; ++j, out += to_step) {
        if (j >= high) break;
        if (wide == side || (kSpill && lanes <= side))
          store(out, a[j]);
        else
          store_part(out, a[j], 0, wide);
      }
    }
  }
}

// The places that up to kMaxRun pixels see, times `scale`; -1 for a zero.
CONVEXT_INLINE void find_places(const ConvGeometry& g, OutputPlace out, int64_t tap, int pixels, int64_t scale,
                                int64_t* at) {
  Run runs[kMaxRun];
  const int count = find_runs(g, out, tap, pixels, runs);
  for (int i = 0; i < pixels; ++i) at[i] = -1;
  for (int i = 0; i < count; ++i) {
    int64_t place = runs[i].at * scale;
    for (int l = runs[i].first; l < runs[i].last; ++l, place += g.stride[2] * scale) at[l] = place;
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA

#include "unfold_lines.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename T>
void unfold_pixels_channels_last(const ConvGeometry& g, const T* x, Span pixels, Span rows, Accumulate<T>* to,
                                 int64_t width) {
  using A = Accumulate<T>;
  const int64_t inputs = g.group_inputs(), end = least(rows.end, g.taps() * inputs);
  int64_t at[kMaxRun];
  const T* row[kMaxRun];
  for (int64_t i = 0; i < pixels.size(); i += width, to += panel_stride(width, rows.size()))
    for (int64_t lane = 0; lane < width; lane += kMaxRun) {
      const int wide = int(least(width - lane, int64_t(kMaxRun)));
      const int valid = int(greatest(least(pixels.size() - i - lane, int64_t(wide)), int64_t(0)));
      const OutputPlace out = output_place(g, pixels.begin + i + lane);
      for (int64_t tap = rows.begin / inputs, joined; tap * inputs < end; tap += joined) {
        joined = joined_taps(g, out, tap, valid);
        const Span c = {greatest(rows.begin - tap * inputs, int64_t(0)), least(end - tap * inputs, joined * inputs)};
        find_places(g, out, tap, valid, g.in_channels, at);
        for (int l = 0; l < wide; ++l) row[l] = l < valid && at[l] >= 0 ? x + at[l] + c.begin : nullptr;
        A* step = to + (tap * inputs + c.begin - rows.begin) * width + lane;
        if (wide == width)
          transpose_rows<true>(row, wide, c.size(), step, width);
        else
          transpose_rows(row, wide, c.size(), step, width);
      }
    }
}

// Channels lie side by side, so each pixel's taps are copied, widened.
template <typename T>
void unfold_rows(const ConvGeometry& g, const T* x, Span pixels, Span rows, Accumulate<T>* to, int64_t step) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t inputs = g.group_inputs();
  int64_t at[kMaxRun];
  for (int64_t m = 0; m < pixels.size(); m += kMaxRun) {
    const int some = int(least(pixels.size() - m, int64_t(kMaxRun)));
    const OutputPlace out = output_place(g, pixels.begin + m);
    for (int64_t tap = rows.begin / inputs, joined; tap * inputs < rows.end; tap += joined) {
      joined = joined_taps(g, out, tap, some);
      const Span c = {greatest(rows.begin - tap * inputs, int64_t(0)), least(rows.end - tap * inputs, joined * inputs)};
      find_places(g, out, tap, some, g.in_channels, at);
      A* row = to + m * step + (tap * inputs + c.begin - rows.begin);
      for (int l = 0; l < some; ++l, row += step) {
        const T* from = at[l] < 0 ? nullptr : x + at[l] + c.begin;
        int64_t j = 0;
        for (; j + lanes <= c.size(); j += lanes) store(row + j, from == nullptr ? Vec<A>{} : load(from + j));
        if (j < c.size()) store(row + j, from == nullptr ? Vec<A>{} : load_part(from + j, 0, int(c.size() - j)));
      }
    }
  }
}

// contiguous, for kernels that reach so far that their lines would fill no cache: vector by vector, tap by tap.
template <typename T>
void unfold_pixels_by_runs(const ConvGeometry& g, const T* x, Span pixels, Span rows, Accumulate<T>* to,
                           int64_t width) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const int64_t taps = g.taps(), plane = g.input_places();
  RunList runs;
  for (int64_t i = 0; i < ceil_div(pixels.size(), width) * width; i += lanes) {
    const int valid = int(greatest(least(pixels.size() - i, lanes), int64_t(0)));
    Accumulate<T>* column = to + i / width * panel_stride(width, rows.size()) + i % width;
    const OutputPlace out = output_place(g, pixels.begin + i);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Span c = channels_of_tap(g, rows, tap);
      if (c.size() <= 0) continue;
      find(g, out, tap, valid, &runs);
      copy_runs(x + c.begin * plane, plane, runs, c.size(), column + (c.begin * taps + tap - rows.begin) * width,
                taps * width);
    }
  }
}

template <typename T>
void unfold_pixels(const ConvGeometry& g, const T* x, const T* x_end, Span pixels, Span rows, Accumulate<T>* to,
                   int64_t width, void* scratch) {
  if (g.layout == Layout::channels_last)
    unfold_pixels_channels_last(g, x, pixels, rows, to, width);
  else if (is_pointwise(g))
    copy_pixels(g, Planes<T>{x, x_end, g.input_places()}, pixels, rows, to, width);
  else if (scratch != nullptr)
    unfold_pixels_contiguous(g, Planes<T>{x, x_end, g.input_places()}, pixels, rows, to, width,
                             static_cast<char*>(scratch));
  else
    unfold_pixels_by_runs(g, x, pixels, rows, to, width);
}

template <typename T>
void transpose(const T* from, int64_t from_step, int64_t rows, int64_t columns, Accumulate<T>* to, int64_t to_step,
               int64_t lanes) {
  constexpr int side = kLanes<Accumulate<T>>;
  const T* row[side];
  for (int64_t j = 0; j < columns; j += kTransposed)  // lanes that share cache lines while these are near
    for (int64_t i = 0; i < lanes; i += side) {
      const int64_t wide = least(lanes - i, int64_t(side));
      for (int64_t l = 0; l < wide; ++l) row[l] = i + l < rows ? from + (i + l) * from_step + j : nullptr;
      transpose_rows(row, wide, least(columns - j, kTransposed), to + j * to_step + i, to_step);
    }
}

template <typename T>
void convert(const Accumulate<T>* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
  constexpr int lanes = kLanes<Accumulate<T>>;
  for (int64_t i = 0; i < rows; ++i, from += from_step, to += to_step) {
    int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) store(to + j, load(from + j));
    if (j < columns) store_part(to + j, load_part(from + j, 0, int(columns - j)), 0, int(columns - j));
  }
}

template <typename T>
constexpr Unfold<T> kUnfold = {unfold_pixels<T>, unfold_rows<T>, transpose<T>, convert<T>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
