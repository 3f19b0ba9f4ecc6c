// The GEMM microkernels and the loop over their tiles, see gemm.h.
namespace convext::cpu::CONVEXT_ISA {
namespace {

#if CONVEXT_ISA_LEVEL == 3
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;
constexpr int kAhead = 32;  // steps that a's panels, streamed from afar, are asked for beforehand

// One tile: ROWS x VECTORS vectors, of which the last has `last` lanes. APART: a's rows are a_apart apart, not 1.
template <typename A, int ROWS, int VECTORS, bool APART>
void gemm_tile(int64_t k, const A* a, int64_t a_step, int64_t a_apart, const A* b, int64_t b_step, A* c, int64_t ldc,
               int last, GemmStart<A> start) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[ROWS][VECTORS] = {};
  for (; k > 0; --k, a += a_step, b += b_step) {
    if (!APART) __builtin_prefetch(a + kAhead * ROWS);
    Vec<A> column[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) column[v] = load(b + v * lanes);
#pragma GCC unroll 14
    for (int i = 0; i < ROWS; ++i) {
      const Vec<A> row = splat(a[APART ? i * a_apart : i]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[i][v] += row * column[v];
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < ROWS; ++i) {
    A* to = c + i * ldc;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v, to += lanes) {
      const bool whole = v < VECTORS - 1 || last == lanes;
      if (start.accumulate)
        sum[i][v] += whole ? load(to) : load_part(to, 0, last);
      else if (start.row_bias != nullptr)
        sum[i][v] += splat(start.row_bias[i]);
      else if (start.column_bias != nullptr)
        sum[i][v] += whole ? load(start.column_bias + v * lanes) : load_part(start.column_bias + v * lanes, 0, last);
      if (whole)
        store(to, sum[i][v]);
      else
        store_part(to, sum[i][v], 0, last);
    }
  }
}

template <typename A>
using GemmTile = void (*)(int64_t, const A*, int64_t, int64_t, const A*, int64_t, A*, int64_t, int, GemmStart<A>);

template <typename A, int VECTORS, bool APART, int ROWS = kTileRows>
GemmTile<A> choose_rows(int64_t rows) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return choose_rows<A, VECTORS, APART, ROWS - 1>(rows);
  return gemm_tile<A, ROWS, VECTORS, APART>;
}

template <typename A>
GemmTile<A> choose_tile(int64_t rows, bool wide, bool apart) {
  if (apart) return wide ? choose_rows<A, 2, true>(rows) : choose_rows<A, 1, true>(rows);
  return wide ? choose_rows<A, 2, false>(rows) : choose_rows<A, 1, false>(rows);
}

template <typename A>
void multiply(int64_t m, int64_t n, int64_t k, Panels<A> a, Panels<A> b, A* c, int64_t ldc, GemmStart<A> start) {
  constexpr int64_t lanes = kLanes<A>, width = kTileVectors * lanes;
  const int64_t whole = m / a.width * a.width;
  for (int64_t j = 0; j < n; j += width) {
    const int64_t columns = least(n - j, width);
    const bool wide = columns > lanes;
    const int last = int(wide ? columns - lanes : columns);
    const A *panel = a.data, *column = b.data + j / width * b.stride;
    GemmStart<A> from = start;
    if (start.column_bias != nullptr) from.column_bias += j;
    GemmTile<A> tile = choose_tile<A>(a.width, wide, a.apart != 1);
    for (int64_t i = 0; i < m; i += a.width, panel += a.stride) {
      if (i == whole) tile = choose_tile<A>(m - whole, wide, a.apart != 1);
      if (start.row_bias != nullptr) from.row_bias = start.row_bias + i;
      tile(k, panel, a.step, a.apart, column, b.step, c + i * ldc + j, ldc, last, from);
    }
  }
}

template <typename A>
constexpr Gemm<A> kGemm = {kTileRows, kTileVectors * kLanes<A>, kLanes<A>, multiply<A>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
