// The GEMM microkernels and the loop over their tiles, see gemm.h.
namespace convext::cpu::CONVEXT_ISA {
namespace {

#if CONVEXT_ISA_LEVEL == 3
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;

// One tile: ROWS x VECTORS vectors, of which the last has `last` lanes.
template <typename A, int ROWS, int VECTORS>
void gemm_tile(int64_t k, const A* a, int64_t a_width, const A* b, A* c, int64_t ldc, int last, bool accumulate) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[ROWS][VECTORS] = {};
  for (; k > 0; --k, a += a_width, b += kTileVectors * lanes) {
    Vec<A> column[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) column[v] = load(b + v * lanes);
#pragma GCC unroll 14
    for (int i = 0; i < ROWS; ++i) {
      const Vec<A> row = splat(a[i]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[i][v] += row * column[v];
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < ROWS; ++i) {
    A* to = c + i * ldc;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v, to += lanes) {
      if (v < VECTORS - 1 || last == lanes)
        store(to, accumulate ? load(to) + sum[i][v] : sum[i][v]);
      else
        store_part(to, accumulate ? load_part(to, 0, last) + sum[i][v] : sum[i][v], 0, last);
    }
  }
}

template <typename A>
using GemmTile = void (*)(int64_t, const A*, int64_t, const A*, A*, int64_t, int, bool);

template <typename A, int VECTORS, int ROWS = kTileRows>
GemmTile<A> choose_tile(int64_t rows) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return choose_tile<A, VECTORS, ROWS - 1>(rows);
  return gemm_tile<A, ROWS, VECTORS>;
}

template <typename A>
void multiply(int64_t m, int64_t n, int64_t k, Panels<A> a, Panels<A> b, A* c, int64_t ldc, bool accumulate) {
  constexpr int64_t lanes = kLanes<A>, width = kTileVectors * lanes;
  const int64_t whole = m / a.width * a.width;
  for (int64_t j = 0; j < n; j += width) {
    const int64_t columns = least(n - j, width);
    const bool wide = columns > lanes;
    const int last = int(wide ? columns - lanes : columns);
    const A *panel = a.data, *column = b.data + j / width * b.stride;
    if (whole > 0) {
      const GemmTile<A> tile = wide ? choose_tile<A, 2>(a.width) : choose_tile<A, 1>(a.width);
      for (int64_t i = 0; i < whole; i += a.width, panel += a.stride)
        tile(k, panel, a.width, column, c + i * ldc + j, ldc, last, accumulate);
    }
    if (whole < m) {
      const GemmTile<A> tile = wide ? choose_tile<A, 2>(m - whole) : choose_tile<A, 1>(m - whole);
      tile(k, panel, a.width, column, c + whole * ldc + j, ldc, last, accumulate);
    }
  }
}

template <typename A>
constexpr Gemm<A> kGemm = {kTileRows, kTileVectors * kLanes<A>, kLanes<A>, multiply<A>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
