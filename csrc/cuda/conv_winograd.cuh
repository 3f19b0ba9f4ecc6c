// What the files of winograd share (formulas: ../winograd.h): the matrices along one axis, the grid of tiles, and the
// steps that conv_winograd.cu makes a convolution of.
//
//   conv_winograd.cu             the plan, and the three directions
//   conv_winograd_transforms.cu  to the points and back, through memory: every tile
//   conv_winograd_fused.cu       F(2x2,3x3) in one kernel, with nothing in between through memory
#pragma once
#include "../algorithms.h"
#include "../winograd.h"
#include "dtype.cuh"
#include "launch.cuh"
#include "window.cuh"

namespace convext::cuda {

using winograd::Minimal;
using winograd::Plain;

// Values at the points of the polynomial with `count` coefficients c: A y and, up to scale, G g.
template <class F, int kCount, typename A>
__device__ __forceinline__ void evaluate(const A* c, A* u) {
  u[0] = c[0];
  if constexpr (F::n > 1) {
    constexpr typename F::Numbers k = F::k;
    u[F::n - 1] = c[kCount - 1];
#pragma unroll
    for (int p = 0; p < F::pairs; ++p) {
      A even = c[0], odd = A(k.power[p][1]) * c[1];
#pragma unroll
      for (int i = 2; i < kCount; ++i) (i % 2 == 0 ? even : odd) += A(k.power[p][i]) * c[i];
      u[1 + 2 * p] = even + odd;
      u[2 + 2 * p] = even - odd;
    }
  }
}

// Its transpose: A^T m and, up to scale, G^T m.
template <class F, int kCount, typename A>
__device__ __forceinline__ void collect(const A* u, A* c) {
  if constexpr (F::n == 1) {
    c[0] = u[0];
  } else {
    constexpr typename F::Numbers k = F::k;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      A sum = i == 0 ? u[0] : i == kCount - 1 ? u[F::n - 1] : A(0);
#pragma unroll
      for (int p = 0; p < F::pairs; ++p)
        sum += A(k.power[p][i]) * (i % 2 == 0 ? u[1 + 2 * p] + u[2 + 2 * p] : u[1 + 2 * p] - u[2 + 2 * p]);
      c[i] = sum;
    }
  }
}

// The divisors of G.
template <class F, typename A>
__device__ __forceinline__ void scale(A* u) {
  if constexpr (F::n > 1) {
    constexpr typename F::Numbers k = F::k;
    u[0] *= A(1 / k.f[0]);
#pragma unroll
    for (int p = 0; p < F::pairs; ++p) u[1 + 2 * p] *= A(1 / k.divisor[p]), u[2 + 2 * p] *= A(1 / k.divisor[p]);
  }
}

// One axis of a transform: `in` numbers to `out` numbers.
template <class F>
struct InputToPoints {  // B^T d
  static constexpr int in = F::n, out = F::n;
  template <typename A>
  static __device__ __forceinline__ void apply(const A* d, A* u) {
    if constexpr (F::n == 1) {
      u[0] = d[0];
    } else {
      constexpr typename F::Numbers k = F::k;
      A zero = d[2 * F::pairs], infinity = d[2 * F::pairs + 1];
#pragma unroll
      for (int j = 0; j < F::pairs; ++j) zero += A(k.f[j]) * d[2 * j], infinity += A(k.f[j]) * d[2 * j + 1];
      u[0] = zero;
      u[F::n - 1] = infinity;
#pragma unroll
      for (int p = 0; p < F::pairs; ++p) {
        A even = d[2 * F::pairs], odd = d[2 * F::pairs - 1];
#pragma unroll
        for (int j = 0; j < F::pairs - 1; ++j) even += A(k.q[p][j]) * d[2 * j + 2], odd += A(k.q[p][j]) * d[2 * j + 1];
        u[1 + 2 * p] = even + A(k.power[p][1]) * odd;
        u[2 + 2 * p] = even - A(k.power[p][1]) * odd;
      }
    }
  }
};
template <class F>
struct OutputToPoints {  // A y
  static constexpr int in = F::m, out = F::n;
  template <typename A>
  static __device__ __forceinline__ void apply(const A* y, A* u) {
    evaluate<F, F::m>(y, u);
  }
};
template <class F>
struct WeightToPoints {  // G g
  static constexpr int in = F::r, out = F::n;
  template <typename A>
  static __device__ __forceinline__ void apply(const A* g, A* u) {
    evaluate<F, F::r>(g, u);
    scale<F>(u);
  }
};
template <class F>
struct PointsToOutput {  // A^T m
  static constexpr int in = F::n, out = F::m;
  template <typename A>
  static __device__ __forceinline__ void apply(A* m, A* y) {
    collect<F, F::m>(m, y);
  }
};
template <class F>
struct PointsToWeight {  // G^T m
  static constexpr int in = F::n, out = F::r;
  template <typename A>
  static __device__ __forceinline__ void apply(A* m, A* g) {
    scale<F>(m);
    collect<F, F::r>(m, g);
  }
};

