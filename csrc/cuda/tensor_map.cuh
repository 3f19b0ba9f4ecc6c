// Tensor maps: what the bulk copy engine must know of a tensor beforehand. Described here as plain numbers, which tests
// read on the CPU, and encoded by the driver, whose functions are asked for by name so that nothing links libcuda.
//
// In im2col mode ("im2col mode" in the PTX ISA; cuTensorMapEncodeIm2col) a copy names an image, the corner of a filter
// in it, channels, and the offset of a tap from the corner. It brings `pixels` rows of `channels` values each: corners
// move through the box [lower, size - 1 + upper] of the image, the width fastest, a stride at a time, and from its end
// on to the next row, plane and image. What lies outside of the tensor is zero. So with
//
//   lower = -before,   size - 1 + upper = lower + (output - 1) stride,   offset = tap dilation
//
// corners are the outputs of a convolution in row-major order, and rows its im2col matrix for one tap.
#pragma once
#include <initializer_list>

#include "../geometry.h"
#include "divide.cuh"
#include "window.cuh"

#if defined(__CUDACC__)
#include <cuda.h>

#include <stdexcept>
#include <string>
#endif

namespace convext::cuda {

constexpr int kMaxRank = 5;

// c, then as many of w h d as are more than one place, then n: of size[0], size[1] ... size[rank - 1].
struct TensorMapShape {
  int rank = 0;
  uint64_t size[kMaxRank], stride_bytes[kMaxRank];  // of a step in each; of the first it is not told
};

struct TiledMap : TensorMapShape {
  uint32_t box[kMaxRank];
};

struct Im2colMap : TensorMapShape {
  int lower[kMaxSpatial], upper[kMaxSpatial];  // w h d
  uint32_t stride[kMaxRank];
  uint32_t channels, pixels;  // of a copy
};

// Of 16-bit elements that follow each other without a gap, the first dimension fastest.
inline TiledMap tiled_map(std::initializer_list<int64_t> sizes, std::initializer_list<int> box) {
  TiledMap map;
  uint64_t stride = 2;
  for (int64_t size : sizes) {
    map.size[map.rank] = static_cast<uint64_t>(size);
    map.stride_bytes[map.rank] = stride;
    map.box[map.rank] = static_cast<uint32_t>(box.begin()[map.rank]);
    stride *= map.size[map.rank++];
  }
  return map;
}

// Whether an axis is but one place that the kernel sees once.
inline bool trivial(const ConvGeometry& g, int axis) {
  return g.input[axis] == 1 && g.output[axis] == 1 && g.kernel[axis] == 1 && g.pad_before[axis] == 0;
}
inline int im2col_rank(const ConvGeometry& g) { return !trivial(g, kDepth) ? 5 : !trivial(g, kHeight) ? 4 : 3; }

// The input of a convolution, channels_last; its padding may be below zero.
inline Im2colMap im2col_map(const ConvGeometry& g, int64_t images, int channels, int pixels) {
  Im2colMap map;
  map.rank = im2col_rank(g);
  map.channels = static_cast<uint32_t>(channels), map.pixels = static_cast<uint32_t>(pixels);
  uint64_t stride = 2;
  for (int i = 0; i < map.rank; ++i) {
    const int axis = kWidth + 1 - i;  // of the spatial dimensions
    const int64_t size = i == 0 ? g.in_channels : i == map.rank - 1 ? images : g.input[axis];
    map.size[i] = static_cast<uint64_t>(size);
    map.stride_bytes[i] = stride;
    map.stride[i] = 1;
    stride *= map.size[i];
    if (i == 0 || i == map.rank - 1) continue;
    // One output takes no step, whatever the stride.
    map.stride[i] = static_cast<uint32_t>(g.output[axis] == 1 ? 1 : g.stride[axis]);
    map.lower[i - 1] = static_cast<int>(-g.pad_before[axis]);
    map.upper[i - 1] = static_cast<int>(-g.pad_before[axis] + (g.output[axis] - 1) * g.stride[axis] - (size - 1));
  }
  return map;
}

// Whether the engine takes it: corners of 16, 8 or 5 bits by rank, offsets as wide but unsigned, strides up to 8.
inline bool im2col_fits(const ConvGeometry& g) {
  const int rank = im2col_rank(g), bits = rank == 3 ? 16 : rank == 4 ? 8 : 5;
  const int64_t corner = int64_t(1) << (bits - 1), offset = int64_t(1) << bits;
  for (int axis = kWidth; axis > kWidth + 2 - rank; --axis) {
    const int64_t lower = -g.pad_before[axis],
                  upper = lower + (g.output[axis] - 1) * g.stride[axis] - (g.input[axis] - 1);
    if (lower < -corner || lower >= corner || upper < -corner || upper >= corner) return false;
    if ((g.kernel[axis] - 1) * g.dilation[axis] >= offset) return false;
    if (g.output[axis] > 1 && g.stride[axis] > 8) return false;
  }
  return true;
}

// Where outputs have their corners, and taps their offsets.
struct Place4 {
  int n, d, h, w;
};
struct Corners {
  Divide by_width, by_height, by_depth, by_kernel_width, by_kernel_height;
  int stride[kMaxSpatial], lower[kMaxSpatial], dilation[kMaxSpatial], rank;

