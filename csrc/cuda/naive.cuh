// What the naive kernels share: a thread per element, in the order of memory so that warps touch neighbours, striding
// through as many as there are, in 64 bits throughout.
#pragma once
#include "../geometry.h"
#include "divide.cuh"

namespace convext::cuda {

struct Place {
  int64_t d, h, w;
};

CONVEXT_HD int64_t ravel(Place at, const int64_t* size) { return (at.d * size[1] + at.h) * size[2] + at.w; }

struct Element {
  int64_t n, c;
  Place at;
};

// What element `offset` of a tensor is: its image, channel and place.
struct Unravel {
  Divide64 channels, places, height, width;
  bool contiguous;

  Unravel(int64_t channel_count, const int64_t* size, Layout layout)
      : channels(channel_count),
        places(size[0] * size[1] * size[2]),
        height(size[1]),
        width(size[2]),
        contiguous(layout == Layout::contiguous) {}

  __device__ __forceinline__ Place place(int64_t at) const {
    int64_t h = split(at, width);
    const int64_t d = split(h, height);
    return {d, h, at};
  }
  __device__ __forceinline__ Element element(int64_t offset) const {
    int64_t n, c, at;
    if (contiguous) {
      at = offset, c = split(at, places), n = split(c, channels);
    } else {
      c = offset, at = split(c, channels), n = split(at, places);
    }
    return {n, c, place(at)};
  }
};

// run(i) for the i below `elements` that are this thread's.
template <typename Run>
__device__ __forceinline__ void for_each_element(int64_t elements, const Run& run) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < elements; i += step) run(i);
}

}  // namespace convext::cuda