// Both axes: store(r, s, value) of what load(r, s) gives.
template <typename A, class H, class W, typename Load, typename Store>
__device__ __forceinline__ void transform(const Load& load, const Store& store) {
  A half[W::out][H::in];
#pragma unroll
  for (int r = 0; r < H::in; ++r) {
    A from[W::in], to[W::out];
#pragma unroll
    for (int s = 0; s < W::in; ++s) from[s] = load(r, s);
    W::apply(from, to);
#pragma unroll
    for (int s = 0; s < W::out; ++s) half[s][r] = to[s];
  }
#pragma unroll
  for (int s = 0; s < W::out; ++s) {
    A to[H::out];
    H::apply(half[s], to);
#pragma unroll
    for (int r = 0; r < H::out; ++r) store(r, s, to[r]);
  }
}

template <class H_, class W_>
struct TileOf {
  using H = H_;
  using W = W_;
};

// Calls f(TileOf<...>()).
template <typename F>
auto dispatch_tile(WinogradTile tile, F&& f) {
  switch (tile) {
    case WinogradTile::f2x2_3x3: return f(TileOf<Minimal<2, 3>, Minimal<2, 3>>());
    case WinogradTile::f2x2_5x5: return f(TileOf<Minimal<2, 5>, Minimal<2, 5>>());
    case WinogradTile::f4x4_5x5: return f(TileOf<Minimal<4, 5>, Minimal<4, 5>>());
    case WinogradTile::f4_3: return f(TileOf<Plain, Minimal<4, 3>>());
    case WinogradTile::f2_5: return f(TileOf<Plain, Minimal<2, 5>>());
    default: return f(TileOf<Minimal<4, 3>, Minimal<4, 3>>());
  }
}

// Tiles are columns, numbered n o i j: image, output depth, row and column of tiles.
struct TileGrid {
  Divide per_row, per_slice, per_image;

  TileGrid(const ConvGeometry& g, int m_h, int m_w)
      : per_row(ceil_div(g.output[2], m_w)),
        per_slice(winograd_tiles(g, m_h, m_w)),
        per_image(g.output[0] * winograd_tiles(g, m_h, m_w)) {}

  struct Tile {
    int n, o, i, j;
  };
  __device__ __forceinline__ Tile tile(int column) const {
    const int n = split(column, per_image), o = split(column, per_slice), i = split(column, per_row);
    return {n, o, i, column};
  }
};

// The input place (one axis) that padded place i shows, or -1 for a zero, also past the padding, where tiles end.
__device__ __forceinline__ int shown_place(const Window& window, int axis, int i) {
  return i < window.in[axis] + window.after[axis] ? window.source(axis, i) : -1;
}

// Where an element of a transformed operand lies: at ((group points + e) rows columns) + row * row + column * column.
// Rows are channels, those of an input with the taps along depth before them.
struct PointStrides {
  int row, column;
};

// Rows `rows` (tap along depth and channel) of some groups, as columns `first` to first + columns of the tiles see
// them.
struct Patches {
  Window window;
  Strides image;
  TileGrid tiles;
  int first, columns;
  int groups, rows, channels;  // of a group
  PointStrides to;
};

// The weight as a convolution sees it that makes `made` channels of a group from `rows` rows (tap along depth and
// channel): strides of what is stored, and whether the last tap is stored first.
struct Filters {
  int groups, made, rows, channels;
  int group_stride, made_stride, read_stride, taps;
  bool flip;

  // The stored place of tap t and row-major tap `tap` of a slice of `slice` taps.
  __device__ __forceinline__ int offset(int group, int k, int c, int t, int tap, int slice) const {
    const int at = t * slice + tap;
    return group * group_stride + k * made_stride + c * read_stride + (flip ? taps - 1 - at : at);
  }
};

// Columns of products, on their way to an image.
struct Results {
  Strides image;
  int height, width;  // of a slice
  TileGrid tiles;
  int first, columns;
  int groups, made;  // channels of a group
  PointStrides from;
};

// conv_winograd_transforms.cu, for float and double. Groups lie one after the other, points within them.
// v = B^T d B; of_gradient: A dy A^T
template <typename A>
void winograd_to_points(WinogradTile tile, const Patches& patches, bool of_gradient, const A* x, A* v, void* stream);
// u[group][e][k][row] = G w G^T
template <typename A>
void winograd_filters(WinogradTile tile, const Filters& filters, const A* w, A* u, void* stream);
// y = A^T m A + bias
template <typename A>
void winograd_from_points(WinogradTile tile, const Results& results, const A* m, const A* bias, A* y, void* stream);
// dw = G^T m G of m[group][e][k][row], the sum of `parts` such arrays, which is left in the first
template <typename A>
void winograd_filter_sums(WinogradTile tile, const Filters& filters, A* m, int parts, A* dw, void* stream);
// dx[n, c, at] = the sum of the padded gradient's places that show `at`; g: the convolution's own, for so many images
// and channels
template <typename A>
void winograd_fold(const ConvGeometry& g, int images, int channels, const A* padded, A* dx, void* stream);

// conv_winograd_fused.cu: a convolution by F(2x2,3x3). Its weight at the points has fused_weight_elements.
int64_t fused_weight_elements(int groups, int made, int rows);
void winograd_fused(const Patches& patches, const Filters& filters, const Results& results, const float* x,
                    const float* w, const float* bias, float* u, float* y, void* stream);

}  // namespace convext::cuda
