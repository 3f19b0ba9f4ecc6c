// Matrix multiplication on packed panels, the inner loop of im2col (and of whoever else packs):
//
//   c[m][n] (+)= sum over k of  a(k, m) * b(k, n)
//
// a is cut into panels of up to mr rows, stored [k][width] with width <= mr: one element is broadcast at a time. b is
// cut into panels of nr columns, stored [k][nr]: two vectors a step. One tile of c, mr x nr, stays in registers over
// all of k:
//
//             mr x nr (float)   registers: sums + b + broadcast
//   AVX-512   14 x 32           28 + 2 + 1 of 32
//   AVX2       6 x 16           12 + 2 + 1 of 16
//   baseline   6 x 8            12 + 2 + 1 (+ 1 for the product without FMA) of 16
//
// Tiles of fewer rows, or of one vector, have code of their own, so tails cost little. Each element of c is one chain
// over k whatever the tile it falls into: bits do not depend on how m and n are cut. c is read and written once per
// call; cut k so that a b panel (k x nr) stays in L1, and a's panels in L2.
#pragma once
#include <cstdint>

namespace convext::cpu {

// Panel i starts at data + i * stride, its row k at + k * width.
template <typename A>
struct Panels {
  const A* data;
  int64_t width, stride;
};

template <typename A>
struct Gemm {
  int64_t mr, nr, lanes;  // lanes: of one vector, nr / 2
  // c is row-major with rows ldc apart; exactly m x n elements of it are touched. a's panels hold a.width rows (the
  // last one fewer), b's hold nr columns (what the last holds past n is ignored). k may be zero.
  void (*multiply)(int64_t m, int64_t n, int64_t k, Panels<A> a, Panels<A> b, A* c, int64_t ldc, bool accumulate);
};

// Of the active instruction set; A is float or double.
template <typename A>
const Gemm<A>& gemm();

}  // namespace convext::cpu
