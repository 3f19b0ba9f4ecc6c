// The gradient of the weight of depthwise layers, channels_last images, any kernel, stride, dilation and padding.
//
// Lanes lie along channels, 16 bytes of them each; a thread has kTaps neighbouring taps of a kernel row for its
// channels in registers, 12 to 24 sums. The threads of all taps are a team, and the teams of a block share out a fixed
// range of pieces of rows of dy. Along a row a window of kTaps vectors of x slides: two loads of 16 bytes, of x and of
// dy, for the multiplications of all those sums; that kernel rows meet the same places is left to the first-level
// cache, which the neighbouring threads share. Other strides and dilations load what they multiply. At the end the
// teams' sums are added in order through shared memory, and left in the workspace; a second kernel adds the parts in
// order (parts.cuh).
//
// Traffic: x and dy once from memory if a block's rows stay in the first-level cache, else as often as the kernel is
// high from the second-level cache. Bound by memory up to 5 x 5.
// Limits: none but 32 bits. Which rows make a part, and so the order of the sums, depends on the geometry, batch
// included, on nothing else.
#include "conv_direct.cuh"
#include "conv_direct_read.cuh"
#include "launch.cuh"
#include "parts.cuh"
#include "vector.cuh"

namespace convext::cuda {
namespace {

constexpr int kPiece = 64;                  // columns of a row of dy
constexpr int kFewTaps = 3, kManyTaps = 6;  // of a thread, more would spill

struct Task {
  Window window;
  Strides x, dy;
  int64_t items, per_part;
  int channels, pieces;
  Divide by_outputs;
  int lanes, channel_blocks;
  int chunks, all_units, units, unit_groups, teams;  // of taps: in a kernel row; in all; in a block
};

// Adds a piece of a row: a window of kTaps places of x slides along. The places begin at `from`, `step` elements apart;
// where the piece reaches past the image's row (!kInside), source(i) says where the i-th lies, -1 for a zero.
template <typename T, int V, int kTaps, bool kInside, typename Source>
__device__ __forceinline__ void slide_row(Accumulate<T> (&sum)[kTaps][V], int columns, const T* __restrict__ dy,
                                          int dy_at, int dy_step, const T* __restrict__ x, int from, int step,
                                          const Source& source) {
  Accumulate<T> seen[kTaps][V];
  const auto load = [&](int slot, int i) {
    const int at = kInside ? from : source(i);
    from += step;
    if (kInside || at >= 0) {
      load_pack<V>(x + at, seen[slot]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) seen[slot][v] = 0;
    }
  };
  const auto use = [&](int q, int u) {
    load((u + kTaps - 1) % kTaps, q + u + kTaps - 1);
    Accumulate<T> value[V];
    load_pack<V>(dy + dy_at, value);
    dy_at += dy_step;
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[i][v] += value[v] * seen[(u + i) % kTaps][v];
  };
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) load(i, i);
  int q = 0;
#pragma unroll 1
  for (; q + kTaps <= columns; q += kTaps)
#pragma unroll
    for (int u = 0; u < kTaps; ++u) use(q, u);
#pragma unroll
  for (int u = 0; u < kTaps - 1; ++u)
    if (q + u < columns) use(q, u);
}

template <typename T, int V, int kTaps, bool kSlide>
__global__ __launch_bounds__(kThreads, 2) void depthwise_last_weight_kernel(const Task task, const T* __restrict__ dy,
                                                                            const T* __restrict__ x,
                                                                            Accumulate<T>* __restrict__ parts) {
  using A = Accumulate<T>;
  CONVEXT_DYNAMIC_SHARED(A, shared);
  const Window& window = task.window;
  const int lane = int(threadIdx.x) % task.lanes, my_unit = int(threadIdx.x) / task.lanes % task.units,
            team = int(threadIdx.x) / task.lanes / task.units;
  int rest = blockIdx.x;
  const int first_unit = rest % task.unit_groups * task.units;
  rest /= task.unit_groups;
  const int channel = (rest % task.channel_blocks * task.lanes + lane) * V, part = rest / task.channel_blocks;
  const int unit = first_unit + my_unit;
  int r = unit / task.chunks;
  const int first_s = (unit - r * task.chunks) * kTaps, t = r / window.kernel[1];
  r -= t * window.kernel[1];
  const bool works = team < task.teams && unit < task.all_units && channel < task.channels;
  const int x_channel = V == 1 ? task.by_outputs.quotient(channel) : channel;
  A sum[kTaps][V] = {};

  const int64_t first = part * task.per_part;
  const int64_t last = first + task.per_part < task.items ? first + task.per_part : task.items;
  for (int64_t item = first + team; works && item < last; item += task.teams) {
    int64_t row = item / task.pieces;
    const int first_q = int(item - row * task.pieces) * kPiece;
    const int64_t plane = row / window.out[1], image = plane / window.out[0];
    const int p = int(row - plane * window.out[1]), o = int(plane - image * window.out[0]);
    const int d = window.source(0, o * window.stride[0] - window.before[0] + t * window.dilation[0]);
    const int h = window.source(1, p * window.stride[1] - window.before[1] + r * window.dilation[1]);
    if (d < 0 || h < 0) continue;
    const int columns = window.out[2] - first_q < kPiece ? window.out[2] - first_q : kPiece;
    const T *dy_image = dy + image * task.dy.image, *x_image = x + image * task.x.image;
    const int dy_row = channel + ((o * window.out[1] + p) * window.out[2] + first_q) * task.dy.place;
    const int x_row = x_channel + (d * window.in[1] + h) * window.in[2] * task.x.place;
    const int start = first_q * window.stride[2] - window.before[2] + first_s * window.dilation[2];
    if constexpr (kSlide) {
      const int end = window.in[2] + window.after[2];  // past what windows see
      const auto source = [&](int i) {
        const int w = start + i < end ? window.source(2, start + i) : -1;
        return w >= 0 ? x_row + w * task.x.place : -1;
      };
      const int at = x_row + start * task.x.place;
      if (start >= 0 && start + columns + kTaps - 1 <= window.in[2])
        slide_row<T, V, kTaps, true>(sum, columns, dy_image, dy_row, task.dy.place, x_image, at, task.x.place, source);
      else
        slide_row<T, V, kTaps, false>(sum, columns, dy_image, dy_row, task.dy.place, x_image, at, task.x.place, source);
    } else {
      for (int q = 0; q < columns; ++q) {
        A value[V];
        load_pack<V>(dy_image + (dy_row + q * task.dy.place), value);
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
          const int w = first_s + i < window.kernel[2]
                            ? window.source(2, start + q * window.stride[2] + i * window.dilation[2])
                            : -1;
          if (w < 0) continue;
          A seen[V];
          load_pack<V>(x_image + (x_row + w * task.x.place), seen);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[i][v] += value[v] * seen[v];
        }
      }
    }
  }

