// Average pooling and its gradient.

#include "pool_direct.inl"
#include "pool_direct_halves.inl"
#include "pool_direct_joins.inl"
#include "pool_direct_rows.inl"
#include "pool_direct_streams.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// A part of a contiguous plane: for each output row the input rows of its windows are summed into one packed row, and
// that along its windows.
template <typename T>
void avg_forward_columns(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  const int64_t taps = g.kernel[2], depth_step = g.input[1] * g.input[2];
  Columns columns;
  A row[kPoolRow + kPoolSlack], divisor[kPoolColumns + kPoolSlack];

  for (int64_t chunk = 0; chunk < g.output[2]; chunk += columns.count) {
    set_columns<A>(g, chunk, &columns);
    set_column_divisors(g, chunk, columns.count, divisor);
    const int64_t n = least(columns.count, kL);
    for (int64_t o = part.os.first; o < part.os.last; ++o)
      for (int64_t p = part.ps.first; p < part.ps.last; ++p) {
        const Range ts = taps_inside(g, 0, o), rs = taps_inside(g, 1, p);
        const Rows<T> rows = {x + g.place(0, o, ts.first) * depth_step + g.place(1, p, rs.first) * g.input[2],
                              ts.last - ts.first, g.dilation[0] * depth_step, rs.last - rs.first,
                              g.dilation[1] * g.input[2]};
        pack_row<T, true>(rows, g.input[2], columns, 0, row);
        const int64_t seen = greatest(g.place(1, p, g.kernel[1] - 1) + 1, int64_t(0));
        prefetch_rows(rows.start + (seen - g.place(1, p, rs.first)) * g.input[2],
                      least(g.stride[1], g.input[1] - seen) * g.input[2]);
        const Vec<A> factor = splat<A>(A(row_divisor(g, o, p)));
        T* out = y + (o * g.output[1] + p) * g.output[2] + chunk;
        for (int64_t j = 0; j < columns.count; j += kL) {
          const int64_t i = least(j, columns.count - n);
          Vec<A> sum = load(row + i);
          for (int64_t s = 1; s < taps; ++s) sum += load(row + columns.offset[s] + i);
          store_first(out + i, sum / (factor * load(divisor + i)), n);
        }
      }
  }
}

// The padded row of a gradient. With windows that overlap, sums of dy over a column lie where the windows start, zeros
// between, and an input place sums over `taps` of them; where windows do not overlap each covers the `run` places of
// its window and an input place takes one. `reach` places are needed in front.
struct Spread {
  int64_t taps, run, reach;
};

// dy of the outputs [q, q + lanes) summed over the rows that see an input place; where divisors differ, of dy /
// divisor.
template <bool kEven, typename T>
CONVEXT_INLINE Vec<Accumulate<T>> sum_rows(const PoolGeometry& g, const T* dy, const Seers* seers, int64_t q,
                                           int64_t lanes, const Accumulate<T>* columns) {
  using A = Accumulate<T>;
  Vec<A> sum = {};
  for (int64_t i = 0; i < seers[0].count; ++i)
    for (int64_t j = 0; j < seers[1].count; ++j) {
      const int64_t o = seers[0].out + i * seers[0].step, p = seers[1].out + j * seers[1].step;
      const Vec<A> value = load_first(dy + (o * g.output[1] + p) * g.output[2] + q, lanes);
      sum += kEven ? value : value / (splat<A>(A(row_divisor(g, o, p))) * load(columns));
    }
  return sum;
}

