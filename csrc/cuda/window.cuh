// A convolution's geometry in 32 bits, for kernels whose index arithmetic is in their inner loops, with the divisions
// prepared. Tensors that are too large for it are given to the kernels a few images at a time; what one image or the
// weight makes too large is refused (too_large).
#pragma once
#include "../geometry.h"
#include "divide.cuh"

namespace convext::cuda {

struct Place32 {
  int d, h, w;
};

// What padded places show, as straight lines: i < 0 shows low_scale i + low, i >= size shows high_scale i + high (with
// zeros: -1 throughout).
struct Edges {
  int low_scale, low, high_scale, high;

  Edges() = default;
  Edges(int64_t size, PaddingMode mode) {
    const int64_t a = padded_source(-1, size, mode), b = padded_source(size, size, mode);
    low_scale = int(a - padded_source(-2, size, mode)), low = int(a) + low_scale;
    high_scale = int(padded_source(size + 1, size, mode) - b), high = int(b - high_scale * size);
  }
};

struct Window {
  int in[kMaxSpatial], out[kMaxSpatial], kernel[kMaxSpatial], stride[kMaxSpatial], dilation[kMaxSpatial],
      before[kMaxSpatial], after[kMaxSpatial];
  Divide by_stride[kMaxSpatial], in_height, in_width, out_height, out_width;
  Edges edges[kMaxSpatial];
  int in_places, out_places, taps;
  PaddingMode mode;
  bool flip;

  explicit Window(const ConvGeometry& g)
      : in_height(g.input[1]),
        in_width(g.input[2]),
        out_height(g.output[1]),
        out_width(g.output[2]),
        in_places(int(g.input_places())),
        out_places(int(g.output_places())),
        taps(int(g.taps())),
        mode(g.padding_mode),
        flip(g.flip_kernel) {
    constexpr int64_t kFar = 1 << 30;  // beyond every place: as good as any larger stride or dilation
    for (int i = 0; i < kMaxSpatial; ++i) {
      in[i] = int(g.input[i]), out[i] = int(g.output[i]), kernel[i] = int(g.kernel[i]);
      stride[i] = int(g.stride[i] < kFar ? g.stride[i] : kFar);
      dilation[i] = int(g.dilation[i] < kFar ? g.dilation[i] : kFar);
      before[i] = int(g.pad_before[i]), after[i] = int(g.pad_after[i]);
      by_stride[i] = Divide(stride[i]);
      edges[i] = Edges(g.input[i], g.padding_mode);
    }
  }

  __device__ __forceinline__ Place32 input_place(int at) const { return place(at, in_height, in_width); }
  __device__ __forceinline__ Place32 output_place(int at) const { return place(at, out_height, out_width); }

  // The input place (one axis) that padded place i shows, or -1 for a zero.
  __device__ __forceinline__ int source(int axis, int i) const {
    const Edges& e = edges[axis];
    const int low = e.low_scale * i + e.low, high = e.high_scale * i + e.high;
    return i < 0 ? low : i < in[axis] ? i : high;
  }
  // The output place that sees padded place i through `tap`, or -1 if none does.
  __device__ __forceinline__ int seen_by(int axis, int i, int tap) const {
    int a = i + before[axis] - tap * dilation[axis];
    if (a < 0) return -1;
    const int seen = split(a, by_stride[axis]);
    return a == 0 && seen < out[axis] ? seen : -1;
  }
  __device__ __forceinline__ PreimagesOf<int> preimages(int axis, int i) const {
    return {i, in[axis], before[axis], after[axis], mode};
  }
  // At how many padded places input place `at` is shown, and the m-th of them.
  __device__ __forceinline__ int shown(Place32 at) const {
    if (mode == PaddingMode::zeros) return 1;
    return preimages(0, at.d).count() * preimages(1, at.h).count() * preimages(2, at.w).count();
  }
  __device__ __forceinline__ Place32 shown_at(Place32 at, int m) const {
    if (m == 0) return at;
    const PreimagesOf<int> d = preimages(0, at.d), h = preimages(1, at.h), w = preimages(2, at.w);
    const int hs = h.count(), ws = w.count();
    return {d[m / (hs * ws)], h[m / ws % hs], w[m % ws]};
  }

 private:
  static __device__ __forceinline__ Place32 place(int at, const Divide& height, const Divide& width) {
    int h = split(at, width);
    const int d = split(h, height);
    return {d, h, at};
  }
};

// The strides of a tensor's images, channels and places.
struct Strides {
  int image, channel, place;
};

inline Strides strides_of(int64_t channels, int64_t places, Layout layout) {
  if (layout == Layout::contiguous) return {int(channels * places), int(places), 1};
  return {int(channels * places), 1, int(channels)};
}
inline Strides input_strides(const ConvGeometry& g) { return strides_of(g.in_channels, g.input_places(), g.layout); }
inline Strides output_strides(const ConvGeometry& g) { return strides_of(g.out_channels, g.output_places(), g.layout); }

// What 32 bits count, less room for the last block's threads to count past the last. Tests make it small.
#if !defined(CONVEXT_MAX_ELEMENTS)
#define CONVEXT_MAX_ELEMENTS (INT32_MAX - 4095)
#endif
constexpr int64_t kMaxElements = CONVEXT_MAX_ELEMENTS;

inline const char* too_large(const ConvGeometry& g) {
  if (g.in_channels * g.input_places() > kMaxElements || g.out_channels * g.output_places() > kMaxElements)
    return "an image has 2^31 elements or more";
  if (g.weight_elements() > kMaxElements) return "the weight has 2^31 elements or more";
  for (int i = 0; i < kMaxSpatial; ++i)
    if (g.input[i] + g.pad_before[i] + g.pad_after[i] >= 1 << 30) return "a padded side has 2^30 places or more";
  return nullptr;
}

// How many images of `elements` elements each a kernel may count in 32 bits.
inline int64_t images_at_once(int64_t batch, int64_t elements) {
  const int64_t most = elements > 0 ? kMaxElements / elements : batch;
  return batch < most ? batch : most;
}

}  // namespace convext::cuda
