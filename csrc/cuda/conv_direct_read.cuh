// Depthwise layers as the direct kernels see them, in either direction: what is made, what is read for it, and where.
//
// At stride 1 the gradient of the input is a convolution too: of dy, with the kernel turned round, its padding zeros.
// One kernel then serves both directions: `Reading` says which place of one axis shows what. Where padding shows input
// places more than once, the gradient has further terms, few and near the edges: `further_terms`.
#pragma once
#include "dtype.cuh"
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

// The taps, first to last, through which outputs see a place, counted from the first padded one, at stride and
// dilation 1.
struct TapRange {
  int first, last;
};
__device__ __forceinline__ TapRange taps_seeing(const Window& window, int axis, int a) {
  const int first = a - (window.out[axis] - 1);
  return {first > 0 ? first : 0, a < window.kernel[axis] - 1 ? a : window.kernel[axis] - 1};
}

// use(offset in dy's plane, tap) for every term of the gradient at input place `at` but those of the place itself:
// those of the places in the padding that show it. kPlain: stride and dilation are 1 along h and w.
template <bool kPlain, typename Use>
__device__ __forceinline__ void further_terms(const Window& window, Place32 at, const Use& use) {
  const PreimagesOf<int> ds = window.preimages(0, at.d), hs = window.preimages(1, at.h), ws = window.preimages(2, at.w);
  const int d_end = ds.count(), h_end = hs.count(), w_end = ws.count();
#pragma unroll 1
  for (int d = 0; d < d_end; ++d)
#pragma unroll 1
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int o = window.seen_by(0, ds[d], t);
      if (o < 0) continue;
#pragma unroll 1
      for (int h = 0; h < h_end; ++h) {
        const int top = hs[h] + window.before[1];
        const TapRange rs = kPlain ? taps_seeing(window, 1, top) : TapRange{0, window.kernel[1] - 1};
#pragma unroll 1
        for (int w = d + h > 0 ? 0 : 1; w < w_end; ++w) {
          const int left = ws[w] + window.before[2];
          const TapRange ss = kPlain ? taps_seeing(window, 2, left) : TapRange{0, window.kernel[2] - 1};
#pragma unroll 1
          for (int r = rs.first; r <= rs.last; ++r)
#pragma unroll 1
            for (int s = ss.first; s <= ss.last; ++s) {
              const int tap = (t * window.kernel[1] + r) * window.kernel[2] + s;
              const int p = kPlain ? top - r : window.seen_by(1, hs[h], r);
              const int q = kPlain ? left - s : window.seen_by(2, ws[w], s);
              if (p >= 0 && q >= 0)
                use((o * window.out[1] + p) * window.out[2] + q, window.flip ? window.taps - 1 - tap : tap);
            }
        }
      }
    }
}

// Copies rows of an image into a tile in shared memory, widened: row i begins `row_at[i]` elements after `from` (-1: it
// is zeros), its column j is `column(j)` places further (-1: a zero). `lanes` threads, a power of two, go along a row;
// kBatch loads each are in flight.
template <int kBatch, typename T, typename Column>
__device__ __forceinline__ void stage_rows(Accumulate<T>* tile, int pitch, int rows, int width, int lanes,
                                           const int* row_at, const T* from, const Column& column) {
  using A = Accumulate<T>;
  const int step = int(blockDim.x) / lanes;
#pragma unroll 1
  for (int j = int(threadIdx.x) % lanes; j < width; j += lanes) {
    const int w = column(j);
#pragma unroll 1
    for (int row = int(threadIdx.x) / lanes; row < rows; row += kBatch * step) {
      A value[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = row + b * step, at = i < rows && w >= 0 ? row_at[i] : -1;
        value[b] = at >= 0 ? to_accumulate(from[at + w]) : A(0);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (row + b * step < rows) tile[(row + b * step) * pitch + j] = value[b];
    }
  }
}

inline int round_up(int64_t size, int to) { return int(ceil_div(size, to)) * to; }

// The least power of two that is `size` or more, but at most `most`.
inline int power_up_to(int64_t size, int most) {
  int power = 1;
  while (power < most && power < size) power *= 2;
  return power;
}

}  // namespace convext::cuda
