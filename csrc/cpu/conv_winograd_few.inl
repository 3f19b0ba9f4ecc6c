// Winograd's products of few tiles with a large weight, which is transformed in registers.
//
// With 4 tiles (7x7 places) u is used 4 times, and 4 times as large as the weight: its way through memory takes longer
// than all else. Here it has none. Filters come turned, a vector of outputs side by side. For one column of points, of
// a chunk of kTurnedTerms input channels, a step makes the n elements of u from the r x r taps and multiplies them by
// those of v at once; the n x kTiles sums stay in registers over the chunk.
//
//                 multiply-adds a step, F(4x4,3x3)                     registers: sums + u and what it is made of
//   AVX-512       24 for products, 9 + 10 for u (3 less at two of 6)   24 + 8 of 32
//   others        12                                                   12 + 4 of 16
//
// Traffic: the filters of a chunk are read n times, from L1 but for the first time; what follows them is asked for
// meanwhile. v lies chunk by chunk.

#include "conv_winograd_filters.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// One element of G g, to the bit what weight_to_points makes of it.
template <class F, int kPoint, typename A>
CONVEXT_INLINE Vec<A> weight_to_point(const Vec<A>* g) {
  if constexpr (kPoint == F::n - 1) {
    return g[F::r - 1];
  } else if constexpr (F::zero && kPoint == 0) {
    return divided<A>(g[0], F::k.f[0]);
  } else {
    constexpr int p = (kPoint - F::zero) / 2;
    constexpr bool minus = (kPoint - F::zero) % 2 == 1;
    Vec<A> even, odd;
    weight_parts<F, A>(p, g, &even, &odd);
    return pair_element<F, A>(p, minus ? even - odd : even + odd);
  }
}

// The points of one column of a filter's: u[i] is point (i, column).
template <class H, class W, int kColumn, typename A>
CONVEXT_INLINE void filter_column(const A* filter, int64_t tap, Vec<A>* u) {
  Vec<A> half[H::r];
#pragma GCC unroll 8
  for (int r = 0; r < H::r; ++r) {
    Vec<A> g[W::r];
#pragma GCC unroll 8
    for (int s = 0; s < W::r; ++s) g[s] = load(filter + tap * (r * W::r + s));
    half[r] = weight_to_point<W, kColumn, A>(g);
  }
  weight_to_points<H, A>(half, u);
}

// Products of a column of points and kTiles tiles.
template <class H, class W, typename A, int kColumn, int kTiles>
void multiply_column(const TurnedFilters<A>& w, int64_t channels, const A* v, int64_t v_points, A* m, int64_t points,
                     int64_t row, bool resume) {
  Vec<A> sum[H::n][kTiles];
#pragma GCC unroll 8
  for (int i = 0; i < H::n; ++i)
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) sum[i][t] = resume ? load(m + i * W::n * points + t * row) : Vec<A>{};
  const A* from[H::n];
#pragma GCC unroll 8
  for (int i = 0; i < H::n; ++i) from[i] = v + i * W::n * v_points;
  constexpr int64_t step = (H::r * W::r + W::n - 1) / W::n * kLanes<A>;  // of what is ahead, in each column
  const A *filter = w.data, *ahead = w.ahead + kColumn * step * channels;
  const int64_t tap = w.tap;
  for (int64_t c = 0; c < channels; ++c, filter += w.channel, ahead += step) {
    Vec<A> u[H::n];
    for (int64_t i = 0; i < step; i += kLanes<A>) __builtin_prefetch(ahead + i, 0, 2);
    filter_column<H, W, kColumn, A>(filter, tap, u);
#pragma GCC unroll 8
    for (int i = 0; i < H::n; ++i)
#pragma GCC unroll 8
      for (int t = 0; t < kTiles; ++t) sum[i][t] += splat(from[i][t * kTurnedTerms + c]) * u[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < H::n; ++i)
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) store(m + i * W::n * points + t * row, sum[i][t]);
}

// Tiles at once: their sums fill the registers that a step's factors leave.
template <class H, class W>
constexpr int kColumnTiles = H::n == 1 ? 0 : (CONVEXT_ISA_LEVEL == 3 ? 24 : 12) / H::n;

template <class H, class W, typename A, int kTiles, int kColumn = 0>
void multiply_columns(const TurnedFilters<A>& w, int64_t channels, const A* v, int64_t v_points, A* m, int64_t points,
                      int64_t row, bool resume) {
  multiply_column<H, W, A, kColumn, kTiles>(w, channels, v + kColumn * v_points, v_points, m + kColumn * points, points,
                                            row, resume);
  if constexpr (kColumn + 1 < W::n)
    multiply_columns<H, W, A, kTiles, kColumn + 1>(w, channels, v, v_points, m, points, row, resume);
}

template <class H, class W, typename A, int kTiles = kColumnTiles<H, W>>
void multiply_turned(const TurnedFilters<A>& w, int64_t channels, const A* v, int64_t v_points, int64_t tiles, A* m,
                     int64_t points, int64_t row, bool resume) {
  if constexpr (kTiles > 1)
    if (tiles < kTiles)
      return multiply_turned<H, W, A, kTiles - 1>(w, channels, v, v_points, tiles, m, points, row, resume);
  if constexpr (kTiles > 0) multiply_columns<H, W, A, kTiles>(w, channels, v, v_points, m, points, row, resume);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
