// The register tile of im2col's gradient of the weight: rows, read element by element, times one panel of lanes.
#include "conv_im2col_weight_lanes.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

#if CONVEXT_ISA_LEVEL == 3
constexpr int kOuterRows[] = {0, 10, 10};  // by vectors; each row has a pointer, and all stay in registers
#else
constexpr int kOuterRows[] = {0, 8, 6};
#endif
constexpr int64_t kRun = 16;  // places between two requests

// What the next block reads, asked for a little at a time: `rows` rows of `bytes`, `step` bytes apart.
struct Ahead {
  struct Region {
    const char* at;
    int64_t rows, step, bytes;
    int64_t lines() const { return rows * ceil_div(bytes, 64); }
  } region[2];
  int64_t at_once, offset, which;  // lines at once

  CONVEXT_INLINE void ask() {
    for (int64_t i = 0; i < at_once && which < 2;) {
      Region& r = region[which];
      if (r.rows <= 0) {
        ++which;
        continue;
      }
      for (; i < at_once && offset < r.bytes; ++i, offset += 64) __builtin_prefetch(r.at + offset);
      if (offset < r.bytes) return;
      offset = 0;
      r.at += r.step;
      --r.rows;
    }
  }
};

// `count` tiles of rows times one panel of lanes, over `pieces` runs of `columns` places.
template <typename A>
struct OuterTiles {
  int64_t count;
  const A *rows, *lanes;
  const int64_t *offset, *piece, *lane_piece;  // of each row; of each run, among rows and lanes
  int64_t pieces, columns;
  int64_t row_step, lane_step;  // from place to place
  A* sums;
  int64_t step;  // from row to row of the sums
  bool accumulate;
  Ahead* ahead;
};

template <typename A, int kRows, int kVectors>
__attribute__((noinline)) void outer_tile(const OuterTiles<A>& tiles) {
  constexpr int kCount = kLanes<A>;
  OuterTiles<A> t = tiles;
  for (; t.count > 0; --t.count, t.offset += kRows, t.sums += kRows * t.step) {
    Vec<A> sum[kRows][kVectors] = {};
    for (int64_t i = 0; i < t.pieces; ++i) {
      const A* from[kRows];
#pragma GCC unroll 10
      for (int j = 0; j < kRows; ++j) from[j] = t.rows + t.offset[j] + t.piece[i];
      const A* b = t.lanes + t.lane_piece[i];
      for (int64_t q = 0, at = 0; q < t.columns;) {
        const int64_t end = least(q + kRun, t.columns);
        for (; q < end; ++q, at += t.row_step, b += t.lane_step) {
          Vec<A> lane[kVectors];
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) lane[v] = load(b + v * kCount);
#pragma GCC unroll 10
          for (int j = 0; j < kRows; ++j) {
            const Vec<A> one = splat<A>(from[j][at]);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) sum[j][v] += one * lane[v];
          }
        }
        if (t.ahead->at_once > 0) t.ahead->ask();
      }
    }
#pragma GCC unroll 10
    for (int j = 0; j < kRows; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        A* to = t.sums + j * t.step + v * kCount;
        store(to, t.accumulate ? load(to) + sum[j][v] : sum[j][v]);
      }
  }
}

template <typename A, int kVectors, int kRows = kOuterRows[kVectors]>
void multiply_rows(const OuterTiles<A>& tiles, int64_t rows) {
  if constexpr (kRows > 1)
    if (rows < kRows) return multiply_rows<A, kVectors, kRows - 1>(tiles, rows);
  outer_tile<A, kRows, kVectors>(tiles);
}

// All rows with one panel, in tiles as equal as can be: those of one row more, then the others.
template <typename A, int kVectors>
void multiply_panel(OuterTiles<A> t, int64_t rows) {
  const int64_t tiles = ceil_div(rows, kOuterRows[kVectors]), fewer = rows / tiles, longer = rows - tiles * fewer;
  for (int64_t high = fewer + 1; high >= fewer; --high) {
    t.count = high > fewer ? longer : tiles - longer;
    if (t.count == 0) continue;
    multiply_rows<A, kVectors>(t, high);
    t.offset += t.count * high;
    t.sums += t.count * high * t.step;
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
