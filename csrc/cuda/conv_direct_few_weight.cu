// The gradient of the weight of layers with few channels on one side, both layouts, whatever kernel, stride, dilation
// and padding.
//
//   dw[k, c, tap] = sum over n, o p q of dy[n, k, o p q] * x[n, c, source(o p q, tap)]
//
// A block makes one depth of the kernel, of up to 32 k and a few c, from a fixed range of tiles: of dy some rows of up
// to 64 places of each of its k, and what their windows see of x, both staged in shared memory, the padding resolved
// (conv_direct_few.cuh). A thread has four taps of a kernel row, neighbours of one phase of the stride, for 4 or 8 k in
// registers; those of all taps and k are a team, and the teams share out the tile in segments. Along a segment the
// window slides: 4 columns of dy of each k and one vector of x, 16 bytes each, for 64 or 128 multiplications, dy the
// same for most of a warp. At the end the teams' sums are added in order, and left in the workspace; a second kernel
// adds the parts in order (parts.cuh).
//
// Traffic: dy once for every depth of the kernel and every 4 (8) c, x once for every 32 k, halos again from the
// second-level cache; the workspace, at most 256 times the weight, twice. 3 x 3, 3 to 64: bound by memory, 27
// multiplications for a value of dy.
// Limits: a tile of a row fits into 48 kB, else conv_direct_weight.cu does it.
// Which tiles make a part, and so the order of the sums, depends on the geometry, batch included, on nothing else.
#include "conv_direct.cuh"
#include "conv_direct_few.cuh"
#include "parts.cuh"

namespace convext::cuda {
namespace {

constexpr int kTaps = 4, kSegment = 16;                         // of a thread; columns of a segment
constexpr int kTileWidth = 64, kLine = 256, kTilePlaces = 320;  // of dy; where there is one row; in all
constexpr int kMostThreads = 4, kChunk = 8, kBatch = 8;         // along k; c of a block; loads in flight
constexpr int kFewInputs = 4, kFewOutputs = 8, kFewLanes = 4;
constexpr int64_t kLongest = 1 << 14;  // of a stride or a kernel's reach

struct Task {
  Window window;
  Steps h, w;
  Strides x, dy;
  int64_t items, per_part;
  int inputs, outputs, weight_elements;  // channels of a group; of the whole weight
  int channels, channel_tiles, k_threads, k_tiles;
  int tile_height, tile_width, row_tiles, column_tiles;
  int x_rows, dy_pitch;  // of one channel
  Columns x_columns;
  int phases, chunks, units, unit_groups, teams, segments;  // of taps: of a kernel row and phase; in a block
  bool x_vector, dy_vector;                                 // whether 16-byte accesses are aligned
  Divide by_x_rows, by_tile_height, by_dy_pitch;

