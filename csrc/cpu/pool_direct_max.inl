// Max pooling. A value takes the lead if it is greater than the best so far or NaN; for runs of taps
// in order this is associative, so a window may be reduced along its rows first and over its rows after.

#include "pool_direct.inl"
#include "pool_direct_joins.inl"

#include "pool_direct_bands.inl"
#include "pool_direct_rows.inl"
#include "pool_direct_streams.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// best[j], winner[j]: the greatest along the window of column j in a packed row, and its tap s.
template <typename A, bool kPlaces>
CONVEXT_INLINE void max_along_row(const A* row, const Columns& columns, int64_t taps, const Index<A>* first_tap,
                                  A* best, Index<A>* winner) {
  constexpr int kL = kLanes<A>;
  for (int64_t j = 0; j < columns.count; j += 2 * kL) {  // may overshoot into the slack of all three
    Vec<A> best0 = load(row + j), best1 = load(row + j + kL);
    IndexVec<A> tap = {}, winner0 = {}, winner1 = {};
    if (kPlaces) winner0 = load_index<A>(first_tap + j), winner1 = load_index<A>(first_tap + j + kL);
    for (int64_t s = 1; s < taps; ++s) {
      const A* at = row + columns.offset[s] + j;
      const Vec<A> v0 = load(at), v1 = load(at + kL);
      const auto lead0 = takes_lead<A>(v0, best0), lead1 = takes_lead<A>(v1, best1);
      best0 = choose(lead0, v0, best0);
      best1 = choose(lead1, v1, best1);
      if (kPlaces) {
        tap = tap + 1;
        winner0 = choose(lead0, tap, winner0);
        winner1 = choose(lead1, tap, winner1);
      }
    }
    store(best + j, best0);
    store(best + j + kL, best1);
    if (kPlaces) store_index<A>(winner + j, winner0), store_index<A>(winner + j + kL, winner1);
  }
}

// Rows reduced along their windows, `size` apart.
template <typename A>
struct Reduced {
  const A* best;
  const Index<A>* winner;
  int64_t size;
};

// Merges `rows` of them, `step` apart, the first tap of each kernel row `taps` after that of the one before, into a row
// of the output, or begins it.
template <typename T, typename P, bool kPlaces>
CONVEXT_INLINE void merge_rows(const Reduced<Accumulate<T>>& from, int64_t rows, int64_t step, int64_t count,
                               int64_t first_tap, int64_t taps, bool begin, T* y, P* places) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  for (int64_t i = 0; i < count; i += kL) {
    const int64_t n = count - i;
    const A* best = from.best + i;
    const Index<A>* winner = from.winner + i;
    IndexVec<A> base = splat_index<A>(first_tap), tap = {};
    Vec<A> value = load(best);
    if (kPlaces) tap = base + load_index<A>(winner);
    for (int64_t r = 1; r < rows; ++r) {
      best += step * from.size, winner += step * from.size;
      const Vec<A> next = load(best);
      const auto lead = takes_lead<A>(next, value);
      value = choose(lead, next, value);
      if (kPlaces) {
        base = base + splat_index<A>(taps);
        tap = choose(lead, base + load_index<A>(winner), tap);
      }
    }
    if (!begin) {
      const Vec<A> old = load_first(y + i, n);
      const auto lead = takes_lead<A>(value, old);
      value = choose(lead, value, old);
      if (kPlaces) tap = choose(lead, tap, load_places<A>(places + i, n));
    }
    store_first(y + i, value, n);
    if (kPlaces) store_places<A>(places + i, tap, n);
  }
}

template <typename T, typename P, bool kPlaces>
void fill_outside(const Columns& columns, T* y, P* places) {
  for (int64_t j = 0; j < columns.count; ++j) {
    y[columns.first + j] = from_accumulate<T>(lowest<Accumulate<T>>());
    if (kPlaces) places[columns.first + j] = 0;
  }
}