// A part of a contiguous plane: for each input row the rows of dy that see it are summed into one, spread to the places
// of the input, and summed along its windows. A row that the same outputs see as the one before is its copy.
template <typename T>
void avg_backward_columns(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
  T* dx = static_cast<T*>(args.output) + plane * g.input_places();
  const int64_t taps = g.kernel[2], stride = g.stride[2];
  const bool disjoint = g.dilation[2] == 1 && taps <= stride, even = uniform_divisor(g);
  const Spread spread = disjoint ? Spread{1, taps, 0} : Spread{taps, 1, (taps - 1) * g.dilation[2]};
  const auto divisor = divisor_of<A>(!even ? 1 : g.divisor_override != 0 ? g.divisor_override : g.window(), nullptr);
  A buffer[kPoolSlack + kPoolRow + kPoolSlack], columns[kPoolRow + kPoolSlack];
  A* row = buffer + kPoolSlack;
  const int64_t chunk = least(g.input[2], kPoolRow - spread.reach);

  for (int64_t w = 0; w < g.input[2]; w += chunk) {
    const int64_t count = least(chunk, g.input[2] - w), length = spread.reach + count, n = least(count, kL);
    const int64_t origin = w + g.pad_before[2] - spread.reach;  // the padded place of row[0]
    const Range qs = outputs_over(g, 2, w, w + count);
    if (!even) set_column_divisors(g, qs.first, greatest(qs.last - qs.first, int64_t(0)), columns);
    for (int64_t i = 0; i < kPoolSlack + length + kPoolSlack; ++i) buffer[i] = 0;

    for (int64_t d = part.os.first; d < part.os.last; ++d) {
      Seers seers[2] = {seers_of(g, 0, d), {}};
      for (int64_t h = part.ps.first; h < part.ps.last; ++h) {
        const Seers before = seers[1];
        seers[1] = seers_of(g, 1, h);
        T* out = dx + (d * g.input[1] + h) * g.input[2] + w;
        if (h > part.ps.first && before.out == seers[1].out && before.count == seers[1].count) {
          for (int64_t j = 0; j < count; j += kL) {
            const int64_t i = least(j, count - n);
            store_first(out + i, load_first(out + i - g.input[2], n), n);
          }
          continue;
        }
        for (int64_t q = qs.first; q < qs.last; q += kL) {
          const int64_t lanes = least(kL, qs.last - q), at = q * stride - origin;
          const Vec<A> sum = even ? sum_rows<true>(g, dy, seers, q, lanes, columns)
                                  : sum_rows<false>(g, dy, seers, q, lanes, columns + (q - qs.first));
          if (stride == 1) {
            store(row + at, sum);
          } else if (stride == 2) {
            const Vec<A> next = spread.run == 2 ? sum : Vec<A>{};
            store(row + at, interleave_low<A>(sum, next));
            store(row + at + kL, interleave_high<A>(sum, next));
          } else {
            A lane[kL];
            store(lane, sum);
            for (int64_t k = 0; k < lanes; ++k) {
              const int64_t first = at + k * stride;
              for (int64_t i = greatest(first, int64_t(0)); i < least(first + spread.run, length); ++i)
                row[i] = lane[k];
            }
          }
        }
        for (int64_t j = 0; j < count; j += kL) {
          const int64_t i = least(j, count - n);
          const A* from = row + spread.reach + i;
          Vec<A> sum = load(from);
          for (int64_t s = 1; s < spread.taps; ++s) sum += load(from - s * g.dilation[2]);
          store_first(out + i, divisor.divide(sum, 0), n);
        }
      }
    }
  }
}

// What halves_row expands.
template <typename T>
struct AverageHalves {
  const T* dy;
  Divisor<Accumulate<T>> divisor;

  struct Pair {
    Vec<Accumulate<T>> low, high;
  };
  CONVEXT_INLINE Pair take(int64_t at, int64_t n, int64_t) const {
    const Vec<Accumulate<T>> value = divisor.divide(load_first(dy + at, n), 0);
    return {interleave_low<Accumulate<T>>(value, value), interleave_high<Accumulate<T>>(value, value)};
  }
};

template <typename T>
void avg_backward_plane(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  if (!uniform_divisor(g) || !halves_fit(g, kLanes<Accumulate<T>>)) return avg_backward_columns<T>(args, part);
  const auto divisor = divisor_of<Accumulate<T>>(g.divisor_override != 0 ? g.divisor_override : g.window(), nullptr);
  expand_halves<T>(g, AverageHalves<T>{static_cast<const T*>(args.grad_output), divisor}, part,
                   static_cast<T*>(args.output));
}

// kVectors vectors of n channels of one channels_last output.
template <typename T, int kVectors>
CONVEXT_INLINE void avg_window(const PoolGeometry& g, const T* x, Range ts, Range rs, Range ss, const int64_t* start,
                               const Divisor<Accumulate<T>>& divisor, int64_t n, T* y) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  const int64_t step = g.dilation[2] * g.channels, columns = ss.last - ss.first;
  for (int64_t t = ts.first; t < ts.last; ++t)
    for (int64_t r = rs.first; r < rs.last; ++r) {
      const T* at = x + first_of_row(g, start, t, r, ss.first);
      for (int64_t s = 0; s < columns; ++s, at += step)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[v] += load_first(at + v * kL, n);
    }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store_first(y + v * kL, divisor.divide(sum[v], 0), n);
}

