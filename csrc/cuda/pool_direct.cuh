// What the files of direct pooling share: the geometry in 32 bits, packs of numbers that move in one access, spans of
// memory on their way through shared memory, and the average's division.
#pragma once
#include <cmath>

#include "launch.cuh"
#include "pool.cuh"
#include "window.cuh"

namespace convext::cuda {

// Each takes the passes that it has kernels for, and says whether it took this one. `max`: maximum or average.
bool pool_direct_windows(const PoolArguments& args, bool max);  // pool_direct_forward.cu
void pool_direct_backward(const PoolArguments& args, bool max);

// As many numbers as 16 bytes hold; float64 and whatever lies badly goes one by one.
template <typename T>
constexpr int kPack = 16 / sizeof(T);
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T v[kSize];
};
template <int kSize, typename T>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* at) {
  return *reinterpret_cast<const Pack<T, kSize>*>(at);
}
template <typename T, int kSize>
__device__ __forceinline__ void store_pack(T* at, const Pack<T, kSize>& pack) {
  *reinterpret_cast<Pack<T, kSize>*>(at) = pack;
}

// [first, last)
struct Range32 {
  int first, last;
};
// The taps [first, last) of an output along one axis that lie in the input, and the place of tap 0.
struct Taps {
  int place, first, last;
};

constexpr int64_t kMaxDivisor = 1 << 20;

// A sum over a divisor d, correctly rounded. One below kMaxDivisor (small) divides in three fused steps: the product
// with the rounded reciprocal is off by two units in the last place at most, and the remainder that it leaves is exact;
// what adding remainder times reciprocal then errs by is less than the distance of sum / d from the middle between two
// numbers, at least 1 / 2d of a unit (subnormal quotients aside). kSmall: they all are, so no other code is made.
template <typename A>
struct Divisor {
  A value;
  float reciprocal;
  bool small;

  template <bool kSmall>
  __device__ __forceinline__ A under(A sum) const {
    if constexpr (sizeof(A) == 4) {
      if (kSmall || small) {
        const float quotient = sum * reciprocal, rest = fmaf(-quotient, value, sum);
        return quotient - quotient == 0 ? fmaf(rest, reciprocal, quotient) : quotient;  // infinity and NaN stay
      }
    }
    return sum / value;
  }
};

struct PoolTask {
  int in[kMaxSpatial], out[kMaxSpatial], kernel[kMaxSpatial], stride[kMaxSpatial], dilation[kMaxSpatial],
      before[kMaxSpatial], after[kMaxSpatial];
  Divide by_stride[kMaxSpatial], by_dilation[kMaxSpatial], by_in[kMaxSpatial], by_out[kMaxSpatial], by_channels;
  Strides x, y;
  int planes;  // images times channels
  bool include_pad, byte_places, adaptive;
  bool uniform;  // every average has the same divisor, below kMaxDivisor, and here it is
  float divisor, reciprocal;
  int64_t divisor_override;

  explicit PoolTask(const PoolGeometry& g);

