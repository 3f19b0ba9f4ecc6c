// The gradient of max pooling: every input place receives the dy of the outputs it won, in their order.

#include "pool_direct.inl"

#include "pool_direct_gather.inl"
#include "pool_direct_halves.inl"
#include "pool_direct_scatter.inl"
#include "pool_direct_winners.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename T>
constexpr int max_backward_lanes = kLanes<Accumulate<T>>;

// A band of input rows of one contiguous plane at one depth, gathered in the accumulate type on the stack.
template <typename A>
struct Band {
  int64_t d, h, w, heights, width;  // its first place, its size
  A sum[kPoolRow];
};

// One contiguous plane of a part, band by band, for windows too large to be scattered: every output that may reach the
// band adds its dy, in order, if its winner lies there.
template <typename T, typename P>
void max_backward_bands(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const int64_t taps = g.kernel[1] * g.kernel[2], width = least(g.input[2], kPoolRow), heights = kPoolRow / width;
  Band<A> band;
  for (int64_t c = part.channels.first; c < part.channels.last; ++c)
    for (band.d = part.os.first; band.d < part.os.last; ++band.d)
      for (band.h = part.ps.first; band.h < part.ps.last; band.h += heights)
        for (band.w = 0; band.w < g.input[2]; band.w += width) {
          const int64_t plane = part.image * g.channels + c;
          const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
          const P* places = static_cast<const P*>(args.places) + plane * g.output_places();
          band.heights = least(heights, part.ps.last - band.h);
          band.width = least(width, g.input[2] - band.w);
          for (int64_t i = 0; i < band.heights * band.width; ++i) band.sum[i] = 0;
          const Seers os = seers_of(g, 0, band.d);
          const Range ps = outputs_over(g, 1, band.h, band.h + band.heights),
                      qs = outputs_over(g, 2, band.w, band.w + band.width);
          for (int64_t j = 0; j < os.count; ++j)
            for (int64_t p = ps.first; p < ps.last; ++p)
              for (int64_t q = qs.first; q < qs.last; ++q) {
                const int64_t at = ((os.out + j * os.step) * g.output[1] + p) * g.output[2] + q;
                const int64_t tap = places[at] - (os.tap - j * os.tap_step) * taps;
                if (tap < 0 || tap >= taps) continue;
                const int64_t h = g.place(1, p, tap / g.kernel[2]) - band.h;
                const int64_t w = g.place(2, q, tap % g.kernel[2]) - band.w;
                if (h >= 0 && h < band.heights && w >= 0 && w < band.width)
                  band.sum[h * band.width + w] += to_accumulate(dy[at]);
              }
          T* dx = static_cast<T*>(args.output) + plane * g.input_places();
          for (int64_t h = 0; h < band.heights; ++h) {
            T* row = dx + (band.d * g.input[1] + band.h + h) * g.input[2] + band.w;
            for (int64_t i = 0; i < band.width; i += kL)
              store_first(row + i, load_first(band.sum + h * band.width + i, band.width - i), band.width - i);
          }
        }
}

// What halves_row expands: dy where the place won, else zero.
template <typename T>
struct WinnerHalves {
  using A = Accumulate<T>;
  const T* dy;
  const uint8_t* places;

  struct Pair {
    Vec<A> low, high;
  };
  CONVEXT_INLINE Pair take(int64_t at, int64_t n, int64_t tap) const {
    const Vec<A> value = load_first(dy + at, n);
    const IndexVec<A> place = load_places<A>(places + at, n), taps = splat_index<A>(tap) + (lane_numbers<A>() & 1);
    return {choose(equal(twice_low<A>(place), taps), twice_low<A>(value), Vec<A>{}),
            choose(equal(twice_high<A>(place), taps), twice_high<A>(value), Vec<A>{})};
  }
};

// What an input place takes from an output that sees it: dy if it won there.
template <typename T, typename P>
struct WinnerShare {
  using A = Accumulate<T>;
  const T* dy;
  const P* places;
  IndexVec<A> tap;

