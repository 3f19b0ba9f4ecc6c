// Pooling, rows first: a window of R x S is S steps along each row, shared by all the windows that cover the row, and
// then R steps down.
//
//   row[h, q] = max (sum) over s of x[h, source(q, s)],   y[p, q] = max (sum) over r of row[source(p, r), q]
//
// forward_kernel: a block makes a tile of 256 outputs, up to 32 wide, of as many planes as that takes, or, for
// channels_last, 8 high of 32 channels; its threads fill a band of rows in shared memory, lanes along the contiguous
// index, and each then takes what its own output needs of the band, one band after the other, the planes of a
// three-dimensional window too. So any window fits. The maximum's place travels along (its s with a row). Rows come in
// order, so the first greatest and the last NaN are those of the definition. A 3x3 window costs 3.75 loads and 3 shared
// ones instead of 9.
// backward_kernel: a thread per input place gathers, in order, from the outputs whose windows cover it: it finds their
// range by division, and so visits 9, or at stride 2 four, for a 3x3 window, one for a 2x2 at stride 2. No atomics.
//
// Memory is read once, but for the rows that neighbouring tiles share. Floating dtypes only; several images per launch,
// as many as 32-bit offsets allow.
#include "launch.cuh"
#include "pool.cuh"
#include "window.cuh"

namespace convext::cuda {
namespace {

constexpr int kTileWidth = 32, kLastHeight = 8, kLastChannels = 32;  // of a tile; the last two for channels_last
constexpr int kBand = 2048;                                          // row results in shared memory

struct Task {
  int in[kMaxSpatial], out[kMaxSpatial], kernel[kMaxSpatial], stride[kMaxSpatial], dilation[kMaxSpatial],
      before[kMaxSpatial], after[kMaxSpatial];
  Divide by_stride[kMaxSpatial], by_dilation[kMaxSpatial], by_channels, by_places, in_height, in_width;
  Strides x, y;
  int planes;  // images times channels
  int tile_planes, tile_height, tile_width;
  bool include_pad, byte_places;
  int64_t divisor_override;

