// What the files of implicit_gemm share: which places read which, along straight lines; how long sums are cut.
#pragma once
#include "../algorithms.h"
#include "tile_product.cuh"
#include "window.cuh"

namespace convext::cuda {

// Enough blocks to fill a GPU: two for each of an H200's 132 multiprocessors. Tests make it small, and segments short.
#if !defined(CONVEXT_GEMM_ENOUGH_TILES)
#define CONVEXT_GEMM_ENOUGH_TILES 264
#endif
constexpr int64_t kEnoughBlocks = CONVEXT_GEMM_ENOUGH_TILES;
#if !defined(CONVEXT_SHORTEST_SEGMENT)
#define CONVEXT_SHORTEST_SEGMENT 8
#endif
constexpr int64_t kShortestSegment = CONVEXT_SHORTEST_SEGMENT;  // of a sum that is cut, in slices

// Along each axis, place u reads through tap j the padded place first + step u + tap_step j of an image.
struct Lines {
  int first[kMaxSpatial], step[kMaxSpatial], tap_step[kMaxSpatial], size[kMaxSpatial];
  Edges edges[kMaxSpatial];
  Divide by_height, by_width, by_tap_height, by_tap_width;  // of the places u, of the taps j
  int place_stride;

  // The padded place that a place reads first.
  __device__ __forceinline__ Place32 start(int place) const {
    int h = split(place, by_width);
    const int d = split(h, by_height);
    return {first[0] + step[0] * d, first[1] + step[1] * h, first[2] + step[2] * place};
  }
  __device__ __forceinline__ Place32 tap(int j) const {
    int r = split(j, by_tap_width);
    const int t = split(r, by_tap_height);
    return {t * tap_step[0], r * tap_step[1], j * tap_step[2]};
  }
  // The offset in the image of what is read, or -1 for a zero.
  __device__ __forceinline__ int offset(Place32 from, Place32 tap_at) const {
    const int d = source(0, from.d + tap_at.d), h = source(1, from.h + tap_at.h), w = source(2, from.w + tap_at.w);
    return d < 0 || h < 0 || w < 0 ? -1 : ((d * size[1] + h) * size[2] + w) * place_stride;
  }

 private:
  __device__ __forceinline__ int source(int axis, int i) const {
    const Edges& e = edges[axis];
    return i < 0 ? e.low_scale * i + e.low : i < size[axis] ? i : e.high_scale * i + e.high;
  }
};

// The lines of the forward pass: outputs read the input.
inline Lines forward_lines(const ConvGeometry& g) {
  Lines lines{};
  const Window window(g);
  for (int i = 0; i < kMaxSpatial; ++i) {
    lines.first[i] = -window.before[i], lines.step[i] = window.stride[i], lines.tap_step[i] = window.dilation[i];
    lines.size[i] = window.in[i], lines.edges[i] = window.edges[i];
  }
  lines.by_height = Divide(g.output[1]), lines.by_width = Divide(g.output[2]);
  lines.by_tap_height = Divide(g.kernel[1]), lines.by_tap_width = Divide(g.kernel[2]);
  lines.place_stride = input_strides(g).place;
  return lines;
}

inline int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }
// Elements in a chunk and in a slice.
inline int64_t chunk_of(DType dtype) { return kChunkBytes / bytes_of(dtype); }
inline int64_t slice_of(DType dtype) { return kSliceBytes / bytes_of(dtype); }
inline int64_t tiles_of(int64_t rows, int64_t columns, int64_t groups, int64_t tile) {
  return ceil_div(rows, tile) * ceil_div(columns, tile) * groups;
}

void conv_implicit_gemm_backward_weight(const ConvArguments& args);
int64_t conv_implicit_gemm_weight_workspace(const ConvGeometry& g, DType dtype);

}  // namespace convext::cuda