// A part of a contiguous plane, output by output, lanes along the window's row: for wide windows that overlap little.
// Every lane keeps its own first greatest and last NaN; of the lanes the greatest wins, then the first, of NaNs the
// last.
template <typename T, typename P, bool kPlaces>
void max_forward_wide(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  P* places = advance<kPlaces>(static_cast<P*>(args.places_out), plane * g.output_places());
  constexpr int64_t kL = kLanes<A>;
  const Vec<A> bottom = splat<A>(lowest<A>());
  A value[kL];
  Index<A> tap[kL];
  for (int64_t o = part.os.first; o < part.os.last; ++o)
    for (int64_t p = part.ps.first; p < part.ps.last; ++p)
      for (int64_t q = 0; q < g.output[2]; ++q) {
        const Range ts = taps_inside(g, 0, o), rs = taps_inside(g, 1, p), ss = taps_inside(g, 2, q);
        const bool empty = ts.first >= ts.last || rs.first >= rs.last || ss.first >= ss.last;
        const int64_t first = empty ? 0 : (ts.first * g.kernel[1] + rs.first) * g.kernel[2] + ss.first;
        // Where rows of the window follow each other in memory they are one.
        const bool joined = ss.last - ss.first == g.input[2] && g.kernel[2] == g.input[2] && g.dilation[1] == 1;
        const int64_t rows = empty ? 0 : joined ? 1 : rs.last - rs.first;
        const int64_t run = (ss.last - ss.first) * (joined ? rs.last - rs.first : 1);
        Vec<A> best = bottom;
        IndexVec<A> winner = splat_index<A>(first);
        for (int64_t t = ts.first; t < ts.last; ++t)
          for (int64_t r = rs.first; r < rs.first + rows; ++r) {
            const T* row =
                x + (g.place(0, o, t) * g.input[1] + g.place(1, p, r)) * g.input[2] + g.place(2, q, ss.first);
            const int64_t number = (t * g.kernel[1] + r) * g.kernel[2] + ss.first;
            for (int64_t i = 0; i < run; i += kL) {
              Vec<A> next = load_first(row + i, run - i);
              const IndexVec<A> lane = lane_numbers<A>();
              if (run - i < kL) next = choose(less(lane, splat_index<A>(run - i)), next, bottom);
              const auto lead = takes_lead<A>(next, best);
              best = choose(lead, next, best);
              winner = choose(lead, splat_index<A>(number + i) + lane, winner);
            }
          }
        store(value, best);
        store_index<A>(tap, winner);
        int64_t w = 0;
        for (int64_t i = 1; i < least(run, kL); ++i) {
          const bool later = tap[i] > tap[w], nan = value[i] != value[i], led_by_nan = value[w] != value[w];
          if (nan ? !led_by_nan || later : !led_by_nan && (value[i] > value[w] || (value[i] == value[w] && !later)))
            w = i;
        }
        const int64_t at = (o * g.output[1] + p) * g.output[2] + q;
        y[at] = from_accumulate<T>(value[w]);
        if (kPlaces) places[at] = P(tap[w]);
      }
}

// A part of a contiguous plane: input rows are packed, reduced along their windows, and merged into the output rows
// that see them, a batch of rows at a time: loads soon after their stores would wait for them.
template <typename T, typename P, bool kPlaces>
void max_forward_columns(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  P* places = advance<kPlaces>(static_cast<P*>(args.places_out), plane * g.output_places());
  constexpr int64_t kL = kLanes<A>;
  const int64_t taps = g.kernel[2], width = g.output[2];
  const Range seen = places_seen(g, 1, part.ps);
  Columns columns;
  A row[kPoolRow + kPoolSlack], best[kPoolRow];
  Index<A> winner[kPoolRow], first_tap[kPoolColumns + kPoolSlack];

  for (int64_t chunk = 0; chunk < width; chunk += columns.count) {
    set_columns<A>(g, chunk, &columns);
    bool outside = false;
    for (int64_t j = 0; kPlaces && j < columns.count; ++j) {
      const Range inside = taps_inside(g, 2, chunk + j);
      first_tap[j] = Index<A>(inside.first);
      outside |= inside.first >= inside.last;
    }
    for (int64_t o = part.os.first; o < part.os.last; ++o)
      for (int64_t p = part.ps.first; p < part.ps.last; ++p) {
        const Range depths = taps_inside(g, 0, o), heights = taps_inside(g, 1, p);
        if (depths.first < depths.last && heights.first < heights.last) continue;
        const int64_t at = (o * g.output[1] + p) * width;
        fill_outside<T, P, kPlaces>(columns, y + at, advance<kPlaces>(places, at));
      }
    const int64_t row_size = columns.stride * columns.pitch, result_size = ceil_div(columns.count, 2 * kL) * 2 * kL;
    const int64_t batch = least(kPoolRow / row_size, kPoolRow / result_size);
    for (int64_t d = 0; d < g.input[0]; ++d) {
      const Range os = common(outputs_over(g, 0, d, d + 1), part.os);
      for (int64_t h = seen.first; h < seen.last && os.first < os.last; h += batch) {
        const int64_t rows = least(batch, seen.last - h);
        for (int64_t i = 0; i < rows; ++i)
          pack_row<T, false>({x + (d * g.input[1] + h + i) * g.input[2], 1, 0, 1, 0}, g.input[2], columns, lowest<A>(),
                             row + i * row_size);
        for (int64_t i = 0; i < rows; ++i) {
          if (h + batch + i < seen.last) prefetch_rows(x + (d * g.input[1] + h + batch + i) * g.input[2], g.input[2]);
          max_along_row<A, kPlaces>(row + i * row_size, columns, taps, first_tap, best + i * result_size,
                                    winner + i * result_size);
        }
        const Range ps = common(outputs_over(g, 1, h, h + rows), part.ps);
        for (int64_t o = os.first; o < os.last; ++o) {
          const int64_t t = g.tap_of(0, o, d);
          if (t < 0) continue;
          for (int64_t p = ps.first; p < ps.last; ++p) {
            const Range rs = taps_between(g, 1, p, h, h + rows);
            if (rs.first >= rs.last) continue;
            const int64_t i = g.place(1, p, rs.first) - h, at = (o * g.output[1] + p) * width + chunk;
            const bool begin = t == taps_inside(g, 0, o).first && rs.first == taps_inside(g, 1, p).first;
            merge_rows<T, P, kPlaces>(
                {best + i * result_size, winner + i * result_size, result_size}, rs.last - rs.first, g.dilation[1],
                columns.count, (t * g.kernel[1] + rs.first) * taps, taps, begin, y + at, advance<kPlaces>(places, at));
          }
        }
      }
    }
    if (!outside) continue;
    for (int64_t j = 0; j < columns.count; ++j) {
      const Range inside = taps_inside(g, 2, chunk + j);
      if (inside.first < inside.last) continue;
      for (int64_t o = part.os.first; o < part.os.last; ++o)
        for (int64_t p = part.ps.first; p < part.ps.last; ++p) places[(o * g.output[1] + p) * width + chunk + j] = 0;
    }
  }
}