  // Where plane i begins.
  __device__ __forceinline__ int plane_offset(const Strides& strides, int i) const {
    const int image = split(i, by_channels);
    return image * strides.image + i * strides.channel;
  }
  // How many taps of output `out` lie below `limit` along one axis.
  __device__ __forceinline__ int taps_below(int axis, int out_place, int limit) const {
    const int room = limit - (out_place * stride[axis] - before[axis]);
    const int taps = room <= 0 ? 0 : by_dilation[axis].quotient(room - 1) + 1;
    return taps < kernel[axis] ? taps : kernel[axis];
  }
  // This axis' factor of PoolGeometry::divisor.
  __device__ __forceinline__ int64_t counted(int axis, int out_place) const {
    if (include_pad) return taps_below(axis, out_place, in[axis] + after[axis]);
    return taps_below(axis, out_place, in[axis]) - taps_below(axis, out_place, 0);
  }
  __device__ __forceinline__ int64_t divisor(int o, int p, int q) const {
    return divisor_override != 0 ? divisor_override : counted(0, o) * counted(1, p) * counted(2, q);
  }
};

template <typename T, bool kMax>
__global__ __launch_bounds__(kThreads, 1) void forward_kernel(const Task task, const T* __restrict__ x,
                                                              T* __restrict__ y, void* places) {
  using A = Accumulate<T>;
  constexpr A kStart = kMax ? kLowest<A> : A(0);
  __shared__ A row_value[kBand];
  __shared__ int row_tap[kMax ? kBand : 1];  // the winner's s, or -1 if the row's window lies outside

  const int tid = threadIdx.x, line = task.tile_planes * task.tile_width;  // a row of the band, all planes
  const int p_tiles = (task.out[1] - 1) / task.tile_height + 1, q_tiles = (task.out[2] - 1) / task.tile_width + 1;
  int rest = blockIdx.x;
  const int q_first = rest % q_tiles * task.tile_width, p_first = rest / q_tiles % p_tiles * task.tile_height;
  rest = rest / q_tiles / p_tiles;
  const int o = rest % task.out[0], plane_first = rest / task.out[0] * task.tile_planes;

  // Position i of a line: its plane and its q. A thread keeps its position on its way through the band.
  const int position = tid % line;
  const bool contiguous = task.x.place == 1;
  const int plane = plane_first + (contiguous ? position / task.tile_width : position % task.tile_planes);
  const int q = q_first + (contiguous ? position % task.tile_width : position / task.tile_planes);
  const int p_own = tid / line, p = p_first + p_own;  // the output it makes
  const bool reads = plane < task.planes && q < task.out[2], makes = reads && p < task.out[1];
  const T* x_plane = x + task.plane_offset(task.x, plane < task.planes ? plane : 0);

  const int h_first = p_first * task.stride[1] - task.before[1], w_first = q * task.stride[2] - task.before[2];
  const int height = (task.tile_height - 1) * task.stride[1] + (task.kernel[1] - 1) * task.dilation[1] + 1;
  const int band_rows = kBand / line;
  A best = kStart;
  int winner = -1;
  for (int t = 0; t < task.kernel[0]; ++t) {
    const int d = o * task.stride[0] - task.before[0] + t * task.dilation[0];
    if (d < 0 || d >= task.in[0]) continue;
    int r = 0;  // the next row of this thread's own window
    // Rows below the input are nobody's.
    const int end = height < task.in[1] - h_first ? height : task.in[1] - h_first;
    for (int band = h_first < 0 ? -h_first : 0; band < end; band += band_rows) {
      const int band_end = band + band_rows < end ? band + band_rows : end;
      __syncthreads();
      for (int row = band + p_own; reads && row < band_end; row += kThreads / line) {
        // At stride sh > R, rows between the windows are nobody's either.
        if (task.dilation[1] == 1 && task.by_stride[1].remainder(row) >= task.kernel[1]) continue;
        const T* x_row = x_plane + (d * task.in[1] + h_first + row) * task.in[2] * task.x.place;
        A value = kStart;
        int tap = -1;
        for (int s = 0; s < task.kernel[2]; ++s) {
          const int w = w_first + s * task.dilation[2];
          if (w < 0 || w >= task.in[2]) continue;
          const A next = to_accumulate(x_row[w * task.x.place]);
          if (!kMax) {
            value += next;
          } else if (wins(next, value) || tap < 0) {
            value = next, tap = s;
          }
        }
        row_value[(row - band) * line + position] = value;
        if (kMax) row_tap[(row - band) * line + position] = tap;
      }
      __syncthreads();
      for (; makes && r < task.kernel[1]; ++r) {
        const int row = p_own * task.stride[1] + r * task.dilation[1];
        if (row < band) continue;
        if (row >= band_end) break;
        const A value = row_value[(row - band) * line + position];
        if (!kMax) {
          best += value;
          continue;
        }
        const int tap = row_tap[(row - band) * line + position];
        if (tap >= 0 && (wins(value, best) || winner < 0))
          best = value, winner = (t * task.kernel[1] + r) * task.kernel[2] + tap;
      }
    }
  }
  if (!makes) return;
  const int at = task.plane_offset(task.y, plane) + ((o * task.out[1] + p) * task.out[2] + q) * task.y.place;
  y[at] = from_accumulate<T>(kMax ? best : best / A(task.divisor(o, p, q)));
  if (kMax && places != nullptr) store_place(places, task.byte_places, at, winner < 0 ? 0 : winner);
}

template <typename T, bool kMax>
__global__ __launch_bounds__(kThreads, 1) void backward_kernel(const Task task, const T* __restrict__ dy,
                                                               const void* __restrict__ places, T* __restrict__ dx) {
  using A = Accumulate<T>;
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int in_places = task.by_places.divisor;
  if (element >= int64_t(task.planes) * in_places) return;
  int plane = int(element), place;
  if (task.x.place == 1) {
    place = plane, plane = split(place, task.by_places);
  } else {
    place = split(plane, task.by_channels);
    plane += split(place, task.by_places) * task.by_channels.divisor;
  }
  const int x_offset = task.plane_offset(task.x, plane) + place * task.x.place;
  int h = split(place, task.in_width);
  const int d = split(h, task.in_height), in[kMaxSpatial] = {d, h, place};
  int first[kMaxSpatial], last[kMaxSpatial];  // the outputs whose windows reach over this place
#pragma unroll
  for (int i = 0; i < kMaxSpatial; ++i) {
    const int a = in[i] + task.before[i], b = a - (task.kernel[i] - 1) * task.dilation[i];
    first[i] = b <= 0 ? 0 : task.by_stride[i].quotient(b - 1) + 1;
    last[i] = task.by_stride[i].quotient(a);
    if (last[i] >= task.out[i]) last[i] = task.out[i] - 1;
  }
  // The tap through which output i of one axis sees this place, or -1.
  const auto tap_of = [&](int axis, int i) {
    int a = in[axis] + task.before[axis] - i * task.stride[axis];
    const int tap = split(a, task.by_dilation[axis]);
    return a == 0 ? tap : -1;
  };
  const int y_offset = task.plane_offset(task.y, plane);
  A sum = 0;
  for (int o = first[0]; o <= last[0]; ++o) {
    const int t = tap_of(0, o);
    for (int p = first[1]; p <= last[1]; ++p) {
      const int r = tap_of(1, p);
      for (int q = first[2]; q <= last[2]; ++q) {
        const int s = tap_of(2, q);
        if (t < 0 || r < 0 || s < 0) continue;
        const int at = y_offset + ((o * task.out[1] + p) * task.out[2] + q) * task.y.place;
        if (!kMax)
          sum += to_accumulate(dy[at]) / A(task.divisor(o, p, q));
        else if (load_place(places, task.byte_places, at) == (t * task.kernel[1] + r) * task.kernel[2] + s)
          sum += to_accumulate(dy[at]);
      }
    }
  }
  dx[x_offset] = from_accumulate<T>(sum);
}

Task task_of(const PoolGeometry& g) {
  constexpr int64_t kFar = 1 << 30;  // beyond every place: as good as any larger stride or dilation
  Task task = {};
  for (int i = 0; i < kMaxSpatial; ++i) {
    task.in[i] = int(g.input[i]), task.out[i] = int(g.output[i]), task.kernel[i] = int(g.kernel[i]);
    task.stride[i] = int(g.stride[i] < kFar ? g.stride[i] : kFar);
    task.dilation[i] = int(g.dilation[i] < kFar ? g.dilation[i] : kFar);
    task.before[i] = int(g.pad_before[i]), task.after[i] = int(g.pad_after[i]);
    task.by_stride[i] = Divide(task.stride[i]), task.by_dilation[i] = Divide(task.dilation[i]);
  }
  task.by_channels = Divide(g.channels), task.by_places = Divide(g.input_places());
  task.in_height = Divide(g.input[1]), task.in_width = Divide(g.input[2]);
  task.x = strides_of(g.channels, g.input_places(), g.layout);
  task.y = strides_of(g.channels, g.output_places(), g.layout);
  task.include_pad = g.count_include_pad, task.byte_places = g.byte_places();
  task.divisor_override = g.divisor_override;

  // Powers of two that make kThreads together.
  const auto power_up_to = [](int64_t size, int most) {
    int power = 1;
    while (power < most && power < size) power *= 2;
    return power;
  };
  if (g.layout == Layout::contiguous) {
    task.tile_width = power_up_to(g.output[2], kTileWidth);
    task.tile_height = power_up_to(g.output[1], kThreads / task.tile_width);
    task.tile_planes = kThreads / task.tile_width / task.tile_height;
  } else {
    task.tile_planes = power_up_to(g.channels, kLastChannels);
    task.tile_height = power_up_to(g.output[1], kLastHeight);
    task.tile_width = kThreads / task.tile_planes / task.tile_height;
  }
  return task;
}

// run(task, n): the images, as many at a time as 32 bits can count, n being the first.
template <typename Run>
void for_each_piece(const PoolGeometry& g, const Run& run) {
  Task task = task_of(g);
  const int64_t larger = task.x.image > task.y.image ? task.x.image : task.y.image;
  const int64_t most = images_at_once(g.batch, larger);
  for (int64_t n = 0; n < g.batch; n += most) {
    task.planes = int((g.batch - n < most ? g.batch - n : most) * g.channels);
    run(task, n);
  }
}

template <typename T, bool kMax>
void forward(const char* name, const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  for_each_piece(g, [&](const Task& task, int64_t n) {
    const int64_t blocks = ceil_div(task.planes, task.tile_planes) * g.output[0] *
                           ceil_div(g.output[1], task.tile_height) * ceil_div(g.output[2], task.tile_width);
    char* places = static_cast<char*>(args.places_out);
    if (places != nullptr) places += n * task.y.image * (task.byte_places ? 1 : 4);
    launch(name, forward_kernel<T, kMax>, grid_of(blocks), kThreads, 0, args.stream, task,
           static_cast<const T*>(args.input) + n * task.x.image, static_cast<T*>(args.output) + n * task.y.image,
           static_cast<void*>(places));
  });
}

template <typename T, bool kMax>
void backward(const char* name, const PoolArguments& args) {
  for_each_piece(args.geometry, [&](const Task& task, int64_t n) {
    const int64_t elements = int64_t(task.planes) * args.geometry.input_places();
    const char* places = static_cast<const char*>(args.places);
    if (places != nullptr) places += n * task.y.image * (task.byte_places ? 1 : 4);
    launch(name, backward_kernel<T, kMax>, grid_of(ceil_div(elements, kThreads)), kThreads, 0, args.stream, task,
           static_cast<const T*>(args.grad_output) + n * task.y.image, static_cast<const void*>(places),
           static_cast<T*>(args.output) + n * task.x.image);
  });
}

const char* unsupported(const PoolGeometry& g, DType dtype) {
  if (g.adaptive) return "adaptive windows of different sizes";
  if (dtype != DType::float32 && dtype != DType::float64 && dtype != DType::float16 && dtype != DType::bfloat16)
    return "integers";
  if (g.channels * g.input_places() > kMaxElements || g.channels * g.output_places() > kMaxElements)
    return "an image has 2^31 elements or more";
  constexpr int64_t kSide = 1 << 21;  // times a tile's height stays below 2^30
  for (int i = 0; i < kMaxSpatial; ++i)
    if (g.input[i] + g.pad_before[i] + g.pad_after[i] >= kSide || g.stride[i] >= kSide)
      return "a padded side or a stride has 2^21 places or more";
  if (g.window() > kMaxElements) return "a window has 2^31 places or more";
  return nullptr;
}

}  // namespace

const PoolAlgorithm pool_direct = {
    "direct",
    unsupported,
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        forward<typename decltype(type)::type, true>("pool_direct_max_forward", args);
      });
    },
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        backward<typename decltype(type)::type, true>("pool_direct_max_backward", args);
      });
    },
    max_pool_indices,
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        forward<typename decltype(type)::type, false>("pool_direct_avg_forward", args);
      });
    },
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        backward<typename decltype(type)::type, false>("pool_direct_avg_backward", args);
      });
    },
};

}  // namespace convext::cuda
