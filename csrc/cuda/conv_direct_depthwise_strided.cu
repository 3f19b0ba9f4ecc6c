// Depthwise layers of contiguous images, strided or dilated: the outputs and the gradient of the input. Also any group
// that makes few channels.
//
// As conv_direct_depthwise.cu, what a tile's windows see is staged in shared memory, its padding resolved. A thread
// makes kRows places of one column; neighbouring lanes make neighbouring columns. One place meets every tap in the
// outputs, and in the gradient those that its remainder by the stride leaves: taps first, first + step, ..., and what
// they read lies evenly spaced. So one loop does both: a weight and kRows values from shared memory, kRows
// multiplications. A thread's rows lie the stride apart in the gradient, so that they meet the same taps.
//
// Traffic: what is read once, halos again from the second-level cache; what is made once. Bound by memory: at stride 2
// an output of 3 x 3 costs 20 bytes and some 40 instructions, where an H200 issues 120 in that time.
// Limits: strides up to kMaxStride; a tile fits into 48 kB; else lane_kernel. A thread sums an element alone, in an
// order that depends on nothing but the geometry of one image.
#include "conv_direct.cuh"
#include "conv_direct_read.cuh"
#include "launch.cuh"

namespace convext::cuda {
namespace {

constexpr int kRows = 4, kLanes = 32, kRowThreads = 8, kBatch = 8, kMaxStride = 8;
constexpr int64_t kMaxReach = 1024;  // of a kernel, dilation included

// How the places of one axis meet taps: `step` taps on, what is read lies `move` places on.
struct Meeting {
  int stride, dilation, before, step, move;
  bool backward;
  Divide by_stride;

  Meeting(const ConvGeometry& g, int axis, bool back)
      : stride(int(g.stride[axis])),
        dilation(int(g.dilation[axis])),
        before(int(g.pad_before[axis])),
        step(1),
        move(dilation),
        backward(back),
        by_stride(stride) {
    if (!back) return;
    int common = stride;
    while (dilation % common != 0 || stride % common != 0) --common;
    step = stride / common, move = -dilation / common;
  }

  // The first place that a tile from made place `first` on reads, kernel places reaching `reach` = (K - 1) dilation.
  __device__ __forceinline__ int first_read(int first, int reach) const {
    if (!backward) return first * stride - before;
    const int a = first + before - reach;
    return a >= 0 ? by_stride.quotient(a) : -by_stride.quotient(-a + stride - 1);
  }
  // The first tap that made place i meets (perhaps past the last), and how far behind `first_read` it reads.
  struct Start {
    int tap, place;
  };
  __device__ __forceinline__ Start start(int i, int first_read) const {
    if (!backward) return {0, i * stride - before - first_read};
    for (int tap = 0; tap < step; ++tap) {
      int a = i + before - first_read * stride - tap * dilation;
      if (a < 0) break;
      const int place = split(a, by_stride);
      if (a == 0) return {tap, place};
    }
    return {1 << 30, 0};
  }
};

struct Task {
  Depthwise what;
  Meeting h, w;
  int planes;                                     // all that are made
  int column_threads, row_threads, tile_planes;   // of a block
  int row_group;                                  // rows of a thread lie this far apart
  int row_jump;                                   // and what they read, this far
  int read_rows, pitch, row_tiles, column_tiles;  // staged: of one plane
  int stage_lanes;
  Divide by_rows;

