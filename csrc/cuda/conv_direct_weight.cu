// The gradient of the weight, directly: every element summed over images and places by one block, or by several, a part
// each, in a fixed order.
//
//   dw[k, c, tap] = sum over n, o p q of dy[n, k, o p q] * x[n, c, source(o p q, tap)]
//
// tile_kernel: a block makes a tile of 32 k x 32 j, j being c and tap together (so that first layers of 3 channels fill
// it too). Stages of 32 places of dy and of x, its windows resolved on the way, pass through shared memory; the 256
// threads are four teams of 64, each of which takes 8 places of a stage and keeps 4 x 4 sums a thread; at the end the
// teams' sums are added in order. Two 16-byte shared loads for 16 multiplications; x and dy are read once per tile.
// Where there are too few tiles to fill a GPU, the stages are cut into parts, which parts.cuh adds.
//
// lane_kernel: where a group has few outputs (depthwise above all), a block makes kLaneTaps taps of one kernel row, of
// one channel or, for channels_last, of 32 neighbouring ones, so that loads are coalesced either way; its threads share
// out the places and their sums meet in a tree in shared memory.
#include "conv_direct.cuh"

#include "dtype.cuh"
#include "launch.cuh"
#include "parts.cuh"
#include "window.cuh"

namespace convext::cuda {
namespace {

constexpr int kTile = 32, kStage = 32, kTeams = 4, kSide = 8, kMicro = 4;  // kSide x kSide threads a team
static_assert(kTeams * kSide * kSide == kThreads && kSide * kMicro == kTile, "the teams' threads cover the tile");
constexpr int kLoads = kTile * kStage / kThreads;
constexpr int kShortestPart = 4;  // stages
constexpr int kLaneTaps = 8, kLaneOutputs = 4, kLanes = 32;

struct Task {
  Window window;
  Strides x, dy;
  int64_t images;
  int images_at_once;           // as many as 32-bit offsets reach
  int64_t per_part;             // stages
  int groups, inputs, outputs;  // channels of a group
  Divide by_places, by_inputs, by_taps, by_kernel_height, by_kernel_width;
};

// The padded place, per axis, that output place o sees first.
__device__ __forceinline__ Place32 start_of(const Window& window, Place32 o) {
  return {o.d * window.stride[0] - window.before[0], o.h * window.stride[1] - window.before[1],
          o.w * window.stride[2] - window.before[2]};
}

template <typename T, bool kChannelsLast>
__global__ __launch_bounds__(kThreads, 1) void tile_kernel(const Task task, const T* __restrict__ dy,
                                                           const T* __restrict__ x, T* __restrict__ dw,
                                                           Accumulate<T>* __restrict__ parts) {
  using A = Accumulate<T>;
  __shared__ Four<A> dy_tile[kStage][kTile / 4 + 1], x_tile[kStage][kTile / 4 + 1];
  __shared__ A team_sums[kTeams - 1][kMicro * kMicro][kSide * kSide];

  const Window& window = task.window;
  const int columns = task.inputs * window.taps, tid = threadIdx.x;
  const int j_tiles = (columns - 1) / kTile + 1, k_tiles = (task.outputs - 1) / kTile + 1;
  const int first_j = int(blockIdx.x) % j_tiles * kTile, first_k = int(blockIdx.x) / j_tiles % k_tiles * kTile;
  const int group = int(blockIdx.x) / j_tiles / k_tiles % task.groups;
  const int part = int(blockIdx.x) / j_tiles / k_tiles / task.groups;

  // Where this thread loads: places along lanes, or channels (k, and j with c fastest) along lanes.
  int stage_place[kLoads], row[kLoads], x_channel[kLoads];
  Place32 tap_at[kLoads];  // times dilation
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int slow = tid / 32 + i * (kThreads / 32), fast = tid % 32;
    stage_place[i] = kChannelsLast ? slow : fast;
    row[i] = kChannelsLast ? fast : slow;
    int c, tap = first_j + row[i];
    if (kChannelsLast) {
      c = tap, tap = split(c, task.by_inputs);
    } else {
      c = split(tap, task.by_taps);
    }
    x_channel[i] = first_j + row[i] < columns ? (group * task.inputs + c) * task.x.channel : -1;
    int s = tap, r = split(s, task.by_kernel_width);
    const int t = split(r, task.by_kernel_height);
    tap_at[i] = {t * window.dilation[0], r * window.dilation[1], s * window.dilation[2]};
  }
  const int team = tid / (kSide * kSide), mate = tid % (kSide * kSide), my_k = mate / kSide, my_j = mate % kSide;
  A sum[kMicro][kMicro] = {};