  template <typename A>
  size_t shared_bytes(int made) const {
    const size_t rows = size_t(channels) * x_rows, dy_rows = size_t(k_threads) * made * tile_height;
    const size_t tiles = rows * x_columns.pitch + dy_rows * dy_pitch, sums = size_t(made) * kTaps * kThreads;
    return (tiles > sums ? tiles : sums) * sizeof(A) + (rows + dy_rows) * sizeof(int);
  }
};

template <typename T, int kMade, bool kSlide>
__global__ __launch_bounds__(kThreads,
                             sizeof(T) == 8 ? 1 : 2) void few_weight_kernel(const Task task, const T* __restrict__ dy,
                                                                            const T* __restrict__ x,
                                                                            Accumulate<T>* __restrict__ parts) {
  using A = Accumulate<T>;
  CONVEXT_DYNAMIC_SHARED(A, shared);
  const Window& window = task.window;
  const Steps &h = task.h, &w = task.w;
  const int k_tile = task.k_threads * kMade, x_pitch = task.x_columns.pitch;
  const int x_rows = task.channels * task.x_rows, dy_rows = k_tile * task.tile_height;
  const int tiles = x_rows * x_pitch + dy_rows * task.dy_pitch, sums = kMade * kTaps * kThreads;
  A *const x_tile = shared, *const dy_tile = shared + x_rows * x_pitch;
  int* const x_row_at = reinterpret_cast<int*>(shared + (tiles > sums ? tiles : sums));
  int* const dy_row_at = x_row_at + x_rows;

  const int tid = threadIdx.x;
  int rest = blockIdx.x;
  const int first_unit = rest % task.unit_groups * task.units;
  rest /= task.unit_groups;
  const int t = rest % window.kernel[0];
  rest /= window.kernel[0];
  const int first_c = rest % task.channel_tiles * task.channels;
  rest /= task.channel_tiles;
  const int first_k = rest % task.k_tiles * k_tile;
  rest /= task.k_tiles;
  const int groups = task.weight_elements / (task.outputs * task.inputs * window.taps);
  const int group = rest % groups, part = rest / groups;
  const int left_c = task.inputs - first_c, channels = left_c < task.channels ? left_c : task.channels;
  const int left_k = task.outputs - first_k, outputs = left_k < k_tile ? left_k : k_tile;

  // A unit: channel c, kernel row r, and of its taps first_s, first_s + tap_step, ... kTaps.
  const int row_chunks = task.phases * task.chunks, tap_step = kSlide ? w.stride : 1;
  struct Unit {
    int c, r, phase, chunk;
  };
  const auto unit_of = [&](int unit) {
    const int row = unit / row_chunks, chunk = unit % row_chunks;
    return Unit{row / h.taps, row % h.taps, chunk / task.chunks, chunk % task.chunks * kTaps};
  };
  const int team = tid / (task.units * task.k_threads), my_k = tid / task.units % task.k_threads;
  const Unit mine = unit_of(first_unit + tid % task.units);
  const int first_s = mine.phase + mine.chunk * tap_step;
  const bool works = team < task.teams && mine.c < channels && first_s < w.taps;
  A sum[kMade][kTaps] = {};

  const int64_t first = part * task.per_part;
  const int64_t last = first + task.per_part < task.items ? first + task.per_part : task.items;
#pragma unroll 1
  for (int64_t item = first; item < last; ++item) {
    int64_t piece = item;
    const int first_q = int(piece % task.column_tiles) * task.tile_width;
    piece /= task.column_tiles;
    const int first_p = int(piece % task.row_tiles) * task.tile_height;
    piece /= task.row_tiles;
    const int o = int(piece % window.out[0]);
    const int64_t image = piece / window.out[0];
    const int d = window.source(0, o * window.stride[0] - window.before[0] + t * window.dilation[0]);
    if (d < 0) continue;  // the same for the whole block
    const int height = h.count - first_p < task.tile_height ? h.count - first_p : task.tile_height;
    const int width = w.count - first_q < task.tile_width ? w.count - first_q : task.tile_width;
    const int x_height = h.seen(height), x_width = w.seen(width);
    const int from_h = first_p * h.stride + h.start, from_w = first_q * w.stride + w.start;

    for (int i = tid; i < x_rows; i += kThreads) {  // nobody reads the old ones: they served the staging alone
      int row = i;
      const int c = split(row, task.by_x_rows);
      const int source_h = c < channels && row < x_height ? window.source(1, from_h + row) : -1;
      x_row_at[i] = source_h < 0 ? -1
                                 : (group * task.inputs + first_c + c) * task.x.channel +
                                       (d * window.in[1] + source_h) * window.in[2] * task.x.place;
    }
    for (int i = tid; i < dy_rows; i += kThreads) {
      int row = i;
      const int k = split(row, task.by_tile_height);
      dy_row_at[i] = k < outputs && row < height
                         ? (group * task.outputs + first_k + k) * task.dy.channel +
                               (o * window.out[1] + first_p + row) * window.out[2] * task.dy.place
                         : -1;
    }
    __syncthreads();
    const auto x_column = [&](int j) {
      const int at = task.x_columns.template operator()<kSlide>(j, w.stride);
      const int source_w = at < x_width ? window.source(2, from_w + at) : -1;
      return source_w * task.x.place;
    };
    const auto dy_column = [&](int j) { return j < width ? (first_q + j) * task.dy.place : -1; };
    const T *const x_image = x + image * task.x.image, *const dy_image = dy + image * task.dy.image;
    if (task.x_vector)
      stage_channels<T>(x_tile, task.x_columns.by_pitch, task.x_rows, channels, x_row_at, x_image, x_column);
    else
      stage_rows<kBatch>(x_tile, x_pitch, channels * task.x_rows, x_pitch, 32, x_row_at, x_image, x_column);
    if (task.dy_vector)
      stage_channels<T>(dy_tile, task.by_dy_pitch, task.tile_height, outputs, dy_row_at, dy_image, dy_column);
    else
      stage_rows<kBatch>(dy_tile, task.dy_pitch, outputs * task.tile_height, task.dy_pitch, 32, dy_row_at, dy_image,
                         dy_column);
    __syncthreads();

    const int k_apart = task.k_threads * task.tile_height * task.dy_pitch;
#pragma unroll 1
    for (int work = team; works && work < height * task.segments; work += task.teams) {
      const int row = work / task.segments, begin = work % task.segments * kSegment;
      if (begin >= width) continue;
      const int columns = width - begin < kSegment ? width - begin : kSegment;
      const A* dy_row = dy_tile + ((my_k * task.tile_height + row) * task.dy_pitch + begin);
      const A* x_row = x_tile + (mine.c * task.x_rows + row * h.stride + mine.r * h.dilation) * x_pitch;
      if constexpr (kSlide) {
        x_row += mine.phase * task.x_columns.line + mine.chunk + begin;
        Four<A> seen[2] = {*reinterpret_cast<const Four<A>*>(x_row), {}};
#pragma unroll 1
        for (int q = 0; q < columns; q += kTaps) {
          seen[1] = *reinterpret_cast<const Four<A>*>(x_row + q + kTaps);
#pragma unroll
          for (int v = 0; v < kMade; ++v) {
            const Four<A> value = *reinterpret_cast<const Four<A>*>(dy_row + v * k_apart + q);
            // What lies past the window is not touched: it may be no number.
#pragma unroll
            for (int j = 0; j < 4; ++j)
              if (q + j < columns)
#pragma unroll
                for (int i = 0; i < kTaps; ++i) sum[v][i] += value.v[j] * seen[(i + j) / 4].v[(i + j) % 4];
          }
          seen[0] = seen[1];
        }
      } else {
        x_row += begin * w.stride + first_s * w.dilation;
#pragma unroll 1
        for (int q = 0; q < columns; ++q) {
          A value[kTaps];
#pragma unroll
          for (int i = 0; i < kTaps; ++i) value[i] = first_s + i < w.taps ? x_row[q * w.stride + i * w.dilation] : A(0);
#pragma unroll
          for (int v = 0; v < kMade; ++v)
#pragma unroll
            for (int i = 0; i < kTaps; ++i) sum[v][i] += dy_row[v * k_apart + q] * value[i];
        }
      }
    }
  }

  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMade * kTaps; ++i) shared[i * kThreads + tid] = sum[i / kTaps][i % kTaps];
  __syncthreads();
  const int mates = task.units * task.k_threads;
  A* const to = parts + part * int64_t(task.weight_elements);
  for (int i = tid; i < kMade * kTaps * mates; i += kThreads) {
    const int mate = i % mates, which = i / mates;
    const Unit unit = unit_of(first_unit + mate % task.units);
    const int k = which / kTaps * task.k_threads + mate / task.units;
    const int s = unit.phase + (unit.chunk + which % kTaps) * tap_step;
    if (unit.c >= channels || k >= outputs || s >= w.taps) continue;
    A total = shared[which * kThreads + mate];
    for (int other = 1; other < task.teams; ++other) total += shared[which * kThreads + other * mates + mate];
    const int tap = (t * window.kernel[1] + unit.r) * window.kernel[2] + s;
    to[((group * task.outputs + first_k + k) * task.inputs + first_c + unit.c) * window.taps +
       (window.flip ? window.taps - 1 - tap : tap)] = total;
  }
}

template <typename A>
constexpr int most_made = sizeof(A) == 8 ? 4 : kFewOutputs;
template <typename A>
int made_of(const ConvGeometry& g) {
  return g.group_outputs() <= 4 ? 4 : most_made<A>;
}

template <typename A>
Task task_of(const ConvGeometry& g) {
  const int made = made_of<A>(g);
  Task task = {Window(g), Steps(g, kHeight, false), Steps(g, kWidth, false), input_strides(g), output_strides(g)};
  const Steps &h = task.h, &w = task.w;
  const bool slide = w.dilation == 1;
  task.inputs = int(g.group_inputs()), task.outputs = int(g.group_outputs());
  task.weight_elements = int(g.weight_elements());
  task.channels = task.inputs < kChunk ? task.inputs : kChunk;
  task.k_threads = power_up_to(ceil_div(task.outputs, made), kMostThreads);
  task.phases = slide && w.stride < w.taps ? w.stride : slide ? w.taps : 1;
  task.chunks = int(ceil_div(ceil_div(w.taps, task.phases), kTaps));
  const int widest = h.count == 1 ? kLine : kTileWidth;
  task.tile_width = w.count < widest ? w.count : widest;
  const int rows = kTilePlaces / task.tile_width;
  // An odd number: so the rows of neighbouring k lie in different banks.
  task.tile_height = ((h.count < rows ? h.count : rows) - 1) | 1;
  const auto measure = [&] {
    task.x_rows = h.seen(task.tile_height);
    task.x_columns = Columns(w, round_up(task.tile_width, 4), slide, true);
    task.dy_pitch = (int(ceil_div(task.tile_width, 4)) | 1) * 4;
  };
  measure();
  const auto fits = [&] { return task.template shared_bytes<A>(made) <= kPlainSharedBytes; };
  while (!fits() && task.tile_height > 1) task.tile_height -= 2, measure();
  while (!fits() && task.channels > kChunk / 2) task.channels /= 2;
  while (!fits() && task.tile_width > kSegment) task.tile_width = (task.tile_width + 1) / 2, measure();
  while (!fits() && task.channels > 1) task.channels /= 2;
  task.channel_tiles = int(ceil_div(task.inputs, task.channels));
  task.k_tiles = int(ceil_div(task.outputs, task.k_threads * made));
  const int64_t units = int64_t(task.channels) * h.taps * task.phases * task.chunks;
  const int most = kThreads / task.k_threads;
  task.units = int(units < most ? units : most), task.unit_groups = int(ceil_div(units, task.units));
  task.teams = most / task.units;
  task.segments = int(ceil_div(task.tile_width, kSegment));
  task.row_tiles = int(ceil_div(h.count, task.tile_height));
  task.column_tiles = int(ceil_div(w.count, task.tile_width));
  task.by_x_rows = Divide(task.x_rows), task.by_tile_height = Divide(task.tile_height);
  task.by_dy_pitch = Divide(task.dy_pitch);
  task.items = g.batch * g.output[0] * task.row_tiles * task.column_tiles;
  return task;
}

int64_t blocks_of(const ConvGeometry& g, const Task& task) {
  return g.groups * task.k_tiles * task.channel_tiles * g.kernel[0] * task.unit_groups;
}

template <typename T>
void run(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  Task task = task_of<A>(g);
  const int64_t blocks = blocks_of(g, task), parts = parts_for(blocks, task.items);
  task.per_part = ceil_div(task.items, parts);
  const T *dy = static_cast<const T*>(args.grad_output), *x = static_cast<const T*>(args.input);
  const bool last = g.layout == Layout::channels_last;
  const auto vectors = [&](int64_t channels, int staged, const T* data) {
    return last && channels % kPack<T> == 0 && staged % kPack<T> == 0 && packable(data, kPack<T>);
  };
  const int made = made_of<A>(g);
  task.x_vector = vectors(task.inputs, task.channels, x);
  task.dy_vector = vectors(task.outputs, task.k_threads * made, dy);
  const bool slide = task.w.dilation == 1;
  auto kernel = slide ? few_weight_kernel<T, 4, true> : few_weight_kernel<T, 4, false>;
  if constexpr (sizeof(T) <= 4)
    if (made > 4) kernel = slide ? few_weight_kernel<T, kFewOutputs, true> : few_weight_kernel<T, kFewOutputs, false>;
  const char* name = "conv_direct_backward_weight";
  A* sums = static_cast<A*>(args.workspace);
  launch(name, kernel, grid_of(blocks * parts), kThreads, task.template shared_bytes<A>(made), args.stream, task, dy, x,
         sums);
  sum_parts(name, static_cast<const A*>(sums), g.weight_elements(), parts, static_cast<T*>(args.output), args.stream);
}

template <typename A>
bool fits(const ConvGeometry& g) {
  return task_of<A>(g).template shared_bytes<A>(made_of<A>(g)) <= kPlainSharedBytes;
}

}  // namespace

bool conv_direct_few_weight_suits(const ConvGeometry& g, DType dtype) {
  if (g.group_inputs() > kFewInputs && g.group_outputs() > kFewOutputs) return false;
  // Depthwise, or a single channel made from planes, is for conv_direct_depthwise*_weight.cu; but that for
  // channels_last has its lanes along channels.
  const bool planes = (g.group_inputs() == 1 && g.group_outputs() < kFewInputs) || g.group_outputs() == 1;
  if (planes && (g.layout == Layout::contiguous || (g.groups > 1 && g.out_channels >= kFewLanes))) return false;
  for (int axis : {kHeight, kWidth})
    if (g.stride[axis] > kLongest || g.dilation[axis] > kLongest || g.kernel[axis] * g.dilation[axis] > kLongest)
      return false;
  return dtype == DType::float64 ? fits<double>(g) : fits<float>(g);
}

int64_t conv_direct_few_weight_workspace(const ConvGeometry& g, DType dtype) {
  const Task task = dtype == DType::float64 ? task_of<double>(g) : task_of<float>(g);
  return parts_for(blocks_of(g, task), task.items) * g.weight_elements() * accumulate_bytes_of(dtype);
}

void conv_direct_few_weight(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args); });
}

}  // namespace convext::cuda
