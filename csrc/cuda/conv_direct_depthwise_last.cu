// Depthwise layers of channels_last images, any kernel, stride, dilation and padding: the outputs and the gradient of
// the input (conv_direct_read.cuh).
//
// Lanes lie along channels, 16 bytes of them each, so that every access is a whole vector and coalesced. A thread makes
// a strip of kStrip neighbouring places of a row, for its channels, in registers; a block takes neighbouring strips and
// rows, so that what windows share comes from the first-level cache. The weights pass through shared memory, turned
// into the order of channels, some kernel rows at a time. At stride and dilation 1 a window of kStrip vectors slides
// along the row: per kernel place one load of 16 bytes from the image and one or two of weights for 24 multiplications,
// whatever the kernel's size. Other strides and dilations load what they multiply. Channels that are no whole number of
// vectors, a misaligned image, or several outputs per input: the same kernel with vectors of one.
//
// Traffic: input and output once from memory, the halo of a block's 8 rows by 4 strips again from the second-level
// cache. Bound by memory at 3 x 3 (9 multiplications for 8 bytes), from 7 x 7 by multiplications, of which two thirds
// of the sliding loop's instructions are, the rest being index arithmetic of the padding.
// Limits: a kernel row has at most kMaxWidth places, else lane_kernel does it. A thread sums an element alone, in an
// order that depends on nothing but the geometry of one image.
#include "conv_direct.cuh"
#include "conv_direct_read.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace convext::cuda {
namespace {

constexpr int kMaxWidth = 128, kLine = 32;    // of a kernel row; channels of a block where they are taken one by one
constexpr int kWeightFloats = 8192;           // in shared memory, or one kernel row if that is more
constexpr int kStripSums = 24, kTallest = 8;  // of a thread, more would spill; rows of a block
template <int V>                              // places of a thread, V channels each
constexpr int kStrip = kStripSums / V < 6 ? kStripSums / V : 6;

struct Task {
  Depthwise what;
  int lanes, strips, rows;  // threads of a block along channels, along a row, and rows
  int channel_blocks, strip_blocks, row_blocks, channels;
  int weight_rows;  // kernel rows in shared memory at a time
};

// What made place i reads through a tap, along h or w, or -1.
__device__ __forceinline__ int read_place(const Depthwise& what, int axis, int i, int tap) {
  const Window& window = what.window;
  return what.backward
             ? window.seen_by(axis, i, tap)
             : window.source(axis, i * window.stride[axis] - window.before[axis] + tap * window.dilation[axis]);
}

// Those of a thread's channels for one tap, 16 bytes at a time.
template <typename A, int V>
struct Weights {
  static constexpr int kPart = V < kPack<A> ? V : kPack<A>;
  Pack<A, kPart> part[V / kPart];