  // Where plane i begins.
  __device__ __forceinline__ int plane_offset(const Strides& strides, int i) const {
    const int image = split(i, by_channels);
    return image * strides.image + i * strides.channel;
  }
  __device__ __forceinline__ int input_offset(int d, int h, int w) const {
    return ((d * in[1] + h) * in[2] + w) * x.place;
  }
  __device__ __forceinline__ int output_offset(int o, int p, int q) const {
    return ((o * out[1] + p) * out[2] + q) * y.place;
  }
  // Part i of `size` places cut into by.divisor parts.
  static __device__ __forceinline__ Range32 cut(int i, int size, const Divide& by) {
    return {by.quotient(i * size), by.quotient((i + 1) * size + by.divisor - 1)};
  }
  // How many taps of output `at` lie below `limit` along one axis.
  __device__ __forceinline__ int taps_below(int axis, int at, int limit) const {
    const int room = limit - (at * stride[axis] - before[axis]);
    const int taps = room <= 0 ? 0 : by_dilation[axis].quotient(room - 1) + 1;
    return taps < kernel[axis] ? taps : kernel[axis];
  }
  __device__ __forceinline__ Taps taps(int axis, int at) const {
    if (adaptive) {
      const Range32 part = cut(at, in[axis], by_out[axis]);
      return {part.first, 0, part.last - part.first};
    }
    return {at * stride[axis] - before[axis], taps_below(axis, at, 0), taps_below(axis, at, in[axis])};
  }
  // The outputs whose windows reach over input place i of one axis, gaps of a dilation included, and the tap through
  // which one of them sees it: -1 for a gap.
  __device__ __forceinline__ Range32 spanning(int axis, int i) const {
    if (adaptive) return cut(i, out[axis], by_in[axis]);
    const int last = i + before[axis], first = last - (kernel[axis] - 1) * dilation[axis];
    const int end = by_stride[axis].quotient(last) + 1;
    return {first <= 0 ? 0 : by_stride[axis].quotient(first - 1) + 1, end < out[axis] ? end : out[axis]};
  }
  __device__ __forceinline__ int tap_of(int axis, int i, int at) const {
    if (adaptive) return i - cut(at, in[axis], by_out[axis]).first;
    int a = i + before[axis] - at * stride[axis];
    const int tap = split(a, by_dilation[axis]);
    return a == 0 ? tap : -1;
  }
  // This axis' factor of PoolGeometry::divisor.
  __device__ __forceinline__ int64_t counted(int axis, int at) const {
    if (include_pad && !adaptive) return taps_below(axis, at, in[axis] + after[axis]);
    const Taps inside = taps(axis, at);
    return inside.last - inside.first;
  }
  // What the average at output (o, p, q) is divided by.
  template <typename A>
  __device__ __forceinline__ Divisor<A> divisor_of(int o, int p, int q) const {
    if (uniform) return {A(divisor), reciprocal, true};
    const int64_t d = divisor_override != 0 ? divisor_override : counted(0, o) * counted(1, p) * counted(2, q);
    return {A(d), 1 / float(d), d < kMaxDivisor && d > -kMaxDivisor};
  }
};

inline PoolTask::PoolTask(const PoolGeometry& g) {
  constexpr int64_t kFar = 1 << 30;  // beyond every place: as good as any larger stride or dilation
  bool full = !g.adaptive;
  for (int i = 0; i < kMaxSpatial; ++i) {
    in[i] = int(g.input[i]), out[i] = int(g.output[i]), kernel[i] = int(g.kernel[i]);
    stride[i] = int(g.stride[i] < kFar ? g.stride[i] : kFar);
    dilation[i] = int(g.dilation[i] < kFar ? g.dilation[i] : kFar);
    before[i] = int(g.pad_before[i]), after[i] = int(g.pad_after[i]);
    by_stride[i] = Divide(stride[i]), by_dilation[i] = Divide(dilation[i]);
    by_in[i] = Divide(in[i]), by_out[i] = Divide(out[i]);
    for (int64_t end : {int64_t(0), g.output[i] - 1}) full = full && g.counted_taps(i, end) == g.kernel[i];
  }
  by_channels = Divide(g.channels);
  x = strides_of(g.channels, g.input_places(), g.layout), y = strides_of(g.channels, g.output_places(), g.layout);
  planes = 0;
  include_pad = g.count_include_pad, byte_places = g.byte_places(), adaptive = g.adaptive;
  divisor_override = g.divisor_override;
  const int64_t known = divisor_override != 0 ? divisor_override : full ? g.window() : kMaxDivisor;
  uniform = known < kMaxDivisor && known > -kMaxDivisor;
  divisor = float(known), reciprocal = 1 / divisor;
}

// run(task, n): the images, as many at a time as 32 bits can count, n being the first.
template <typename Run>
void for_each_piece(const PoolGeometry& g, const Run& run) {
  PoolTask task(g);
  const int64_t larger = task.x.image > task.y.image ? task.x.image : task.y.image;
  const int64_t most = images_at_once(g.batch, larger);
  for (int64_t n = 0; n < g.batch; n += most) {
    task.planes = int((g.batch - n < most ? g.batch - n : most) * g.channels);
    run(task, n);
  }
}

// Whether `at` can be accessed in packs of channels.
template <typename T>
bool packs_lie_well(const PoolGeometry& g, std::initializer_list<const void*> at, const void* places) {
  bool well = g.layout == Layout::channels_last && g.channels % kPack<T> == 0;
  for (const void* pointer : at) well = well && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  return well && (!g.byte_places() || reinterpret_cast<uintptr_t>(places) % kPack<T> == 0);
}