  // Every team's sums: tap and channel of the vector, unit, lane.
  const int sums = kTaps * V * task.units * task.lanes;
#pragma unroll
  for (int i = 0; i < kTaps * V; ++i)
    if (team < task.teams) shared[team * sums + (i * task.units + my_unit) * task.lanes + lane] = sum[i / V][i % V];
  __syncthreads();
  if (team > 0 || !works) return;
  A* const to = parts + part * (int64_t(task.channels) * window.taps);
  for (int i = 0; i < kTaps * V; ++i) {
    const int s = first_s + i / V;
    if (s >= window.kernel[2]) break;
    const int at = (i * task.units + my_unit) * task.lanes + lane;
    A total = shared[at];
    for (int other = 1; other < task.teams; ++other) total += shared[other * sums + at];
    const int tap = (t * window.kernel[1] + r) * window.kernel[2] + s;
    to[(channel + i % V) * window.taps + (window.flip ? window.taps - 1 - tap : tap)] = total;
  }
}

bool slides(const ConvGeometry& g) { return g.stride[2] == 1 && g.dilation[2] == 1; }

// vector: channels of a thread.
int taps_of(const ConvGeometry& g, int vector) {
  return slides(g) && g.kernel[2] > kFewTaps && vector <= 4 ? kManyTaps : kFewTaps;
}

Task task_of(const ConvGeometry& g, int vector) {
  const int taps = taps_of(g, vector);
  Task task = {Window(g), input_strides(g), output_strides(g)};
  task.channels = int(g.out_channels), task.by_outputs = Divide(g.group_outputs());
  task.lanes = power_up_to(ceil_div(g.out_channels, vector), vector == 1 ? 32 : 8);
  task.channel_blocks = int(ceil_div(g.out_channels, task.lanes * vector));
  task.chunks = int(ceil_div(g.kernel[2], taps));
  task.all_units = int(g.kernel[0] * g.kernel[1] * task.chunks);
  task.units = task.all_units < kThreads / task.lanes ? task.all_units : kThreads / task.lanes;
  task.unit_groups = int(ceil_div(task.all_units, task.units));
  task.teams = kThreads / task.lanes / task.units;
  task.pieces = int(ceil_div(g.output[2], kPiece));
  task.items = g.batch * g.output[0] * g.output[1] * task.pieces;
  return task;
}

int64_t parts_of(const Task& task) {
  return parts_for(int64_t(task.channel_blocks) * task.unit_groups, ceil_div(task.items, task.teams));
}

template <typename T, int V>
void run(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  Task task = task_of(g, V);
  const int64_t parts = parts_of(task);
  task.per_part = ceil_div(task.items, parts);
  const int taps = taps_of(g, V);
  auto kernel = slides(g) ? depthwise_last_weight_kernel<T, V, kFewTaps, true>
                          : depthwise_last_weight_kernel<T, V, kFewTaps, false>;
  if constexpr (V <= 4)
    if (taps > kFewTaps) kernel = depthwise_last_weight_kernel<T, V, kManyTaps, true>;
  const size_t shared_bytes = size_t(task.teams) * taps * V * task.units * task.lanes * sizeof(A);
  const char* name = "conv_direct_backward_weight";
  A* sums = static_cast<A*>(args.workspace);
  launch(name, kernel, grid_of(parts * task.channel_blocks * task.unit_groups), kThreads, shared_bytes, args.stream,
         task, static_cast<const T*>(args.grad_output), static_cast<const T*>(args.input), sums);
  sum_parts(name, static_cast<const A*>(sums), g.weight_elements(), parts, static_cast<T*>(args.output), args.stream);
}

}  // namespace

bool conv_direct_depthwise_last_weight_suits(const ConvGeometry& g) {
  return g.layout == Layout::channels_last && g.group_inputs() == 1;
}

// For the longer of the ways that `run` may go: where the tensors lie is not known here.
int64_t conv_direct_depthwise_last_weight_workspace(const ConvGeometry& g, DType dtype) {
  const int64_t one = parts_of(task_of(g, 1)), many = parts_of(task_of(g, int(16 / bytes_of(dtype))));
  return (one > many ? one : many) * g.weight_elements() * accumulate_bytes_of(dtype);
}

void conv_direct_depthwise_last_weight(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kPack<T>;
    if (g.out_channels == g.groups && g.groups % V == 0 && packable(static_cast<const T*>(args.input), V) &&
        packable(static_cast<const T*>(args.grad_output), V))
      run<T, V>(args);
    else
      run<T, 1>(args);
  });
}

}  // namespace convext::cuda