  CONVEXT_INLINE void turn_to(const PoolGeometry&, int64_t, int64_t, int64_t, int64_t number) {
    tap = splat_index<A>(number);
  }
  CONVEXT_INLINE Vec<A> take(int64_t at, int64_t n) const {
    return choose(equal(load_places<A>(places + at, n), tap), load_first(dy + at, n), Vec<A>{});
  }
  CONVEXT_INLINE Vec<A> finish(Vec<A> sum) const { return sum; }
};

// The outputs that see a channels_last place, in order: where their channels begin, and the tap that sees it.
struct SeenBy {
  int64_t count, at[kPoolSeen];
  int tap[kPoolSeen];

  CONVEXT_INLINE void set(const PoolGeometry& g, int64_t image, const Seers* seers) {
    count = 0;
    for (int64_t i = 0; i < seers[0].count; ++i)
      for (int64_t j = 0; j < seers[1].count; ++j) {
        const int64_t o = seers[0].out + i * seers[0].step, p = seers[1].out + j * seers[1].step;
        const int64_t t = seers[0].tap - i * seers[0].tap_step, r = seers[1].tap - j * seers[1].tap_step;
        int64_t from = (((image * g.output[0] + o) * g.output[1] + p) * g.output[2] + seers[2].out) * g.channels;
        int64_t number = (t * g.kernel[1] + r) * g.kernel[2] + seers[2].tap;
        for (int64_t k = 0; k < seers[2].count; ++k, ++count) {
          at[count] = from, tap[count] = int(number);
          from += seers[2].step * g.channels, number -= seers[2].tap_step;
        }
      }
  }
};
// kVectors vectors of channels, or the first n of one, of a place.
template <int kVectors, typename T>
CONVEXT_INLINE void look_at_outputs(const T* dy, const uint8_t* places, const SeenBy& seen, int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t i = 0; i < seen.count; ++i) {
    const int64_t at = seen.at[i];
    const int tap = seen.tap[i];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const WonPlaces<A> won = kVectors > 1 ? WonPlaces<A>(places + at + v * kL) : WonPlaces<A>(places + at, n);
      sum[v] = won.add_where(tap, sum[v], kVectors > 1 ? load(dy + at + v * kL) : load_first(dy + at, n));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) kVectors > 1 ? store(dx + v * kL, sum[v]) : store_first(dx, sum[v], n);
}
template <typename T>
CONVEXT_INLINE void look_at_outputs(const T* dy, const uint8_t* places, const SeenBy& seen, int64_t channels, T* dx) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  int64_t c = 0;
  for (; c + 8 * kL <= channels; c += 8 * kL) look_at_outputs<8>(dy + c, places + c, seen, kL, dx + c);
  for (; c + 4 * kL <= channels; c += 4 * kL) look_at_outputs<4>(dy + c, places + c, seen, kL, dx + c);
  for (; c + 2 * kL <= channels; c += 2 * kL) look_at_outputs<2>(dy + c, places + c, seen, kL, dx + c);
  for (; c < channels; c += kL) look_at_outputs<1>(dy + c, places + c, seen, least(kL, channels - c), dx + c);
}