  int64_t before = part * task.per_part, left = task.per_part;  // stages
  for (int64_t n = 0; n < task.images; n += task.images_at_once) {
    const int images = int(task.images - n < task.images_at_once ? task.images - n : task.images_at_once);
    const int places = images * window.out_places, stages = (places - 1) / kStage + 1;
    const T *x_now = x + n * task.x.image, *dy_now = dy + n * task.dy.image;
    const int begin = int(before < stages ? before : stages);
    const int end = int(left < stages - begin ? begin + left : stages);
    before -= begin, left -= end - begin;
    for (int stage = begin; stage < end; ++stage) {
      const int first = stage * kStage;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        A dy_value = 0, x_value = 0;
        int place = first + stage_place[i];
        if (place < places) {
          const int image = split(place, task.by_places), k = first_k + row[i];
          if (k < task.outputs)
            dy_value = to_accumulate(
                dy_now[image * task.dy.image + (group * task.outputs + k) * task.dy.channel + place * task.dy.place]);
          const Place32 at = start_of(window, window.output_place(place));
          const int d = window.source(0, at.d + tap_at[i].d), h = window.source(1, at.h + tap_at[i].h),
                    w = window.source(2, at.w + tap_at[i].w);
          if (x_channel[i] >= 0 && d >= 0 && h >= 0 && w >= 0)
            x_value = to_accumulate(x_now[image * task.x.image + x_channel[i] +
                                          ((d * window.in[1] + h) * window.in[2] + w) * task.x.place]);
        }
        dy_tile[stage_place[i]][row[i] / 4].v[row[i] % 4] = dy_value;
        x_tile[stage_place[i]][row[i] / 4].v[row[i] % 4] = x_value;
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kStage / kTeams; ++i) {
        const Four<A> k = dy_tile[team * (kStage / kTeams) + i][my_k], j = x_tile[team * (kStage / kTeams) + i][my_j];
#pragma unroll
        for (int a = 0; a < kMicro; ++a)
#pragma unroll
          for (int b = 0; b < kMicro; ++b) sum[a][b] += k.v[a] * j.v[b];
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kMicro * kMicro; ++i)
    if (team > 0) team_sums[team - 1][i][mate] = sum[i / kMicro][i % kMicro];
  __syncthreads();
  if (team > 0) return;
#pragma unroll
  for (int i = 0; i < kMicro * kMicro; ++i) {
    A total = sum[i / kMicro][i % kMicro];
    for (int other = 0; other < kTeams - 1; ++other) total += team_sums[other][i][mate];
    const int k = first_k + my_k * kMicro + i / kMicro, column = first_j + my_j * kMicro + i % kMicro;
    if (k >= task.outputs || column >= columns) continue;
    int c, tap = column;
    if (kChannelsLast) {
      c = tap, tap = split(c, task.by_inputs);
    } else {
      c = split(tap, task.by_taps);
    }
    if (window.flip) tap = window.taps - 1 - tap;
    const int64_t at = ((group * task.outputs + k) * task.inputs + c) * window.taps + tap;
    if (parts == nullptr)
      dw[at] = from_accumulate<T>(total);
    else
      parts[part * (int64_t(task.groups) * task.outputs * columns) + at] = total;
  }
}

// Block: lanes of k, one c of the group, a kernel row t r, and taps [first, first + kLaneTaps) of it.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void lane_kernel(const Task task, int lanes, Divide by_outputs,
                                                           const T* __restrict__ dy, const T* __restrict__ x,
                                                           T* __restrict__ dw) {
  using A = Accumulate<T>;
  __shared__ A sums[kLaneTaps][kThreads];

  const Window& window = task.window;
  const int rows = window.kernel[0] * window.kernel[1], pieces = (window.kernel[2] - 1) / kLaneTaps + 1;
  int rest = blockIdx.x;
  const int first = rest % pieces * kLaneTaps, r = rest / pieces % window.kernel[1],
            t = rest / pieces / window.kernel[1] % window.kernel[0];
  rest = rest / pieces / rows;
  const int c = rest % task.inputs, lane = int(threadIdx.x) % lanes, k = rest / task.inputs * lanes + lane;
  const bool inside = k < task.groups * task.outputs;
  const int x_channel = (by_outputs.quotient(k) * task.inputs + c) * task.x.channel;
  const int taps = window.kernel[2] - first < kLaneTaps ? window.kernel[2] - first : kLaneTaps;
  A sum[kLaneTaps] = {};

  for (int64_t n = 0; inside && n < task.images; n += task.images_at_once) {
    const int images = int(task.images - n < task.images_at_once ? task.images - n : task.images_at_once);
    const int places = images * window.out_places;
    const T *x_now = x + n * task.x.image + x_channel, *dy_now = dy + n * task.dy.image + k * task.dy.channel;
    for (int i = int(threadIdx.x) / lanes; i < places; i += kThreads / lanes) {
      int place = i;
      const int image = split(place, task.by_places);
      const Place32 at = start_of(window, window.output_place(place));
      const int d = window.source(0, at.d + t * window.dilation[0]),
                h = window.source(1, at.h + r * window.dilation[1]);
      if (d < 0 || h < 0) continue;
      const A value = to_accumulate(dy_now[image * task.dy.image + place * task.dy.place]);
      const T* x_row = x_now + image * task.x.image + (d * window.in[1] + h) * window.in[2] * task.x.place;
#pragma unroll
      for (int s = 0; s < kLaneTaps; ++s) {
        const int w = s < taps ? window.source(2, at.w + (first + s) * window.dilation[2]) : -1;
        if (w >= 0) sum[s] += value * to_accumulate(x_row[w * task.x.place]);
      }
    }
  }

#pragma unroll
  for (int s = 0; s < kLaneTaps; ++s) sums[s][threadIdx.x] = sum[s];
  for (int half = kThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < half * kLaneTaps; i += kThreads)
      sums[i / half][i % half] += sums[i / half][i % half + half];
  }
  __syncthreads();
  const int s = int(threadIdx.x) / lanes;
  if (s >= taps || !inside) return;
  int tap = (t * window.kernel[1] + r) * window.kernel[2] + first + s;
  if (window.flip) tap = window.taps - 1 - tap;
  dw[(k * task.inputs + c) * window.taps + tap] = from_accumulate<T>(sums[s][lane]);
}
static_assert(kLaneTaps * kLanes <= kThreads, "a thread writes at most one element");