  __device__ __forceinline__ explicit Weights(const A* from) {
#pragma unroll
    for (int i = 0; i < V / kPart; ++i) part[i] = reinterpret_cast<const Pack<A, kPart>*>(from)[i];
  }
  __device__ __forceinline__ A operator[](int v) const { return part[v / kPart].v[v % kPart]; }
};

// Adds a kernel row: a window of kStrip places slides along. The places begin at `from`, `step` elements apart; where
// the strip reaches past the image's row (!kInside), source(i) says where the i-th lies, -1 for a zero.
template <typename T, int V, bool kInside, typename Source>
__device__ __forceinline__ void slide_row(Accumulate<T> (&sum)[kStrip<V>][V], int width, const Accumulate<T>* weights,
                                          int line, const T* __restrict__ read, int from, int step,
                                          const Source& source) {
  using A = Accumulate<T>;
  constexpr int kQ = kStrip<V>;
  A seen[kQ][V];
  const auto load = [&](int slot, int i) {
    const int at = kInside ? from : source(i);
    from += step;
    if (kInside || at >= 0) {
      load_pack<V>(read + at, seen[slot]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) seen[slot][v] = 0;
    }
  };
  const auto use = [&](int s, int u) {
    load((u + kQ - 1) % kQ, s + u + kQ - 1);
    const Weights<A, V> w(weights);
    weights += line;
#pragma unroll
    for (int q = 0; q < kQ; ++q)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[q][v] += seen[(u + q) % kQ][v] * w[v];
  };
#pragma unroll
  for (int u = 0; u < kQ - 1; ++u) load(u, u);
  int s = 0;
#pragma unroll 1
  for (; s + kQ <= width; s += kQ)
#pragma unroll
    for (int u = 0; u < kQ; ++u) use(s, u);
#pragma unroll
  for (int u = 0; u < kQ - 1; ++u)
    if (s + u < width) use(s, u);
}

template <typename T, int V, bool kSlide>
__global__ __launch_bounds__(kThreads, 2) void depthwise_last_kernel(const Task task, const T* __restrict__ read,
                                                                     const T* __restrict__ weight,
                                                                     const T* __restrict__ bias, T* __restrict__ out) {
  using A = Accumulate<T>;
  constexpr int kQ = kStrip<V>;
  CONVEXT_DYNAMIC_SHARED(A, weights);  // kernel place, channel of the block
  const Depthwise& what = task.what;
  const Window& window = what.window;
  const int tid = threadIdx.x, width = window.kernel[2], line = task.lanes * V;

  int rest = blockIdx.x;
  const int first_channel = rest % task.channel_blocks * line;
  rest /= task.channel_blocks;
  const int strip = rest % task.strip_blocks * task.strips + tid / task.lanes % task.strips;
  rest /= task.strip_blocks;
  const int h = rest % task.row_blocks * task.rows + tid / task.lanes / task.strips;
  rest /= task.row_blocks;
  const int d = rest % what.made_size[0], image = rest / what.made_size[0];
  const int my_channel = tid % task.lanes * V, channel = first_channel + my_channel, first_w = strip * kQ;
  const bool makes = channel < task.channels && h < what.made_size[1] && first_w < what.made_size[2];
  const int read_height = what.backward ? window.out[1] : window.in[1];
  // A group has one input, and `outputs` outputs.
  const int outputs = what.backward ? what.read_channels : what.made_channels;
  const int end = what.w.start + what.made_size[2] + width - 1;  // past what windows see
  const int image_at = image * what.read.image;

  A sum[kQ][V] = {};
#pragma unroll 1
  for (int k = 0; k < what.read_channels; ++k) {
    const int read_channel = what.backward ? channel * outputs + k : what.by_group_channels.quotient(channel);
    const int from = image_at + read_channel;
#pragma unroll 1
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int source_d = what.depth(d, t);  // the same for the whole block
      if (source_d < 0) continue;
#pragma unroll 1
      for (int first_r = 0; first_r < window.kernel[1]; first_r += task.weight_rows) {
        const int left = window.kernel[1] - first_r, rows = left < task.weight_rows ? left : task.weight_rows;
        __syncthreads();
#pragma unroll 1
        for (int i = tid; i < rows * width * line; i += blockDim.x) {
          const int tap = i / line, made = first_channel + i % line;
          if (made >= task.channels) continue;
          const int at = first_r * width + tap, plane = window.kernel[1] * width;
          const int stored = (kSlide ? what.turned : window.flip) ? plane - 1 - at : at;
          weights[i] = to_accumulate(
              weight[(what.backward ? made * outputs + k : made) * window.taps + what.weight_depth(t) + stored]);
        }
        __syncthreads();
#pragma unroll 1
        for (int r = 0; makes && r < rows; ++r) {
          const int source_h = kSlide ? what.h(h + what.h.start + first_r + r) : read_place(what, 1, h, first_r + r);
          if (source_h < 0) continue;
          const int row = from + (source_d * read_height + source_h) * what.w.size * what.read.place;
          const A* row_weights = weights + r * width * line + my_channel;
          if constexpr (kSlide) {
            const int start = first_w + what.w.start;
            const auto source = [&](int i) {
              const int w = start + i < end ? what.w(start + i) : -1;
              return w >= 0 ? row + w * what.read.place : -1;
            };
            const int first = row + start * what.read.place;
            if (start >= 0 && start + kQ - 1 + width <= what.w.size)
              slide_row<T, V, true>(sum, width, row_weights, line, read, first, what.read.place, source);
            else
              slide_row<T, V, false>(sum, width, row_weights, line, read, first, what.read.place, source);
          } else {
#pragma unroll 1
            for (int s = 0; s < width; ++s) {
              const Weights<A, V> w(row_weights + s * line);
#pragma unroll
              for (int q = 0; q < kQ; ++q) {
                const int source_w = first_w + q < what.made_size[2] ? read_place(what, 2, first_w + q, s) : -1;
                if (source_w < 0) continue;
                A value[V];
                load_pack<V>(read + (row + source_w * what.read.place), value);
#pragma unroll
                for (int v = 0; v < V; ++v) sum[q][v] += value[v] * w[v];
              }
            }
          }
        }
      }
    }
  }
  if (!makes) return;