// kVectors vectors of n channels of one channels_last output.
template <typename T, typename P, bool kPlaces, int kVectors>
CONVEXT_INLINE void max_window(const PoolGeometry& g, const T* x, Range ts, Range rs, Range ss, const int64_t* start,
                               int64_t n, T* y, P* places) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> best[kVectors];
  IndexVec<A> winner[kVectors];
  const bool empty = ts.first >= ts.last || rs.first >= rs.last || ss.first >= ss.last;
  const int64_t first = empty ? 0 : (ts.first * g.kernel[1] + rs.first) * g.kernel[2] + ss.first;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) best[v] = splat<A>(lowest<A>()), winner[v] = splat_index<A>(first);
  const int64_t step = g.dilation[2] * g.channels, columns = ss.last - ss.first;
  for (int64_t t = ts.first; t < ts.last; ++t)
    for (int64_t r = rs.first; r < rs.last; ++r) {
      const T* at = x + first_of_row(g, start, t, r, ss.first);
      IndexVec<A> tap = splat_index<A>((t * g.kernel[1] + r) * g.kernel[2] + ss.first);
      for (int64_t s = 0; s < columns; ++s, at += step, tap = tap + 1)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Vec<A> value = load_first(at + v * kL, n);
          const auto lead = takes_lead<A>(value, best[v]);
          best[v] = choose(lead, value, best[v]);
          if (kPlaces) winner[v] = choose(lead, tap, winner[v]);
        }
    }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store_first(y + v * kL, best[v], n);
    if (kPlaces) store_places<A>(places + v * kL, winner[v], n);
  }
}

// The maxima so far of some channels of an output.
template <typename T, bool kPlaces>
struct StreamedMax {
  using A = Accumulate<T>;
  static constexpr int64_t kL = kLanes<A>;
  A best[kPoolChannels + kPoolSlack];
  Index<A> winner[kPlaces ? kPoolChannels + kPoolSlack : 1];