bool few_outputs(const ConvGeometry& g) {
  return g.group_outputs() <= kLaneOutputs && (g.layout == Layout::contiguous || g.out_channels >= kLanes);
}

int64_t tiles_of(const ConvGeometry& g) {
  return g.groups * ceil_div(g.group_outputs(), kTile) * ceil_div(g.group_inputs() * g.taps(), kTile);
}

// The stages of a tile: of each piece of the batch that a kernel counts in 32 bits, and of all.
int64_t stages_of(const ConvGeometry& g) {
  const int64_t inputs = g.in_channels * g.input_places(), outputs = g.out_channels * g.output_places();
  const int64_t most = images_at_once(g.batch, inputs > outputs ? inputs : outputs), last = g.batch % most;
  const auto stages = [&](int64_t images) { return ceil_div(images * g.output_places(), kStage); };
  return g.batch / most * stages(most) + (last > 0 ? stages(last) : 0);
}

int64_t parts_of(const ConvGeometry& g) { return parts_for(tiles_of(g), ceil_div(stages_of(g), kShortestPart)); }

template <typename T>
void run(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const Strides x = input_strides(g), dy = output_strides(g);
  const T *dy_data = static_cast<const T*>(args.grad_output), *x_data = static_cast<const T*>(args.input);
  T* dw = static_cast<T*>(args.output);
  const int64_t larger = x.image > dy.image ? x.image : dy.image;
  const int64_t parts = parts_of(g);
  const Task task = {Window(g),
                     x,
                     dy,
                     g.batch,
                     int(images_at_once(g.batch, larger)),
                     ceil_div(stages_of(g), parts),
                     int(g.groups),
                     int(g.group_inputs()),
                     int(g.group_outputs()),
                     Divide(g.output_places()),
                     Divide(g.group_inputs()),
                     Divide(g.taps()),
                     Divide(g.kernel[1]),
                     Divide(g.kernel[2])};
  const bool contiguous = g.layout == Layout::contiguous;
  const char* name = "conv_direct_backward_weight";
  if (few_outputs(g)) {
    const int lanes = contiguous ? 1 : kLanes;
    const int64_t blocks = ceil_div(g.out_channels, lanes) * g.group_inputs() * g.kernel[0] * g.kernel[1] *
                           ceil_div(g.kernel[2], kLaneTaps);
    launch(name, lane_kernel<T>, grid_of(blocks), kThreads, 0, args.stream, task, lanes, Divide(g.group_outputs()),
           dy_data, x_data, dw);
    return;
  }
  using A = Accumulate<T>;
  A* sums = parts > 1 ? static_cast<A*>(args.workspace) : nullptr;
  launch(name, contiguous ? tile_kernel<T, false> : tile_kernel<T, true>, grid_of(tiles_of(g) * parts), kThreads, 0,
         args.stream, task, dy_data, x_data, dw, sums);
  if (parts > 1) sum_parts(name, static_cast<const A*>(sums), g.weight_elements(), parts, dw, args.stream);
}

}  // namespace

int64_t conv_direct_weight_workspace(const ConvGeometry& geometry, DType dtype) {
  const ConvGeometry g = of_planes(geometry);
  if (conv_direct_few_weight_suits(g, dtype)) return conv_direct_few_weight_workspace(g, dtype);
  if (conv_direct_depthwise_weight_suits(g, dtype)) return conv_direct_depthwise_weight_workspace(g, dtype);
  if (conv_direct_depthwise_last_weight_suits(g)) return conv_direct_depthwise_last_weight_workspace(g, dtype);
  const int64_t parts = few_outputs(g) ? 1 : parts_of(g);
  return parts > 1 ? parts * g.weight_elements() * accumulate_bytes_of(dtype) : 0;
}

void conv_direct_backward_weight(const ConvArguments& arguments) {
  ConvArguments args = arguments;
  args.geometry = of_planes(arguments.geometry);
  if (conv_direct_few_weight_suits(args.geometry, args.dtype)) return conv_direct_few_weight(args);
  if (conv_direct_depthwise_weight_suits(args.geometry, args.dtype)) return conv_direct_depthwise_weight(args);
  if (conv_direct_depthwise_last_weight_suits(args.geometry)) return conv_direct_depthwise_last_weight(args);
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args); });
}

}  // namespace convext::cuda