// The sums so far of some channels of an output.
template <typename T>
struct StreamedSum {
  using A = Accumulate<T>;
  static constexpr int64_t kL = kLanes<A>;
  A sum[kPoolChannels + kPoolSlack];

  CONVEXT_INLINE void begin(int64_t channels) {
    for (int64_t c = 0; c < channels; c += kL) store(sum + c, Vec<A>{});
  }
  template <int kTaps>
  CONVEXT_INLINE void join(const T* x, int64_t step, int64_t, int64_t channels) {
    for (int64_t c = 0; c < channels; c += kL) {
      Vec<A> value = load(sum + c);
#pragma GCC unroll 4
      for (int s = 0; s < kTaps; ++s) value += load_first(x + s * step + c, channels - c);
      store(sum + c, value);
    }
  }
  CONVEXT_INLINE void write(int64_t channels, const Divisor<A>& divisor, T* y) const {
    for (int64_t c = 0; c < channels; c += kL) store_first(y + c, divisor.divide(load(sum + c), 0), channels - c);
  }
};

// Rows of channels_last outputs.
template <typename T>
void avg_forward_channels(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 8 * kL;
  const PoolGeometry& g = args.geometry;
  const T* x = static_cast<const T*>(args.input) + part.image * g.input_places() * g.channels;
  const bool streams = streams_fit(g);
  StreamedSum<T> result;
  for (int64_t o = part.os.first; o < part.os.last; ++o)
    for (int64_t p = part.ps.first; p < part.ps.last; ++p)
      for (int64_t q = 0; q < g.output[2]; ++q) {
        const Range ts = taps_inside(g, 0, o), rs = taps_inside(g, 1, p), ss = taps_inside(g, 2, q);
        const int64_t row = (part.image * g.output[0] + o) * g.output[1] + p;
        const int64_t start[] = {g.place(0, o, 0), g.place(1, p, 0), g.place(2, q, 0)};
        const int64_t columns = g.divisor_override != 0 ? 1 : counted_taps(g, 2, q);
        const Divisor<A> divisor = divisor_of<A>(row_divisor(g, o, p) * columns, nullptr);
        T* y = static_cast<T*>(args.output) + (row * g.output[2] + q) * g.channels;
        const int64_t end = part.channels.last;
        int64_t c = part.channels.first;
        for (int64_t some; streams && c < end; c += some) {
          some = least(end - c, kPoolChannels);
          result.begin(some);
          stream_window(g, x + c, ts, rs, ss, start, some, &result);
          result.write(some, divisor, y + c);
        }
        for (; c + kBlock <= end; c += kBlock) avg_window<T, 8>(g, x + c, ts, rs, ss, start, divisor, kL, y + c);
        for (; c + 4 * kL <= end; c += 4 * kL) avg_window<T, 4>(g, x + c, ts, rs, ss, start, divisor, kL, y + c);
        for (; c < end; c += kL) avg_window<T, 1>(g, x + c, ts, rs, ss, start, divisor, least(kL, end - c), y + c);
      }
}

// The sums of kVectors vectors of n channels over some channels_last places, `channels` apart: of every kPlaces-th
// place first, so that additions need not wait for each other.
template <int kVectors, int kPlaces, typename T>
CONVEXT_INLINE void add_places(const T* x, int64_t places, int64_t channels, int64_t n, Accumulate<T>* sums) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> sum[kPlaces][kVectors] = {};
  int64_t i = 0;
  for (; i + kPlaces <= places; i += kPlaces, x += kPlaces * channels)
