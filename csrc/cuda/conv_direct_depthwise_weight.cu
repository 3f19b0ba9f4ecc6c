// The gradient of the weight of depthwise layers, contiguous images, any kernel, stride, dilation and padding. Also of
// any group that has few outputs.
//
//   dw[k, tap] = sum over n, o p q of dy[n, k, o p q] * x[n, c, source(o p q, tap)]
//
// A block makes one kernel plane of one k and c from a fixed range of tiles: of dy up to 64 x 64 places (or a long
// piece of a line), small images several at a time, and what their windows see of x, both staged in shared memory, the
// padding resolved. Taps belong to threads: one has 4 or 8 neighbouring taps of a kernel row in registers; those of
// all taps are a team, and the teams share out the rows of a tile in segments. Along a segment the window slides: 4
// columns of dy and one vector of x, 16 bytes each, for 16 or 32 multiplications, dy the same for a whole team. Rows
// and segments lie an odd number of vectors apart, so that the lanes of a warp meet different banks. At the end the
// teams' sums are added in order, and left in the workspace; a second kernel adds the parts in order (parts.cuh).
//
// Traffic: x and dy once, halos again from the second-level cache; the workspace, some hundred times the weight, twice.
// Bound by memory up to 5 x 5 or so; the 31 x 31 kernel by multiplications.
// Limits: a tile fits into 48 kB, else lane_kernel of conv_direct_weight.cu does it.
// Which tiles make a part, and so the order of the sums, depends on the geometry, batch included, on nothing else.
#include "conv_direct.cuh"
#include "conv_direct_read.cuh"
#include "launch.cuh"
#include "parts.cuh"

namespace convext::cuda {
namespace {

constexpr int kBatch = 8, kSegment = 36, kLineSegment = 20, kSide = 64, kLongLine = 1024, kFewOutputs = 4;
static_assert(kSegment / 4 % 2 == 1 && kLineSegment / 4 % 2 == 1, "segments begin at different banks");

struct Task {
  Window window;
  Strides x, dy;
  int64_t batch, items, per_part;
  int inputs, weight_elements;  // channels of a group; of the whole weight
  Divide by_outputs;
  int stacked, tile_height, tile_width;  // images of a tile, rows and columns of dy in it
  int row_tiles, column_tiles;
  int x_height, x_width, x_pitch, dy_pitch;     // of one image's part of a tile
  int x_lanes, dy_lanes;                        // threads along a staged row
  int chunks, units, unit_groups, teams;        // of taps: in a kernel row; in a block; blocks of a kernel plane
  int segment, segments;                        // columns of one; how many of a row
  Divide by_x_height, by_tile_height, by_rows;  // by_rows: all of a tile

