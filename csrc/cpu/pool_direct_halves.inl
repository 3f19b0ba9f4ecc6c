// Gradients of windows of which no two see the same place: of 2 columns at stride 2 in the contiguous layout, of any
// size in channels_last.
//
// Each input row is seen by one row of outputs or none. Contiguous: each of those by two places; a vector of dy is
// expanded to two of the input. channels_last: each place by one output or none, whose channels it takes. Nothing is
// added, nothing read back. Traffic: dy (and places) once for each row of the window, from the nearest cache but for
// the first; dx once. Limits: those of halves_fit, a vector of outputs in a row; of disjoint.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Every lane twice: of the lower half of v, of the upper.
template <typename A, typename V>
CONVEXT_INLINE V twice_low(V v) {
  return __builtin_shuffle(v, lane_numbers<A>() / 2);
}
template <typename A, typename V>
CONVEXT_INLINE V twice_high(V v) {
  return __builtin_shuffle(v, lane_numbers<A>() / 2 + kLanes<A> / 2);
}

// A row of the input, from the outputs that begin at `at` and see it through their kernel row whose first tap is `tap`.
template <typename T, typename Share>
CONVEXT_INLINE void expand_row(const PoolGeometry& g, const Share& share, int64_t at, int64_t tap, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t count = least(g.output[2], g.input[2] / 2);  // outputs of whose places none lies outside
  for (int64_t j = 0; j < count; j += kL) {
    const int64_t q = least(j, count - kL);
    const typename Share::Pair pair = share.take(at + q, kL, tap);
    store(dx + 2 * q, pair.low);
    store(dx + 2 * q + kL, pair.high);
  }
  if (count < g.output[2]) store_first(dx + 2 * count, share.take(at + count, 1, tap).low, 1);
  for (int64_t w = 2 * g.output[2]; w < g.input[2]; ++w) dx[w] = from_accumulate<T>(0);
}

// A part of the input; dy and dx begin at the first image.
template <typename T, typename Share>
CONVEXT_INLINE void expand_halves(const PoolGeometry& g, const Share& share, const Part& part, T* dx) {
  for (int64_t c = part.channels.first; c < part.channels.last; ++c) {
    const int64_t plane = part.image * g.channels + c;
    for (int64_t d = part.os.first; d < part.os.last; ++d) {
      const Seers os = seers_of(g, 0, d);
      T* row = dx + ((plane * g.input[0] + d) * g.input[1] + part.ps.first) * g.input[2];
      for (int64_t h = part.ps.first; h < part.ps.last; ++h, row += g.input[2]) {
        const Seers ps = seers_of(g, 1, h);
        if (os.count == 0 || ps.count == 0) {
          for (int64_t w = 0; w < g.input[2]; ++w) row[w] = from_accumulate<T>(0);
          continue;
        }
        const int64_t at = ((plane * g.output[0] + os.out) * g.output[1] + ps.out) * g.output[2];
        expand_row(g, share, at, (os.tap * g.kernel[1] + ps.tap) * 2, row);
      }
    }
  }
}

// The channels of a channels_last place, from those of the output that sees it, at `at`; zeros without one.
template <typename T, typename Share>
CONVEXT_INLINE void expand_place(const Share& share, int64_t at, int64_t channels, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  int64_t c = 0;
  for (; c + kL <= channels; c += kL) store(dx + c, share.finish(share.take(at + c, kL)));
  if (c < channels) store_first(dx + c, share.finish(share.take(at + c, channels - c)), channels - c);
}
// A row of channels_last places, by the seers of its depth and its height; `share` begins at the first image.
template <typename T, typename Share>
CONVEXT_INLINE void expand_channels(const PoolGeometry& g, Share share, int64_t image, const Seers* seers, T* dx) {
  const int64_t o = seers[0].out, p = seers[1].out, kernel = g.kernel[2], stride = g.stride[2];
  const bool seen = seers[0].count > 0 && seers[1].count > 0;
  const int64_t row = ((image * g.output[0] + o) * g.output[1] + p) * g.output[2];
  const int64_t tap = (seers[0].tap * g.kernel[1] + seers[1].tap) * kernel;
  int64_t q = g.pad_before[2] / stride, s = g.pad_before[2] % stride;
  for (int64_t w = 0; w < g.input[2]; ++w, dx += g.channels) {
    if (seen && s < kernel && q < g.output[2]) {
      share.turn_to(g, o, p, q, tap + s);
      expand_place(share, (row + q) * g.channels, g.channels, dx);
    } else {
      for (int64_t c = 0; c < g.channels; ++c) dx[c] = from_accumulate<T>(0);
    }
    if (++s == stride) s = 0, ++q;
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