  if (what.backward && window.mode != PaddingMode::zeros)
#pragma unroll 1
    for (int q = 0; q < kQ; ++q) {
      if (first_w + q >= what.made_size[2]) break;
      A further[V] = {};
      further_terms<kSlide>(window, {d, h, first_w + q}, [&](int at, int tap) {
#pragma unroll 1
        for (int k = 0; k < outputs; ++k) {
          A value[V];
          load_pack<V>(read + (image_at + at * what.read.place + channel * outputs + k), value);
#pragma unroll
          for (int v = 0; v < V; ++v)
            further[v] += value[v] * to_accumulate(weight[((channel + v) * outputs + k) * window.taps + tap]);
        }
      });
#pragma unroll
      for (int i = 0; i < kQ; ++i)
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (i == q) sum[i][v] += further[v];  // registers have no address
    }
  A start[V];
#pragma unroll
  for (int v = 0; v < V; ++v) start[v] = bias != nullptr ? to_accumulate(bias[channel + v]) : A(0);
  const int made =
      image * what.made.image + channel + ((d * what.made_size[1] + h) * what.made_size[2] + first_w) * what.made.place;
#pragma unroll
  for (int q = 0; q < kQ; ++q) {
    if (first_w + q >= what.made_size[2]) break;
#pragma unroll
    for (int v = 0; v < V; ++v) sum[q][v] += start[v];
    store_pack<V>(out + (made + q * what.made.place), sum[q]);
  }
}

template <typename T, int V>
void run_vectors(const char* name, const ConvArguments& args, bool backward) {
  const ConvGeometry& g = args.geometry;
  Task task = {Depthwise(g, backward)};
  const int* size = task.what.made_size;
  const int64_t width = g.kernel[2];
  task.channels = int(backward ? g.in_channels : g.out_channels);
  task.lanes = V == 1 ? kLine : 8;
  task.rows = power_up_to(size[1], V == 1 ? kTallest / 2 : kTallest);
  task.strips = power_up_to(ceil_div(size[2], kStrip<V>), kThreads / task.lanes / task.rows);
  while (2 * task.lanes * task.rows * task.strips <= kThreads && task.lanes < kLine && task.lanes * V < task.channels &&
         2 * task.lanes * V * width <= kWeightFloats)
    task.lanes *= 2;
  const int line = task.lanes * V;
  task.channel_blocks = int(ceil_div(task.channels, line));
  task.strip_blocks = int(ceil_div(ceil_div(size[2], kStrip<V>), task.strips));
  task.row_blocks = int(ceil_div(size[1], task.rows));
  const int64_t fitting = kWeightFloats / (line * width);
  task.weight_rows = int(fitting < 1 ? 1 : fitting < g.kernel[1] ? fitting : g.kernel[1]);
  const size_t shared_bytes = size_t(task.weight_rows) * width * line * sizeof(Accumulate<T>);
  bool slide = true;
  for (int axis : {kHeight, kWidth}) slide = slide && g.stride[axis] == 1 && g.dilation[axis] == 1;

  const T* read = static_cast<const T*>(backward ? args.grad_output : args.input);
  const T *weight = static_cast<const T*>(args.weight), *bias = backward ? nullptr : static_cast<const T*>(args.bias);
  const int64_t larger = task.what.made.image > task.what.read.image ? task.what.made.image : task.what.read.image;
  const int64_t most = images_at_once(g.batch, larger);
  for (int64_t n = 0; n < g.batch; n += most) {
    const int64_t images = g.batch - n < most ? g.batch - n : most;
    const int64_t blocks = images * size[0] * task.row_blocks * task.strip_blocks * task.channel_blocks;
    launch(name, slide ? depthwise_last_kernel<T, V, true> : depthwise_last_kernel<T, V, false>, grid_of(blocks),
           dim3(unsigned(task.lanes * task.strips * task.rows)), shared_bytes, args.stream, task,
           read + n * task.what.read.image, weight, bias, static_cast<T*>(args.output) + n * task.what.made.image);
  }
}

}  // namespace

bool conv_direct_depthwise_last_suits(const ConvGeometry& g) {
  return g.layout == Layout::channels_last && g.group_inputs() == 1 && g.kernel[2] <= kMaxWidth;
}

void conv_direct_depthwise_last(const char* name, const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  const bool backward = direction == Direction::backward_input;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kPack<T>;
    const T* read = static_cast<const T*>(backward ? args.grad_output : args.input);
    if (g.out_channels == g.groups && g.groups % V == 0 && packable(read, V) &&
        packable(static_cast<T*>(args.output), V))
      run_vectors<T, V>(name, args, backward);
    else
      run_vectors<T, 1>(name, args, backward);
  });
}

}  // namespace convext::cuda