#pragma GCC unroll 4
    for (int k = 0; k < kPlaces; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[k][v] += load_first(x + k * channels + v * kL, n);
  for (; i < places; ++i, x += channels)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[0][v] += load_first(x + v * kL, n);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 3
    for (int k = 1; k < kPlaces; ++k) sum[0][v] += sum[k][v];
    store(sums + v * kL, sum[0][v]);
  }
}
// Of all channels. `sums` ends with room for a vector.
template <typename T>
void avg_sum_places(const T* x, int64_t places, int64_t channels, Accumulate<T>* sums) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  int64_t c = 0;
  for (; c + 8 * kL <= channels; c += 8 * kL) add_places<8, 1>(x + c, places, channels, kL, sums + c);
  for (; c + 4 * kL <= channels; c += 4 * kL) add_places<4, 2>(x + c, places, channels, kL, sums + c);
  for (; c + 2 * kL <= channels; c += 2 * kL) add_places<2, 4>(x + c, places, channels, kL, sums + c);
  for (; c < channels; c += kL) add_places<1, 4>(x + c, places, channels, least(kL, channels - c), sums + c);
}
// The average of an image from the sums of its parts, `pitch` apart.
template <typename T>
void avg_join_sums(const Accumulate<T>* sums, int64_t parts, int64_t pitch, int64_t channels, int64_t divisor, T* y) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t c = 0; c < channels; c += kL) {
    Vec<A> sum = load(sums + c);
    for (int64_t i = 1; i < parts; ++i) sum += load(sums + i * pitch + c);
    store_first(y + c, sum / splat<A>(A(divisor)), channels - c);
  }
}

template <typename T>
void avg_forward(const PoolArguments& args, const Part& part) {
  if (args.geometry.layout == Layout::channels_last)
    avg_forward_channels<T>(args, part);
  else if (rows_fit(args.geometry) > 0)
    pool_rows<Sum, T, false>(args, part);
  else
    avg_forward_columns<T>(args, part);
}

// What an input place of the average takes from an output that sees it: dy where all divisors are one, dy / divisor
// where they differ.
template <typename T>
struct EvenShare {
  const T* dy;
  Divisor<Accumulate<T>> divisor;

  CONVEXT_INLINE void turn_to(const PoolGeometry&, int64_t, int64_t, int64_t, int64_t) {}
  CONVEXT_INLINE Vec<Accumulate<T>> take(int64_t at, int64_t n) const { return load_first(dy + at, n); }
  CONVEXT_INLINE Vec<Accumulate<T>> finish(Vec<Accumulate<T>> sum) const { return divisor.divide(sum, 0); }
};
template <typename T>
struct UnevenShare {
  const T* dy;
  Vec<Accumulate<T>> divisor;

  CONVEXT_INLINE void turn_to(const PoolGeometry& g, int64_t o, int64_t p, int64_t q, int64_t) {
    const int64_t columns = g.divisor_override != 0 ? 1 : counted_taps(g, 2, q);
    divisor = splat<Accumulate<T>>(Accumulate<T>(row_divisor(g, o, p) * columns));
  }
  CONVEXT_INLINE Vec<Accumulate<T>> take(int64_t at, int64_t n) const { return load_first(dy + at, n) / divisor; }
  CONVEXT_INLINE Vec<Accumulate<T>> finish(Vec<Accumulate<T>> sum) const { return sum; }
};

// Whether the windows of all these outputs lie inside the input.
CONVEXT_INLINE bool all_inside(const PoolGeometry& g, const Seers* seers) {
  bool inside = true;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    const Seers& s = seers[axis];
    if (s.count > 0) inside &= window_inside(g, axis, s.out) && window_inside(g, axis, s.out + (s.count - 1) * s.step);
  }
  return inside;
}

// One row of channels_last input places: (n, d, h).
template <typename T>
void avg_backward_row(const PoolArguments& args, int64_t row) {
  const PoolGeometry& g = args.geometry;
  const T* dy = static_cast<const T*>(args.grad_output);
  T* dx = static_cast<T*>(args.output) + row * g.input[2] * g.channels;
  const int64_t h = row % g.input[1], d = row / g.input[1] % g.input[0], image = row / g.input[1] / g.input[0];
  const bool even = uniform_divisor(g);
  const auto divisor = divisor_of<Accumulate<T>>(g.divisor_override != 0 ? g.divisor_override : g.window(), nullptr);
  Seers seers[] = {seers_of(g, 0, d), seers_of(g, 1, h), {}};
  if (even && disjoint(g)) return expand_channels(g, EvenShare<T>{dy, divisor}, image, seers, dx);
  for (int64_t w = 0; w < g.input[2]; ++w, dx += g.channels) {
    seers[2] = seers_of(g, 2, w);
    if (even || all_inside(g, seers))
      gather_channels(g, EvenShare<T>{dy, divisor}, image, seers, dx);
    else
      gather_channels(g, UnevenShare<T>{dy, {}}, image, seers, dx);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
