// Gradients of windows of 2 columns at stride 2, of which no two see the same place, in the contiguous layout.
//
// Each input row is seen by one row of outputs or none, each of those by two places. A vector of dy is expanded to two
// of the input, and those are stored: nothing is added, nothing read back. Traffic: dy (and places) once for each row
// of the window, from the nearest cache but for the first; dx once. Limits: those of halves_fit, a vector of outputs in
// a row.

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
    for (int64_t d = part.os.first; d < part.os.last; ++d)
      for (int64_t h = part.ps.first; h < part.ps.last; ++h) {
        const Seers seers[] = {seers_of(g, 0, d), seers_of(g, 1, h)};
        T* row = dx + (plane * g.input[0] + d) * g.input[1] * g.input[2] + h * g.input[2];
        if (seers[0].count == 0 || seers[1].count == 0) {
          for (int64_t w = 0; w < g.input[2]; ++w) row[w] = from_accumulate<T>(0);
          continue;
        }
        const int64_t at = ((plane * g.output[0] + seers[0].out) * g.output[1] + seers[1].out) * g.output[2];
        expand_row(g, share, at, (seers[0].tap * g.kernel[1] + seers[1].tap) * 2, row);
      }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