// The side of a square window that has kernels of its own, 2 or 3, or 0. A depth of single places is as good as images.
inline int small_square(const PoolGeometry& g, DType dtype) {
  const bool flat = g.kernel[0] == 1 && g.stride[0] == 1 && g.pad_before[0] == 0 && g.pad_after[0] == 0;
  const bool square = g.kernel[1] == g.kernel[2] && g.dilation[1] == 1 && g.dilation[2] == 1;
  const bool small = g.divisor_override < kMaxDivisor && g.divisor_override > -kMaxDivisor;
  if (g.adaptive || dtype == DType::float64 || !flat || !square || !small) return 0;
  for (int i = 1; i < kMaxSpatial; ++i)
    if (g.stride[i] > 4 || g.pad_before[i] > 8) return 0;  // rows, or patches, that are mostly nobody's
  return g.kernel[1] == 2 || g.kernel[1] == 3 ? int(g.kernel[1]) : 0;
}

// Spans ---------------------------------------------------------------------------------------------------------------
// A span of memory and its copy in shared memory begin equally far past a 16-byte line, so that all but its ends moves
// 16 bytes at a time, wherever it lies.

template <typename T>
__device__ __forceinline__ int phase_of(const T* at) {
  return int(reinterpret_cast<uintptr_t>(at) % 16 / sizeof(T));
}
// copy(whole, i): pack i of those that span [phase, phase + count) touches, or element i of a torn one.
template <typename T, typename Copy>
__device__ __forceinline__ void for_each_pack(int phase, int count, const Copy& copy) {
  constexpr int kSize = kPack<T>;
  const int end = phase + count, packs = (end + kSize - 1) / kSize;
  for (int i = threadIdx.x; i < packs; i += kThreads) {
    if (i * kSize >= phase && (i + 1) * kSize <= end) {
      copy(true, i * kSize);
    } else {
      for (int j = i * kSize; j < (i + 1) * kSize; ++j)
        if (j >= phase && j < end) copy(false, j);
    }
  }
}
// Element i of the span goes to shared[phase_of(from) + i].
template <typename T>
__device__ __forceinline__ void stage(const T* from, int count, T* shared) {
  const int phase = phase_of(from);
  const T* line = from - phase;
  for_each_pack<T>(phase, count, [&](bool whole, int i) {
    if (whole)
      store_pack(shared + i, load_pack<kPack<T>>(line + i));
    else
      shared[i] = line[i];
  });
}
// And back.
template <typename T>
__device__ __forceinline__ void unstage(const T* shared, int count, T* to) {
  const int phase = phase_of(to);
  T* line = to - phase;
  for_each_pack<T>(phase, count, [&](bool whole, int i) {
    if (whole)
      store_pack(line + i, load_pack<kPack<T>>(shared + i));
    else
      line[i] = shared[i];
  });
}
template <typename T>
CONVEXT_HD int64_t staged_bytes(int64_t count) {
  return ceil_div(count * int64_t(sizeof(T)), 16) * 16 + 16;
}

// How whole rows are dealt out to blocks: `units` (of some rows) of `planes` planes each; several planes only where
// they are taken whole.
#if !defined(CONVEXT_POOL_STAGE_BYTES)
#define CONVEXT_POOL_STAGE_BYTES (24 << 10)  // 9 blocks fit a multiprocessor of Hopper
#endif
struct RowTiles {
  int units = 0, planes = 1, bands = 1;  // bands: blocks per plane
  int64_t bytes = 0;
  Divide by_units, by_columns;
};

// bytes(units, planes): what they take of shared memory. units is 0 if not even one fits.
template <typename Bytes>
RowTiles row_tiles(int64_t all_units, int64_t columns, int64_t all_planes, const Bytes& bytes) {
  constexpr int64_t kEnough = 2 * kThreads;  // pieces of work
  RowTiles tiles;
  if (bytes(1, 1) > int64_t(kPlainSharedBytes)) return tiles;
  int64_t units = 1, planes = 1;
  while (units < all_units && units * columns < kEnough && bytes(units + 1, 1) <= CONVEXT_POOL_STAGE_BYTES) ++units;
  const int64_t bands = ceil_div(all_units, units);
  units = ceil_div(all_units, bands);
  while (bands == 1 && planes < all_planes && planes * units * columns < kEnough &&
         bytes(units, planes + 1) <= CONVEXT_POOL_STAGE_BYTES)
    ++planes;
  tiles.units = int(units), tiles.planes = int(planes), tiles.bands = int(bands), tiles.bytes = bytes(units, planes);
  tiles.by_units = Divide(units), tiles.by_columns = Divide(columns);
  return tiles;
}

}  // namespace convext::cuda