// Two neighbours in a row, at stride 2 under windows of 3 columns: the first is seen through the middle column of a
// window, the second through its last and through the first of the next output. seen: that output in each of kRows
// rows, and the first tap of the kernel row there.
template <int kRows, typename T>
CONVEXT_INLINE void look_at_pairs(const T* dy, const uint8_t* places, const SeenBy& seen, int64_t channels, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t c = 0; c < channels; c += kL) {
    const int64_t n = least(channels - c, kL);
    Vec<A> first = {}, second = {};
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = seen.at[r] + c, next = at + channels;
      const WonPlaces<A> won(places + at, n), won_next(places + next, n);
      const Vec<A> value = load_first(dy + at, n);
      first = won.add_where(seen.tap[r] + 1, first, value);
      second = won.add_where(seen.tap[r] + 2, second, value);
      second = won_next.add_where(seen.tap[r], second, load_first(dy + next, n));
    }
    store_first(dx + c, first, n);
    store_first(dx + channels + c, second, n);
  }
}
// A row of channels_last places that few outputs see.
template <typename T>
CONVEXT_INLINE void look_along_row(const PoolGeometry& g, const T* dy, const uint8_t* places, int64_t image,
                                   Seers* seers, T* dx) {
  const bool pairs = g.kernel[2] == 3 && g.stride[2] == 2 && g.dilation[2] == 1;
  const int64_t rows = seers[0].count * seers[1].count;
  SeenBy seen;
  for (int64_t w = 0; w < g.input[2];) {
    seers[2] = seers_of(g, 2, w);
    seen.set(g, image, seers);
    int64_t count = 0;
    if (pairs && (rows == 1 || rows == 2) && seers[2].count == 1 && seers[2].tap == 1)
      count = least((g.input[2] - w) / 2, g.output[2] - 1 - seers[2].out);
    if (count <= 0) {
      look_at_outputs(dy, places, seen, g.channels, dx + w * g.channels);
      ++w;
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) --seen.tap[r];
    for (; count > 0; --count, w += 2) {
      if (rows == 1)
        look_at_pairs<1>(dy, places, seen, g.channels, dx + w * g.channels);
      else
        look_at_pairs<2>(dy, places, seen, g.channels, dx + w * g.channels);
      for (int64_t r = 0; r < rows; ++r) seen.at[r] += g.channels;
    }
  }
}

// One row of channels_last input places: (n, d, h).
template <typename T, typename P>
void max_backward_row_of(const PoolArguments& args, int64_t row) {
  const PoolGeometry& g = args.geometry;
  const WinnerShare<T, P> share = {static_cast<const T*>(args.grad_output), static_cast<const P*>(args.places), {}};
  T* dx = static_cast<T*>(args.output) + row * g.input[2] * g.channels;
  const int64_t h = row % g.input[1], d = row / g.input[1] % g.input[0], image = row / g.input[1] / g.input[0];
  Seers seers[] = {seers_of(g, 0, d), seers_of(g, 1, h), {}};
  if (disjoint(g)) return expand_channels(g, share, image, seers, dx);
  if constexpr (sizeof(P) == 1)
    if (g.window() <= kPoolSeen) return look_along_row(g, share.dy, share.places, image, seers, dx);
  for (int64_t w = 0; w < g.input[2]; ++w, dx += g.channels) {
    seers[2] = seers_of(g, 2, w);
    gather_channels(g, share, image, seers, dx);
  }
}
template <typename T>
void max_backward_row(const PoolArguments& args, int64_t row) {
  if (args.geometry.byte_places())
    max_backward_row_of<T, uint8_t>(args, row);
  else
    max_backward_row_of<T, int32_t>(args, row);
}

// A part of some channels of a channels_last image.
template <typename T>
void max_backward_channels(const PoolArguments& args, const Part& part) {
  if (args.geometry.byte_places())
    max_backward_scatter<true, T, uint8_t>(args, part);
  else
    max_backward_scatter<true, T, int32_t>(args, part);
}

// A part of some contiguous planes.
template <typename T, typename P>
void max_backward_planes_of(const PoolArguments& args, const Part& part) {
  if (scatter_of(args.geometry, kPoolPlanes).columns > 0)
    max_backward_scatter<false, T, P>(args, part);
  else
    max_backward_bands<T, P>(args, part);
}
template <typename T>
void max_backward_planes(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  if (!g.byte_places()) return max_backward_planes_of<T, int32_t>(args, part);
  if (gather_fits(g) && kLanes<Accumulate<T>> >= g.kernel[2] - 1) return max_backward_gather<T>(args, part);
  if (!halves_fit(g, kLanes<Accumulate<T>>)) return max_backward_planes_of<T, uint8_t>(args, part);
  const WinnerHalves<T> halves = {static_cast<const T*>(args.grad_output), static_cast<const uint8_t*>(args.places)};
  expand_halves<T>(g, halves, part, static_cast<T*>(args.output));
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