  int threads() const { return column_threads * row_threads * tile_planes; }
  template <typename A>
  size_t shared_bytes() const {
    const size_t weights = size_t(what.window.kernel[1]) * what.window.kernel[2];
    return tile_planes * ((size_t(read_rows) * pitch + weights) * sizeof(A) + read_rows * sizeof(int));
  }
};

template <typename T>
__global__ __launch_bounds__(kThreads, 3) void depthwise_strided_kernel(const Task task, const T* __restrict__ read,
                                                                        const T* __restrict__ weight,
                                                                        const T* __restrict__ bias,
                                                                        T* __restrict__ out) {
  using A = Accumulate<T>;
  CONVEXT_DYNAMIC_SHARED(A, shared);
  const Depthwise& what = task.what;
  const Window& window = what.window;
  const int plane_elements = task.read_rows * task.pitch, plane_taps = window.kernel[1] * window.kernel[2];
  A* const weights = shared + task.tile_planes * plane_elements;
  int* const row_at = reinterpret_cast<int*>(weights + task.tile_planes * plane_taps);

  const int tid = threadIdx.x, threads = blockDim.x;
  const int my_column = tid % task.column_threads, my_row = tid / task.column_threads % task.row_threads,
            my_plane = tid / task.column_threads / task.row_threads;
  int rest = blockIdx.x;
  const int first_w = rest % task.column_tiles * task.column_threads;
  rest /= task.column_tiles;
  const int first_h = rest % task.row_tiles * task.row_threads * kRows;
  rest /= task.row_tiles;
  const int d = rest % what.made_size[0], first_plane = rest / what.made_size[0] * task.tile_planes;

  // This thread's places, and what they meet.
  const int w = first_w + my_column;
  const int h = first_h + my_row / task.row_group * task.row_group * kRows + my_row % task.row_group;
  const int read_h = task.h.first_read(first_h, (window.kernel[1] - 1) * window.dilation[1]);
  const int read_w = task.w.first_read(first_w, (window.kernel[2] - 1) * window.dilation[2]);
  const Meeting::Start from_h = task.h.start(h, read_h), from_w = task.w.start(w, read_w);
  // Of what is staged, no more than windows see: past the padding there is nothing to show.
  const int left_h = what.made_size[1] - first_h, left_w = what.made_size[2] - first_w;
  const int tall = left_h < task.row_threads * kRows ? left_h : task.row_threads * kRows;
  const int wide = left_w < task.column_threads ? left_w : task.column_threads;
  const int height =
      what.backward ? task.read_rows : (tall - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1;
  const int width =
      what.backward ? task.pitch : (wide - 1) * window.stride[2] + (window.kernel[2] - 1) * window.dilation[2] + 1;

  int channel = first_plane + my_plane;
  const bool made_here = channel < task.planes;
  if (!made_here) channel = 0;
  const int image = split(channel, what.by_all_channels);

  A sum[kRows] = {};
  for (int k = 0; k < what.read_channels; ++k)
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int source_d = what.depth(d, t);  // the same for the whole block
      if (source_d < 0) continue;
      __syncthreads();
      for (int i = tid; i < task.tile_planes * task.read_rows; i += threads) {
        int row = i, at = -1;
        int plane = first_plane + split(row, task.by_rows);
        if (plane < task.planes && row < height) {
          const int source_h = what.h(read_h + row), plane_image = split(plane, what.by_all_channels);
          const int read_channel = what.by_group_channels.quotient(plane) * what.read_channels + k;
          if (source_h >= 0)
            at = plane_image * what.read.image + read_channel * what.read.channel +
                 (source_d * what.h.size + source_h) * what.w.size;
        }
        row_at[i] = at;
      }
      for (int i = tid; i < task.tile_planes * plane_taps; i += threads) {
        int tap = i % plane_taps, c = first_plane + i / plane_taps;
        if (c >= task.planes) continue;
        split(c, what.by_all_channels);
        const int group = split(c, what.by_group_channels);
        if (window.flip) tap = plane_taps - 1 - tap;
        weights[i] = to_accumulate(weight[group * what.weight_group + c * what.weight_made + k * what.weight_read +
                                          what.weight_depth(t) + tap]);
      }
      __syncthreads();
      stage_rows<kBatch>(shared, task.pitch, task.tile_planes * task.read_rows, width, task.stage_lanes, row_at, read,
                         [&](int column) { return what.w(read_w + column); });
      __syncthreads();
      if (h >= what.made_size[1] || w >= what.made_size[2]) continue;
      const A* row = shared + my_plane * plane_elements + from_h.place * task.pitch + from_w.place;
      for (int r = from_h.tap; r < window.kernel[1]; r += task.h.step, row += task.h.move * task.pitch) {
        const A *value = row, *w_at = weights + my_plane * plane_taps + r * window.kernel[2];
        for (int s = from_w.tap; s < window.kernel[2]; s += task.w.step, value += task.w.move) {
#pragma unroll
          for (int j = 0; j < kRows; ++j) sum[j] += value[j * task.row_jump * task.pitch] * w_at[s];
        }
      }
    }
  if (!made_here || w >= what.made_size[2]) return;

  int c = channel;
  const int group = split(c, what.by_group_channels);
  const int my_weight = group * what.weight_group + c * what.weight_made;
  const int my_read = image * what.read.image + group * what.read_channels * what.read.channel;
  const A start = bias != nullptr ? to_accumulate(bias[channel]) : A(0);
  T* const to = out + (image * what.made.image + channel * what.made.channel);
  const bool further = what.backward && window.mode != PaddingMode::zeros;
#pragma unroll 1
  for (int j = 0; j < kRows; ++j) {
    const Place32 at = {d, h + j * task.row_group, w};
    if (at.h >= what.made_size[1]) break;
    A total = j == 0 ? sum[0] : j == 1 ? sum[1] : j == 2 ? sum[2] : sum[3];
    if (further)
      further_terms<false>(window, at, [&](int from, int tap) {
#pragma unroll 1
        for (int k = 0; k < what.read_channels; ++k)
          total += to_accumulate(read[my_read + k * what.read.channel + from]) *
                   to_accumulate(weight[my_weight + k * what.weight_read + tap]);
      });
    to[(d * what.made_size[1] + at.h) * what.made_size[2] + w] = from_accumulate<T>(start + total);
  }
}
static_assert(kRows == 4, "the sums are picked by name");

template <typename A>
Task task_of(const ConvGeometry& g, bool backward) {
  Task task = {Depthwise(g, backward), Meeting(g, 1, backward), Meeting(g, 2, backward)};
  const int* size = task.what.made_size;
  task.row_group = backward ? int(g.stride[1]) : 1, task.row_jump = backward ? 1 : int(g.stride[1]);
  task.column_threads = power_up_to(size[2], kLanes);
  const int groups =
      power_up_to(ceil_div(size[1], kRows * task.row_group), kRowThreads / power_up_to(task.row_group, kRowThreads));
  task.row_threads = groups * task.row_group;
  task.tile_planes = 1;
  while (2 * task.threads() <= kThreads) task.tile_planes *= 2;
  const auto measure = [&] {
    // How many places of an axis a tile of `made` places reads at most.
    const auto reads = [&](int axis, int64_t made) {
      const int64_t reach = (g.kernel[axis] - 1) * g.dilation[axis];
      return int(backward ? (made - 1 + reach) / g.stride[axis] + 2 : (made - 1) * g.stride[axis] + reach + 1);
    };
    task.read_rows = reads(1, task.row_threads * kRows);
    task.pitch = reads(2, task.column_threads) | 1;
  };
  measure();
  const auto fits = [&] { return task.template shared_bytes<A>() <= kPlainSharedBytes; };
  while (!fits() && task.tile_planes > 1) task.tile_planes /= 2;
  while (!fits() && task.row_threads > task.row_group) task.row_threads -= task.row_group, measure();
  while (!fits() && task.column_threads > 1) task.column_threads /= 2, measure();
  task.row_tiles = int(ceil_div(size[1], task.row_threads * kRows));
  task.column_tiles = int(ceil_div(size[2], task.column_threads));
  task.stage_lanes = power_up_to(task.pitch, kLanes);
  while (task.threads() % task.stage_lanes != 0) task.stage_lanes /= 2;
  task.by_rows = Divide(task.read_rows);
  return task;
}

}  // namespace

bool conv_direct_depthwise_strided_suits(const ConvGeometry& g, DType dtype, Direction direction) {
  if (g.layout != Layout::contiguous || direction == Direction::backward_weight) return false;
  for (int axis : {kHeight, kWidth})
    if (g.stride[axis] > kMaxStride || g.kernel[axis] * g.dilation[axis] > kMaxReach) return false;
  const bool backward = direction == Direction::backward_input;
  return dtype == DType::float64 ? task_of<double>(g, backward).shared_bytes<double>() <= kPlainSharedBytes
                                 : task_of<float>(g, backward).shared_bytes<float>() <= kPlainSharedBytes;
}

void conv_direct_depthwise_strided(const char* name, const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  const bool backward = direction == Direction::backward_input;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    Task task = task_of<Accumulate<T>>(g, backward);
    const T* read = static_cast<const T*>(backward ? args.grad_output : args.input);
    const T *weight = static_cast<const T*>(args.weight), *bias = backward ? nullptr : static_cast<const T*>(args.bias);
    const int64_t larger = task.what.made.image > task.what.read.image ? task.what.made.image : task.what.read.image;
    const int64_t most = images_at_once(g.batch, larger);
    for (int64_t n = 0; n < g.batch; n += most) {
      const int64_t images = g.batch - n < most ? g.batch - n : most;
      task.planes = int(images * (backward ? g.in_channels : g.out_channels));
      const int64_t blocks =
          ceil_div(task.planes, task.tile_planes) * task.what.made_size[0] * task.row_tiles * task.column_tiles;
      launch(name, depthwise_strided_kernel<T>, grid_of(blocks), dim3(unsigned(task.threads())),
             task.template shared_bytes<Accumulate<T>>(), args.stream, task, read + n * task.what.read.image, weight,
             bias, static_cast<T*>(args.output) + n * task.what.made.image);
    }
  });
}

}  // namespace convext::cuda
