// Matrix multiplication on panels, the inner loop of im2col and winograd:
//
//   c[m][n] (+)= sum over k of  a(k, m) * b(k, n)
//
// a is cut into panels of up to mr rows: one element is broadcast at a time. b is cut into panels of nr columns: two
// vectors a step. One tile of c, mr x nr, stays in registers over all of k:
//
//             mr x nr (float)   registers: sums + b + broadcast
//   AVX-512   14 x 32           28 + 2 + 1 of 32
//   AVX2       6 x 16           12 + 2 + 1 of 16
//   baseline   6 x 8            12 + 2 + 1 (+ 1 for the product without FMA) of 16
//
// Panels may be packed, a step's lanes side by side and steps following each other, or lie in a larger matrix: then a
// step of b is still nr elements side by side, and a's rows may be any distance apart, or gathered by pointers. Tiles
// of fewer rows, or of one vector, have code of their own, so tails cost little; so has, where a's rows are not packed,
// a last vector of which half is enough. Each element of c is one chain over k whatever the tile it falls into: bits do
// not depend on how m and n are cut. c is read and written once per call; cut k so that a b panel (k x nr) stays in L1,
// and a's panels in L2.
//
// Elements are those of the sums, or, where bfloat16_pairs.h allows, BFloat16Pair: two steps of k in one.
#pragma once
#include <cstdint>

#include "finish.h"

namespace convext::cpu {

// Element (k, lane) of panel i lies at data + i * stride + k * step + lane * apart.
template <typename E>
struct Panels {
  const E* data;
  int64_t width;   // lanes of a panel
  int64_t stride;  // from panel to panel
  int64_t step;    // from k to k + 1
  int64_t apart = 1;
};

// Panels of `width` lanes and `depth` steps, one after the other.
template <typename E>
Panels<E> packed_panels(const E* data, int64_t width, int64_t depth) {
  return {data, width, depth * width, width};
}

// Rows of a matrix, `step` elements apart, as panels of a: element k of a row is its k-th.
template <typename E>
Panels<E> rows_of_matrix(const E* data, int64_t width, int64_t step) {
  return {data, width, width * step, 1, step};
}

// Rows that lie in pieces of `depth` elements, wherever: element k of row i is row[k / depth * apart + i][k % depth].
template <typename E>
struct GatheredRows {
  const E* const* row;
  int64_t apart, depth;
};

// What the sums are added to: what c holds, or a bias per row or column (null: zero).
template <typename A>
struct GemmStart {
  bool accumulate = false;
  bool resume = false;  // where a's rows are apart: sums go on from c, as if all their terms had been given at once
  const A* row_bias = nullptr;
  const A* column_bias = nullptr;
  const Finish<A>* finish = nullptr;  // what is done to c last, where c is a convolution's output
};

// Rows of c in lines of `rows`, between which `gap` elements more are left as they are; for n of nr at most.
struct Lines {
  int64_t rows = 0, gap = 0;
};

// E: the elements of a and b. A: of c.
template <typename E, typename A = Accumulate<E>>
struct Gemm {
  int64_t mr, nr, lanes;  // lanes: of one vector, nr / 2
  // c is row-major with rows ldc apart; exactly m x n elements of it are touched. a's panels hold a.width rows (the
  // last one fewer), b's hold nr columns (what the last holds past n is read and ignored), packed where a's rows are
  // apart. k may be zero.
  void (*multiply)(int64_t m, int64_t n, int64_t k, Panels<E> a, Panels<E> b, A* c, int64_t ldc, GemmStart<A> start);
  // The same for elements [first, first + k) of a's rows; b, which is packed, starts at element `first`.
  void (*multiply_gathered)(int64_t m, int64_t n, int64_t first, int64_t k, GatheredRows<E> a, Panels<E> b, A* c,
                            int64_t ldc, GemmStart<A> start);
  // The same for a's rows in a matrix, `apart` elements from each other, in tiles as the kernel likes them.
  void (*multiply_rows)(int64_t m, int64_t n, int64_t k, const E* a, int64_t apart, Panels<E> b, A* c, int64_t ldc,
                        GemmStart<A> start, Lines lines);
};

// Of the active instruction set; E is float, double or BFloat16Pair.
template <typename E>
const Gemm<E>& gemm();

}  // namespace convext::cpu
