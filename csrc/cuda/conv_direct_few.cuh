// What the kernels for few channels share: the places of an axis as a block meets them, and how what windows see comes
// into shared memory.
#pragma once
#include "conv_direct_read.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace convext::cuda {

// Places of one axis of what is made: `first` and every `step`-th after it. The j-th of them meets the kernel places
// tap, tap + tap_step, ..., `taps` of them, and reads place start + j stride + m dilation through the m-th.
//
// The outputs are all alike. In the gradient of the input those places are that lie the stride apart: a `phase`, to
// which a convolution at stride 1 with every so manieth tap, the last first, leads.
struct Steps {
  int first = 0, step = 1, count = 0, start = 0, stride = 1, dilation = 1, taps = 0, tap = 0, tap_step = 1;

  Steps() = default;
  Steps(const ConvGeometry& g, int axis, bool backward, int phase = 0) {
    const int kernel = int(g.kernel[axis]), before = int(g.pad_before[axis]), apart = int(g.stride[axis]);
    dilation = int(g.dilation[axis]);
    if (!backward) {
      count = int(g.output[axis]), start = -before, stride = apart, taps = kernel;
    } else {
      int common = apart;  // greatest divisor of both
      while (dilation % common != 0 || apart % common != 0) --common;
      first = phase, step = apart;
      count = g.input[axis] > phase ? int(ceil_div(g.input[axis] - phase, apart)) : 0;
      int a = phase + before;  // what tap 0 would be seen from
      while (tap < kernel && tap < apart / common && a % apart != 0) a -= dilation, ++tap;
      const bool met = tap < kernel && a % apart == 0;
      taps = met ? (kernel - 1 - tap) / (apart / common) + 1 : 0;
      tap += (taps - 1) * (apart / common), tap_step = -apart / common;
      dilation /= common;
      start = met ? a / apart - (taps - 1) * dilation : 0;
    }
    if (g.flip_kernel) tap = kernel - 1 - tap, tap_step = -tap_step;
  }

  // How far `made` of them see.
  CONVEXT_HD int seen(int made) const { return (made - 1) * stride + (taps - 1) * dilation + 1; }
};

// Where the columns of a staged row lie. Sliding: those that lie the stride apart are neighbours, in `lines` of `line`
// columns, so that a thread's window slides from tap to tap whatever the stride.
struct Columns {
  int pitch, line;
  Divide by_pitch, by_line;

  Columns() = default;
  // For `made` places a row, up to four of which may be read past the last, and whole vectors; odd: an odd number of
  // them.
  Columns(const Steps& w, int made, bool slide, bool odd) {
    if (slide) {
      const int lines = w.stride < w.taps ? w.stride : w.taps;
      line = made + round_up(ceil_div(w.taps, w.stride), 4);
      pitch = lines * line;
    } else {
      line = pitch = round_up(w.seen(made), 4);
    }
    if (pitch <= 0) pitch = line = 4;
    if (odd && pitch / 4 % 2 == 0) pitch += 4;
    by_pitch = Divide(pitch), by_line = Divide(line);
  }
  // The column that is staged as the j-th, counted from the first.
  template <bool kSlide>
  __device__ __forceinline__ int operator()(int j, int stride) const {
    if (!kSlide) return j;
    const int phase = split(j, by_line);
    return j * stride + phase;
  }
};

// stage_rows for channels that are neighbours in memory, kPack of them in an access: `planes` of them, a multiple, each
// of rows x pitch elements. `row_at` tells where a row of the first begins, column(j) how much further column j lies.
template <typename T, typename Column>
__device__ __forceinline__ void stage_channels(Accumulate<T>* tile, const Divide& by_pitch, int rows, int planes,
                                               const int* row_at, const T* from, const Column& column) {
  using A = Accumulate<T>;
  constexpr int V = kPack<T>, kLoads = 16 / V;
  const int packs = planes / V, step = int(blockDim.x) / packs, plane = rows * by_pitch.divisor;
  const int pack = int(threadIdx.x) % packs;
  if (int(threadIdx.x) >= step * packs) return;
  tile += pack * V * plane, from += pack * V;
#pragma unroll 1
  for (int first = int(threadIdx.x) / packs; first < plane; first += kLoads * step) {
    A value[kLoads][V];
#pragma unroll
    for (int b = 0; b < kLoads; ++b) {
      int j = first + b * step, at = -1;
      if (j < plane) {
        const int row = split(j, by_pitch), further = column(j);
        at = further >= 0 && row_at[row] >= 0 ? row_at[row] + further : -1;
      }
      if (at >= 0) {
        load_pack<V>(from + at, value[b]);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) value[b][v] = 0;
      }
    }
#pragma unroll
    for (int b = 0; b < kLoads; ++b)
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (first + b * step < plane) tile[v * plane + first + b * step] = value[b][v];
  }
}

}  // namespace convext::cuda