  int64_t x_elements() const { return int64_t(stacked) * x_height * x_pitch; }
  int64_t dy_elements() const { return int64_t(stacked) * tile_height * dy_pitch; }
  template <typename A>
  size_t shared_bytes(int taps) const {
    const size_t tiles = size_t(x_elements() + dy_elements()), sums = size_t(units) * teams * taps;
    return (tiles > sums ? tiles : sums) * sizeof(A) + size_t(stacked) * (x_height + tile_height) * sizeof(int);
  }
};

template <typename T, int kTaps, bool kSlide>
__global__ __launch_bounds__(kThreads, 2) void depthwise_weight_kernel(const Task task, const T* __restrict__ dy,
                                                                       const T* __restrict__ x,
                                                                       Accumulate<T>* __restrict__ parts) {
  using A = Accumulate<T>;
  CONVEXT_DYNAMIC_SHARED(A, shared);
  const Window& window = task.window;
  const int x_rows = task.stacked * task.x_height, dy_rows = task.stacked * task.tile_height;
  const int tiles = x_rows * task.x_pitch + dy_rows * task.dy_pitch, sums = task.units * task.teams * kTaps;
  A *const x_tile = shared, *const dy_tile = shared + x_rows * task.x_pitch;
  int* const x_row_at = reinterpret_cast<int*>(shared + (tiles > sums ? tiles : sums));
  int* const dy_row_at = x_row_at + x_rows;

  // Block: a group of taps, kernel depth t, dw's row `pair` (k and c), a part of the tiles.
  const int tid = threadIdx.x;
  int rest = blockIdx.x;
  const int first_unit = rest % task.unit_groups * task.units;
  rest /= task.unit_groups;
  const int t = rest % window.kernel[0];
  rest /= window.kernel[0];
  const int pairs = task.weight_elements / window.taps, pair = rest % pairs, part = rest / pairs;
  const int k = pair / task.inputs, c = pair - k * task.inputs;
  const int x_channel = (task.by_outputs.quotient(k) * task.inputs + c) * task.x.channel;

  const int team = tid / task.units, unit = first_unit + tid % task.units;
  const int r = unit / task.chunks, s = unit % task.chunks * kTaps;
  const bool works = team < task.teams && r < window.kernel[1];
  A sum[kTaps] = {};

  const int64_t first = part * task.per_part;
  const int64_t last = first + task.per_part < task.items ? first + task.per_part : task.items;
  for (int64_t item = first; item < last; ++item) {
    int64_t piece = item;
    const int first_q = int(piece % task.column_tiles) * task.tile_width;
    piece /= task.column_tiles;
    const int first_p = int(piece % task.row_tiles) * task.tile_height;
    piece /= task.row_tiles;
    const int o = int(piece % window.out[0]);
    const int64_t image = piece / window.out[0] * task.stacked;
    const int d = window.source(0, o * window.stride[0] - window.before[0] + t * window.dilation[0]);
    if (d < 0) continue;  // the same for the whole block
    const int images = task.batch - image < task.stacked ? int(task.batch - image) : task.stacked;
    const int height = window.out[1] - first_p < task.tile_height ? window.out[1] - first_p : task.tile_height;
    const int width = window.out[2] - first_q < task.tile_width ? window.out[2] - first_q : task.tile_width;
    const int x_height = (height - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1;
    const int x_width = (width - 1) * window.stride[2] + (window.kernel[2] - 1) * window.dilation[2] + 1;
    const int first_h = first_p * window.stride[1] - window.before[1];
    const int first_w = first_q * window.stride[2] - window.before[2];

    for (int i = tid; i < x_rows; i += blockDim.x) {  // nobody reads the old ones: they served the staging alone
      int row = i;
      const int z = split(row, task.by_x_height);
      const int h = z < images && row < x_height ? window.source(1, first_h + row) : -1;
      x_row_at[i] = h < 0 ? -1 : z * task.x.image + x_channel + (d * window.in[1] + h) * window.in[2];
    }
    for (int i = tid; i < dy_rows; i += blockDim.x) {
      int p = i;
      const int z = split(p, task.by_tile_height);
      dy_row_at[i] = z < images && p < height
                         ? z * task.dy.image + k * task.dy.channel + (o * window.out[1] + first_p + p) * window.out[2]
                         : -1;
    }
    __syncthreads();
    stage_rows<kBatch>(x_tile, task.x_pitch, x_rows, x_width, task.x_lanes, x_row_at, x + image * task.x.image,
                       [&](int j) { return window.source(2, first_w + j); });
    stage_rows<kBatch>(dy_tile, task.dy_pitch, dy_rows, width, task.dy_lanes, dy_row_at, dy + image * task.dy.image,
                       [&](int j) { return first_q + j; });
    __syncthreads();

    for (int work = team; works && work < dy_rows * task.segments; work += task.teams) {
      int row = work;
      const int begin = split(row, task.by_rows) * task.segment;
      int p = row;
      const int z = split(p, task.by_tile_height);
      if (z >= images || p >= height || begin >= width) continue;
      const int columns = width - begin < task.segment ? width - begin : task.segment;
      const A* dy_row = dy_tile + row * task.dy_pitch + begin;
      const A* x_row = x_tile + (z * task.x_height + p * window.stride[1] + r * window.dilation[1]) * task.x_pitch +
                       begin * window.stride[2] + s * window.dilation[2];
      if constexpr (kSlide) {
        Four<A> seen[kTaps / 4 + 1];
#pragma unroll
        for (int i = 0; i < kTaps / 4; ++i) seen[i] = reinterpret_cast<const Four<A>*>(x_row)[i];
        const auto use = [&](const Four<A>& value, int j) {
#pragma unroll
          for (int i = 0; i < kTaps; ++i) sum[i] += value.v[j] * seen[(i + j) / 4].v[(i + j) % 4];
        };
        int q = 0;
#pragma unroll 3
        for (; q + 4 <= columns; q += 4) {
          const Four<A> value = *reinterpret_cast<const Four<A>*>(dy_row + q);
          seen[kTaps / 4] = *reinterpret_cast<const Four<A>*>(x_row + q + kTaps);
#pragma unroll
          for (int j = 0; j < 4; ++j) use(value, j);
#pragma unroll
          for (int i = 0; i < kTaps / 4; ++i) seen[i] = seen[i + 1];
        }
        if (q < columns) {
          const Four<A> value = *reinterpret_cast<const Four<A>*>(dy_row + q);
          seen[kTaps / 4] = *reinterpret_cast<const Four<A>*>(x_row + q + kTaps);
          use(value, 0);
          if (q + 1 < columns) use(value, 1);
          if (q + 2 < columns) use(value, 2);
        }
      } else {
        for (int q = 0; q < columns; ++q) {
          const A value = dy_row[q];
#pragma unroll
          for (int i = 0; i < kTaps; ++i) sum[i] += value * x_row[q * window.stride[2] + i * window.dilation[2]];
        }
      }
    }
  }

  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTaps; ++i)
    if (team < task.teams) shared[(team * task.units + unit - first_unit) * kTaps + i] = sum[i];
  __syncthreads();
  A* const to = parts + part * int64_t(task.weight_elements) + pair * window.taps;
  for (int i = tid; i < task.units * kTaps; i += blockDim.x) {
    const int row = (first_unit + i / kTaps) / task.chunks,
              column = (first_unit + i / kTaps) % task.chunks * kTaps + i % kTaps;
    if (row >= window.kernel[1] || column >= window.kernel[2]) continue;
    A total = shared[i];
    for (int other = 1; other < task.teams; ++other) total += shared[other * task.units * kTaps + i];
    const int tap = (t * window.kernel[1] + row) * window.kernel[2] + column;
    to[window.flip ? window.taps - 1 - tap : tap] = total;
  }
}

bool slides(const ConvGeometry& g) { return g.stride[2] == 1 && g.dilation[2] == 1; }
int taps_of(const ConvGeometry& g) { return slides(g) && g.kernel[2] > 4 ? 8 : 4; }

// The least odd number of vectors for `size` elements.
int odd_pitch(int64_t size) { return (int(ceil_div(size, 4)) | 1) * 4; }

template <typename A>
Task task_of(const ConvGeometry& g) {
  const int taps = taps_of(g);
  Task task = {Window(g), input_strides(g), output_strides(g), g.batch};
  task.inputs = int(g.group_inputs()), task.weight_elements = int(g.weight_elements());
  task.by_outputs = Divide(g.group_outputs());
  task.chunks = int(ceil_div(g.kernel[2], taps));
  const int64_t units = g.kernel[1] * task.chunks;
  task.units = int(units < kThreads ? units : kThreads), task.unit_groups = int(ceil_div(units, task.units));
  task.teams = kThreads / task.units;

  const auto least = [](int64_t a, int64_t b) { return int(a < b ? a : b); };
  task.tile_height = least(g.output[1], kSide);
  task.tile_width = least(g.output[2], g.output[1] == 1 ? kLongLine : kSide);
  const auto measure = [&] {
    task.row_tiles = int(ceil_div(g.output[1], task.tile_height));
    task.column_tiles = int(ceil_div(g.output[2], task.tile_width));
    task.x_height = int((task.tile_height - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1);
    task.x_width = int((task.tile_width - 1) * g.stride[2] + (int64_t(task.chunks) * taps - 1) * g.dilation[2] + 1);
    task.x_pitch = odd_pitch(task.x_width + 4), task.dy_pitch = odd_pitch(task.tile_width);
  };
  task.stacked = 1;
  measure();
  const auto fits = [&] { return task.template shared_bytes<A>(taps) <= kPlainSharedBytes; };
  while (!fits() && task.tile_height > 1) task.tile_height = (task.tile_height + 1) / 2, measure();
  while (!fits() && task.tile_width > 4) task.tile_width = (task.tile_width + 1) / 2, measure();
  if (task.row_tiles == 1) {
    const int64_t larger = task.x.image > task.dy.image ? task.x.image : task.dy.image;
    const int most = least(images_at_once(g.batch, larger), kSide / task.tile_height);
    while (2 * task.stacked <= most) {
      task.stacked *= 2;
      if (fits()) continue;
      task.stacked /= 2;
      break;
    }
  }
  task.x_lanes = power_up_to(task.x_width, 32), task.dy_lanes = power_up_to(task.tile_width, 32);
  task.segment = g.output[1] == 1 ? kLineSegment : kSegment;
  task.segments = int(ceil_div(task.tile_width, task.segment));
  task.by_x_height = Divide(task.x_height), task.by_tile_height = Divide(task.tile_height);
  task.by_rows = Divide(task.stacked * task.tile_height);
  task.items = ceil_div(g.batch, task.stacked) * g.output[0] * task.row_tiles * task.column_tiles;
  return task;
}

int64_t blocks_of(const Task& task) {
  return int64_t(task.weight_elements / task.window.taps) * task.window.kernel[0] * task.unit_groups;
}

template <typename T>
void run(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  Task task = task_of<A>(g);
  const int64_t blocks = blocks_of(task), parts = parts_for(blocks, task.items);
  task.per_part = ceil_div(task.items, parts);
  A* sums = static_cast<A*>(args.workspace);
  const int taps = taps_of(g);
  const char* name = "conv_direct_backward_weight";
  launch(name,
         !slides(g)  ? depthwise_weight_kernel<T, 4, false>
         : taps == 4 ? depthwise_weight_kernel<T, 4, true>
                     : depthwise_weight_kernel<T, 8, true>,
         grid_of(blocks * parts), kThreads, task.template shared_bytes<A>(taps), args.stream, task,
         static_cast<const T*>(args.grad_output), static_cast<const T*>(args.input), sums);
  sum_parts(name, static_cast<const A*>(sums), g.weight_elements(), parts, static_cast<T*>(args.output), args.stream);
}

}  // namespace

bool conv_direct_depthwise_weight_suits(const ConvGeometry& g, DType dtype) {
  if (g.layout != Layout::contiguous || g.group_outputs() > kFewOutputs) return false;
  constexpr int64_t kLongest = 1 << 16;  // of what a tile sees: 32 bits hold its area
  for (int axis : {kHeight, kWidth})
    if (g.stride[axis] > kLongest || g.dilation[axis] > kLongest || g.kernel[axis] * g.dilation[axis] > kLongest)
      return false;
  const int taps = taps_of(g);
  return dtype == DType::float64 ? task_of<double>(g).shared_bytes<double>(taps) <= kPlainSharedBytes
                                 : task_of<float>(g).shared_bytes<float>(taps) <= kPlainSharedBytes;
}

int64_t conv_direct_depthwise_weight_workspace(const ConvGeometry& g, DType dtype) {
  const Task task = dtype == DType::float64 ? task_of<double>(g) : task_of<float>(g);
  return parts_for(blocks_of(task), task.items) * g.weight_elements() * accumulate_bytes_of(dtype);
}

void conv_direct_depthwise_weight(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args); });
}

}  // namespace convext::cuda
