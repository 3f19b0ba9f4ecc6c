// Depthwise layers as the direct kernels see them, in either direction: what is made, what is read for it, and where.
//
// At stride 1 the gradient of the input is a convolution too: of dy, with the kernel turned round, its padding zeros.
// One kernel then serves both directions: `Reading` says which place of one axis shows what. Where padding shows input
// places more than once, the gradient has further terms, few and near the edges: `further_terms`.
#pragma once
#include "window.cuh"

namespace convext::cuda {

// One axis of what is read at stride 1: made place i sees, through tap 0, place i + start, which shows (*this)(i +
// start).
struct Reading {
  int size, start;
  Edges edges;

  Reading(const ConvGeometry& g, int axis, bool backward)
      : size(int(backward ? g.output[axis] : g.input[axis])),
        start(int(backward ? g.pad_before[axis] - (g.kernel[axis] - 1) * g.dilation[axis] : -g.pad_before[axis])),
        edges(size, backward ? PaddingMode::zeros : g.padding_mode) {}

  __device__ __forceinline__ int operator()(int i) const {
    const int low = edges.low_scale * i + edges.low, high = edges.high_scale * i + edges.high;
    return i < 0 ? low : i < size ? i : high;
  }
};

// Channels: made channel `c` of a group is summed over the group's read channels.
struct Depthwise {
  Window window;
  Reading h, w;
  bool backward, turned;                     // turned: taps are met in the weight's order reversed
  int images, made_channels, read_channels;  // the channels of a group
  int made_size[kMaxSpatial];
  int made_places, read_places;
  Strides made, read;
  int weight_group, weight_made, weight_read;  // strides
  Divide by_all_channels, by_group_channels;   // of what is made

  Depthwise(const ConvGeometry& g, bool back)
      : window(g),
        h(g, 1, back),
        w(g, 2, back),
        backward(back),
        turned(back != g.flip_kernel),
        images(0),
        made_channels(int(back ? g.group_inputs() : g.group_outputs())),
        read_channels(int(back ? g.group_outputs() : g.group_inputs())),
        made_places(int(back ? g.input_places() : g.output_places())),
        read_places(int(back ? g.output_places() : g.input_places())),
        made(back ? input_strides(g) : output_strides(g)),
        read(back ? output_strides(g) : input_strides(g)),
        weight_group(int(g.group_outputs() * g.group_inputs() * g.taps())),
        weight_made(int(back ? g.taps() : g.group_inputs() * g.taps())),
        weight_read(int(back ? g.group_inputs() * g.taps() : g.taps())),
        by_all_channels(back ? g.in_channels : g.out_channels),
        by_group_channels(made_channels) {
    for (int i = 0; i < kMaxSpatial; ++i) made_size[i] = int(back ? g.input[i] : g.output[i]);
  }

  // The depth that made depth d sees through tap t, or -1.
  __device__ __forceinline__ int depth(int d, int t) const {
    return backward ? window.seen_by(0, d, t)
                    : window.source(0, d * window.stride[0] - window.before[0] + t * window.dilation[0]);
  }
  // Where the weights of kernel depth t begin; for t met in order, and h, w by `turned`.
  __device__ __forceinline__ int weight_depth(int t) const {
    return (window.flip ? window.kernel[0] - 1 - t : t) * window.kernel[1] * window.kernel[2];
  }
  // Of tap r s of a kernel plane, met in order.
  __device__ __forceinline__ int weight_tap(int r, int s) const {
    const int tap = r * window.kernel[2] + s;
    return turned ? window.kernel[1] * window.kernel[2] - 1 - tap : tap;
  }
};

// The taps of one axis through which outputs see padded place i: [first, last], in steps, at stride and dilation 1.
struct TapRange {
  int first, last;
};
__device__ __forceinline__ TapRange taps_seeing(const Window& window, int axis, int i) {
  const int a = i + window.before[axis], first = a - (window.out[axis] - 1);
  return {first > 0 ? first : 0, a < window.kernel[axis] - 1 ? a : window.kernel[axis] - 1};
}

// use(offset in dy's plane, tap) for every term of the gradient at input place `at` but those of the place itself:
// those of the places in the padding that show it. For stride and dilation 1 along h and w.
template <typename Use>
__device__ __forceinline__ void further_terms(const Window& window, Place32 at, const Use& use) {
  const int shown = window.shown(at);
  for (int m = 1; m < shown; ++m) {
    const Place32 padded = window.shown_at(at, m);
    const TapRange rs = taps_seeing(window, 1, padded.h), ss = taps_seeing(window, 2, padded.w);
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int o = window.seen_by(0, padded.d, t);
      if (o < 0) continue;
      for (int r = rs.first; r <= rs.last; ++r)
        for (int s = ss.first; s <= ss.last; ++s) {
          const int tap = (t * window.kernel[1] + r) * window.kernel[2] + s;
          use((o * window.out[1] + padded.h + window.before[1] - r) * window.out[2] + padded.w + window.before[2] - s,
              window.flip ? window.taps - 1 - tap : tap);
        }
    }
  }
}

}  // namespace convext::cuda