  explicit Corners(const ConvGeometry& g)
      : by_width(g.output[kWidth]),
        by_height(g.output[kHeight]),
        by_depth(g.output[0]),
        by_kernel_width(g.kernel[kWidth]),
        by_kernel_height(g.kernel[kHeight]),
        rank(im2col_rank(g)) {
    for (int i = 0; i < kMaxSpatial; ++i) {
      // Of a single output or tap it does not matter: there may be more than an int holds.
      stride[i] = g.output[i] == 1 ? 0 : static_cast<int>(g.stride[i]);
      dilation[i] = g.kernel[i] == 1 ? 0 : static_cast<int>(g.dilation[i]);
      lower[i] = static_cast<int>(-g.pad_before[i]);
    }
  }
  // The corner of output number `pixel`, over all images.
  __device__ __forceinline__ Place4 corner(int pixel) const {
    int h = split(pixel, by_width), d = split(h, by_height);
    const int n = split(d, by_depth);
    return {n, d * stride[0] + lower[0], h * stride[1] + lower[1], pixel * stride[2] + lower[2]};
  }
  __device__ __forceinline__ Place4 offset(int tap) const {
    int r = split(tap, by_kernel_width);
    const int t = split(r, by_kernel_height);
    return {0, t * dilation[0], r * dilation[1], tap * dilation[2]};
  }
};

#if defined(__CUDACC__)

template <typename Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess)
    throw std::runtime_error(std::string("the CUDA driver has no ") + name);
  return reinterpret_cast<Function*>(found);
}

inline CUtensorMapDataType map_type(DType dtype) {
  return dtype == DType::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}
inline void expect_encoded(CUresult result, const char* mode) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string("a tensor map (") + mode + ") was refused by the CUDA driver, error " +
                             std::to_string(static_cast<int>(result)));
}

inline CUtensorMap encode(const TiledMap& map, DType dtype, const void* data) {
  static auto* const function = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  const uint32_t stride[kMaxRank] = {1, 1, 1, 1, 1};
  CUtensorMap encoded;
  expect_encoded(function(&encoded, map_type(dtype), map.rank, const_cast<void*>(data), map.size, map.stride_bytes + 1,
                          map.box, stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                 "tiles");
  return encoded;
}
inline CUtensorMap encode(const Im2colMap& map, DType dtype, const void* data) {
  static auto* const function = driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  CUtensorMap encoded;
  expect_encoded(
      function(&encoded, map_type(dtype), map.rank, const_cast<void*>(data), map.size, map.stride_bytes + 1, map.lower,
               map.upper, map.channels, map.pixels, map.stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "im2col");
  return encoded;
}

#endif

}  // namespace convext::cuda