  CONVEXT_INLINE void begin(int64_t tap, int64_t channels) {
    for (int64_t c = 0; c < channels; c += kL) {
      store(best + c, splat<A>(lowest<A>()));
      if (kPlaces) store_index<A>(winner + c, splat_index<A>(tap));
    }
  }
  template <int kTaps>
  CONVEXT_INLINE void join(const T* x, int64_t step, int64_t tap, int64_t channels) {
    for (int64_t c = 0; c < channels; c += kL) {
      Vec<A> value = load(best + c);
      IndexVec<A> place = {};
      if (kPlaces) place = load_index<A>(winner + c);
#pragma GCC unroll 4
      for (int s = 0; s < kTaps; ++s) {
        const Vec<A> next = load_first(x + s * step + c, channels - c);
        const auto lead = takes_lead<A>(next, value);
        value = choose(lead, next, value);
        if (kPlaces) place = choose(lead, splat_index<A>(tap + s), place);
      }
      store(best + c, value);
      if (kPlaces) store_index<A>(winner + c, place);
    }
  }
  template <typename P>
  CONVEXT_INLINE void write(int64_t channels, T* y, P* places) const {
    for (int64_t c = 0; c < channels; c += kL) {
      store_first(y + c, load(best + c), channels - c);
      if (kPlaces) store_places<A>(places + c, load_index<A>(winner + c), channels - c);
    }
  }
};

// Rows of channels_last outputs.
template <typename T, typename P, bool kPlaces>
void max_forward_channels(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 4 * kL;
  const PoolGeometry& g = args.geometry;
  const T* x = static_cast<const T*>(args.input) + part.image * g.input_places() * g.channels;
  const bool streams = streams_fit(g);
  StreamedMax<T, kPlaces> result;
  for (int64_t o = part.os.first; o < part.os.last; ++o)
    for (int64_t p = part.ps.first; p < part.ps.last; ++p)
      for (int64_t q = 0; q < g.output[2]; ++q) {
        const Range ts = taps_inside(g, 0, o), rs = taps_inside(g, 1, p), ss = taps_inside(g, 2, q);
        const int64_t row = (part.image * g.output[0] + o) * g.output[1] + p, at = (row * g.output[2] + q) * g.channels;
        const int64_t start[] = {g.place(0, o, 0), g.place(1, p, 0), g.place(2, q, 0)};
        T* y = static_cast<T*>(args.output) + at;
        P* places = advance<kPlaces>(static_cast<P*>(args.places_out), at);
        int64_t c = part.channels.first;
        const int64_t end = part.channels.last;
        for (int64_t some; streams && c < end; c += some) {
          const bool empty = ts.first >= ts.last || rs.first >= rs.last || ss.first >= ss.last;
          some = least(end - c, kPoolChannels);
          result.begin(empty ? 0 : (ts.first * g.kernel[1] + rs.first) * g.kernel[2] + ss.first, some);
          stream_window(g, x + c, ts, rs, ss, start, some, &result);
          result.write(some, y + c, advance<kPlaces>(places, c));
        }
        for (; c + kBlock <= end; c += kBlock)
          max_window<T, P, kPlaces, 4>(g, x + c, ts, rs, ss, start, kL, y + c, advance<kPlaces>(places, c));
        for (; c + kL <= end; c += kL)
          max_window<T, P, kPlaces, 1>(g, x + c, ts, rs, ss, start, kL, y + c, advance<kPlaces>(places, c));
        if (c < end)
          max_window<T, P, kPlaces, 1>(g, x + c, ts, rs, ss, start, end - c, y + c, advance<kPlaces>(places, c));
      }
}

// A part by the kernel that honours everything.
template <typename T, typename P, bool kPlaces>
void max_forward_any(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  if (g.layout == Layout::channels_last)
    max_forward_channels<T, P, kPlaces>(args, part);
  else if (wide_windows(g))
    max_forward_wide<T, P, kPlaces>(args, part);
  else
    max_forward_columns<T, P, kPlaces>(args, part);
}

// By the fastest that takes it; false: none does, or it has found a NaN.
template <typename T, bool kPlaces>
bool max_forward_fast(const PoolArguments& args, const Part& part) {
  constexpr int kInner = band_channels(sizeof(Accumulate<T>));
  switch (choose_max_kernel(args.geometry, kInner)) {
    case MaxKernel::rows: return pool_rows<Maximum, T, kPlaces>(args, part);
    case MaxKernel::bands: return max_bands<T, kPlaces, 1>(args, part);
    case MaxKernel::channel_bands: return max_bands<T, kPlaces, kInner>(args, part);
    default: return false;
  }
}
template <typename T>
void max_forward(const PoolArguments& args, const Part& part) {
  const bool with_places = args.places_out != nullptr;
  if (with_places ? max_forward_fast<T, true>(args, part) : max_forward_fast<T, false>(args, part)) return;
  if (!with_places)
    max_forward_any<T, uint8_t, false>(args, part);
  else if (args.geometry.byte_places())
    max_forward_any<T, uint8_t, true>(args, part);
  else
    max_forward_any<T, int32_t, true>(args, part);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
