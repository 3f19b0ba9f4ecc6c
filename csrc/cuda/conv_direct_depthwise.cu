// Depthwise layers of contiguous images at stride and dilation 1, whatever kernel and padding: the outputs, and the
// gradient of the input, which is the same sum over dy with the kernel turned round (conv_direct_read.cuh). Also any
// group that makes a single channel, or a few that conv_direct_few.cu has no room for.
//
// A block makes a tile of one plane, up to 64 x 64 places, or small planes several at a time. What its windows see is
// staged in shared memory, widened, its padding resolved: a table says where each staged row lies, each thread knows
// its column, so that a staged element costs a load, a store and little else, and loads are coalesced whatever the
// padding. A thread makes kRows rows by kColumns columns in registers: a staged row is read once, 16 bytes at a time,
// for all kRows x K x kColumns multiplications that it takes part in. Kernels of 3, 5 and 7 are unrolled, their weights
// in registers (thread tile 4 x 4); others go along the kernel row four taps at a time, 128 multiplications for one
// load of the window and four of weights, broadcast (thread tile 4 x 8). In depth and over the channels of a group,
// planes are staged one after another.
//
// Traffic: input once, and the halos again from the second-level cache, (64 + K - 1)^2 / 64^2 of it; output once. Bound
// by memory up to 5 x 5 (9 or 25 multiplications for 8 bytes; an H200 does 7 a byte), from 7 x 7 by multiplications, of
// which more than nine tenths of the inner loop's instructions are.
// Limits: the tile with its halo fits into 48 kB, else lane_kernel does it. Every element is summed by one thread, in
// an order that depends on nothing but the geometry of one image.
#include "conv_direct.cuh"
#include "conv_direct_read.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace convext::cuda {
namespace {

constexpr int kRows = 4, kTaps = 4, kBatch = 8;  // of a thread; at a time along a kernel row; loads in flight
constexpr int kTileSide = 64, kMaxSide = 128;    // of a tile in places; of a kernel
template <int K>                                 // the kernel's side, 0: any
constexpr int kColumns = K == 0 ? 8 : 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <int K>
constexpr int kBlocks = K == 3 ? 3 : 2;  // of a multiprocessor at once, at least
#else
template <int K>
constexpr int kBlocks = 2;  // three would spill
#endif

// The threads of a block: columns x rows x planes, the first two powers of two, and what they stage.
struct Tile {
  int column_threads, row_threads, planes;
  int rows, pitch;  // of one staged plane
  int row_tiles, column_tiles;
  int stage_lanes;  // threads along a staged row: a power of two

  int threads() const { return column_threads * row_threads * planes; }
};

struct Task {
  Depthwise what;
  Tile tile;
  int planes;        // all that are made
  bool vector_made;  // rows of what is made may be stored as vectors
  Divide by_rows;
};

// The weights of a plane in shared memory: kernel rows of whole steps.
int weights_of(const ConvGeometry& g, int k) { return k > 0 ? 0 : int(g.kernel[1]) * round_up(g.kernel[2], kTaps); }

template <typename A>
size_t shared_bytes(const Tile& tile, int weights) {
  return size_t(tile.planes) * (size_t(tile.rows) * tile.pitch * sizeof(A) + weights * sizeof(A) + tile.rows * 4);
}

template <typename A>
Tile tile_of(const ConvGeometry& g, bool backward, int k) {
  const int64_t* size = backward ? g.input : g.output;
  const int columns = k == 0 ? kColumns<0> : kColumns<3>;
  Tile tile = {};
  tile.column_threads = power_up_to(ceil_div(size[2], columns), kTileSide / columns);
  tile.row_threads = power_up_to(ceil_div(size[1], kRows), kTileSide / kRows);
  tile.planes = kThreads / tile.column_threads / tile.row_threads;
  const auto measure = [&] {
    tile.rows = tile.row_threads * kRows + int(g.kernel[1]) - 1;
    tile.pitch = tile.column_threads * columns + round_up(g.kernel[2], kTaps);
  };
  measure();
  while (tile.planes > 1 && shared_bytes<A>(tile, weights_of(g, k)) > kPlainSharedBytes) tile.planes /= 2;
  while (tile.row_threads > 1 && shared_bytes<A>(tile, weights_of(g, k)) > kPlainSharedBytes)
    tile.row_threads /= 2, measure();
  tile.row_tiles = int(ceil_div(size[1], tile.row_threads * kRows));
  tile.column_tiles = int(ceil_div(size[2], tile.column_threads * columns));
  tile.stage_lanes = power_up_to(tile.pitch, tile.threads() < 32 ? tile.threads() : 32);
  return tile;
}

// The sums of a thread, from the staged rows that begin at `from`. K > 0: the weights in registers.
template <int K, typename A>
struct Sums {
  static constexpr int kWindow = (kColumns<K> + K + 2) / 4;  // in vectors
  A w[K][K];

  template <typename T>
  __device__ __forceinline__ void load(const T* weight, bool turned) {
#pragma unroll
    for (int r = 0; r < K; ++r)
#pragma unroll
      for (int s = 0; s < K; ++s) w[r][s] = to_accumulate(weight[turned ? K * K - 1 - (r * K + s) : r * K + s]);
  }
  __device__ __forceinline__ void add(A (&sum)[kRows][kColumns<K>], const A* from, int pitch, const Window&,
                                      const A*) const {
#pragma unroll
    for (int i = 0; i < kRows + K - 1; ++i) {
      Four<A> row[kWindow];
#pragma unroll
      for (int v = 0; v < kWindow; ++v) row[v] = reinterpret_cast<const Four<A>*>(from + i * pitch)[v];
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int s = 0; s < K; ++s)
#pragma unroll
          for (int c = 0; c < kColumns<K>; ++c)
            if (i - j >= 0 && i - j < K) sum[j][c] += row[(c + s) / 4].v[(c + s) % 4] * w[i - j][s];
    }
  }
};

// Any kernel: weights in shared memory, in rows of whole steps.
template <typename A>
struct Sums<0, A> {
  template <typename T>
  __device__ __forceinline__ void load(const T*, bool) {}

  // Adds what staged row i gives. kAll: every row of the thread sees it.
  template <bool kAll>
  static __device__ __forceinline__ void add_row(A (&sum)[kRows][kColumns<0>], int i, const A* from, int height,
                                                 int width, const A* weights, int weight_pitch) {
    const Four<A>* row = reinterpret_cast<const Four<A>*>(from);
    const A* w_row = weights + i * weight_pitch;  // of the thread's first row; the next sees the kernel row above it
    Four<A> seen[3] = {row[0], row[1], {}};
    const auto use = [&](const Four<A>& w, int j, int u) {
#pragma unroll
      for (int c = 0; c < kColumns<0>; ++c) sum[j][c] += seen[(c + u) / 4].v[(c + u) % 4] * w.v[u];
    };
    const auto sees = [&](int j) { return kAll || (i - j >= 0 && i - j < height); };
    row += 2;
    int s = 0;
#pragma unroll(kAll ? 3 : 1)
    for (; s + kTaps <= width; s += kTaps, w_row += kTaps) {
      seen[2] = *row++;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (!sees(j)) continue;
        const Four<A> w = *reinterpret_cast<const Four<A>*>(w_row - j * weight_pitch);
#pragma unroll
        for (int u = 0; u < kTaps; ++u) use(w, j, u);
      }
      seen[0] = seen[1], seen[1] = seen[2];
    }
    if (s == width) return;
    // What lies past the window is not touched: it may be no number.
    seen[2] = *row;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (!sees(j)) continue;
      const Four<A> w = *reinterpret_cast<const Four<A>*>(w_row - j * weight_pitch);
      use(w, j, 0);
      if (s + 1 < width) use(w, j, 1);
      if (s + 2 < width) use(w, j, 2);
    }
  }

  __device__ __forceinline__ void add(A (&sum)[kRows][kColumns<0>], const A* from, int pitch, const Window& window,
                                      const A* weights) const {
    const int height = window.kernel[1], width = window.kernel[2], weight_pitch = (width + kTaps - 1) / kTaps * kTaps;
#pragma unroll 1
    for (int i = 0; i < kRows + height - 1; ++i, from += pitch) {
      if (i >= kRows - 1 && i < height)
        add_row<true>(sum, i, from, height, width, weights, weight_pitch);
      else
        add_row<false>(sum, i, from, height, width, weights, weight_pitch);
    }
  }
};

template <typename T, int K>
__global__ __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : kBlocks<K>) void depthwise_kernel(
    const Task task, const T* __restrict__ read, const T* __restrict__ weight, const T* __restrict__ bias,
    T* __restrict__ out) {
  using A = Accumulate<T>;
  CONVEXT_DYNAMIC_SHARED(A, shared);
  const Depthwise& what = task.what;
  const Tile& tile = task.tile;
  const Window& window = what.window;
  const int plane_floats = tile.rows * tile.pitch;
  const int weight_pitch = (window.kernel[2] + kTaps - 1) / kTaps * kTaps,
            weight_floats = window.kernel[1] * weight_pitch;
  A* const weights = shared + tile.planes * plane_floats;
  int* const row_at = reinterpret_cast<int*>(weights + (K == 0 ? tile.planes * weight_floats : 0));

  const int tid = threadIdx.x, threads = blockDim.x;
  const int my_column = tid % tile.column_threads, my_row = tid / tile.column_threads % tile.row_threads,
            my_plane = tid / tile.column_threads / tile.row_threads;
  int rest = blockIdx.x;
  const int first_w = rest % tile.column_tiles * tile.column_threads * kColumns<K>;
  rest /= tile.column_tiles;
  const int first_h = rest % tile.row_tiles * tile.row_threads * kRows;
  rest /= tile.row_tiles;
  const int d = rest % what.made_size[0], first_plane = rest / what.made_size[0] * tile.planes;

  // What is staged: no more than windows see.
  const int left_w = what.made_size[2] - first_w, left_h = what.made_size[1] - first_h;
  const int width =
      (left_w < tile.column_threads * kColumns<K> ? left_w : tile.column_threads * kColumns<K>)+window.kernel[2] - 1;
  const int height = (left_h < tile.row_threads * kRows ? left_h : tile.row_threads * kRows) + window.kernel[1] - 1;

  int channel = first_plane + my_plane;
  const bool made_here = channel < task.planes;
  if (!made_here) channel = 0;
  const int image = split(channel, what.by_all_channels);
  int c = channel;
  const int group = split(c, what.by_group_channels);
  const int my_weight = group * what.weight_group + c * what.weight_made;

  A sum[kRows][kColumns<K>] = {};
#pragma unroll 1
  for (int k = 0; k < what.read_channels; ++k)
#pragma unroll 1
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int source_d = what.depth(d, t);  // the same for the whole block
      if (source_d < 0) continue;
      Sums<K, A> sums;
      sums.load(weight + (my_weight + k * what.weight_read + what.weight_depth(t)), what.turned);
      __syncthreads();
      for (int i = tid; i < tile.planes * tile.rows; i += threads) {
        int h = i, at = -1;
        int plane_channel = first_plane + split(h, task.by_rows);
        if (plane_channel < task.planes && h < height) {
          const int source_h = what.h(first_h + what.h.start + h);
          const int plane_image = split(plane_channel, what.by_all_channels);
          const int read_channel = what.by_group_channels.quotient(plane_channel) * what.read_channels + k;
          if (source_h >= 0)
            at = plane_image * what.read.image + read_channel * what.read.channel +
                 (source_d * (what.backward ? window.out[1] : window.in[1]) + source_h) * what.w.size;
        }
        row_at[i] = at;
      }
      for (int i = tid; K == 0 && i < tile.planes * weight_floats; i += threads) {
        int s = i % weight_floats, plane_channel = first_plane + i / weight_floats;
        const int r = s / weight_pitch;
        s -= r * weight_pitch;
        if (plane_channel >= task.planes || s >= window.kernel[2]) continue;
        split(plane_channel, what.by_all_channels);
        const int plane_group = split(plane_channel, what.by_group_channels);
        weights[i] = to_accumulate(weight[plane_group * what.weight_group + plane_channel * what.weight_made +
                                          k * what.weight_read + what.weight_depth(t) + what.weight_tap(r, s)]);
      }
      __syncthreads();
      stage_rows<kBatch>(shared, tile.pitch, tile.planes * tile.rows, width, tile.stage_lanes, row_at, read,
                         [&](int column) { return what.w(first_w + what.w.start + column); });
      __syncthreads();
      const A* from = shared + my_plane * plane_floats + my_row * kRows * tile.pitch + my_column * kColumns<K>;
      sums.add(sum, from, tile.pitch, window, weights + my_plane * weight_floats);
    }

  const int w = first_w + my_column * kColumns<K>;
  if (what.backward && window.mode != PaddingMode::zeros) {
    // The sums wait in shared memory, where the loop may index them: registers have no address.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRows * kColumns<K>; ++i) shared[i * threads + tid] = sum[i / kColumns<K>][i % kColumns<K>];
    const int group_read = image * what.read.image + group * what.read_channels * what.read.channel;
#pragma unroll 1
    for (int i = 0; made_here && i < kRows * kColumns<K>; ++i) {
      const Place32 at = {d, first_h + my_row * kRows + i / kColumns<K>, w + i % kColumns<K>};
      if (at.h >= what.made_size[1] || at.w >= what.made_size[2]) continue;
      A further = 0;
      further_terms<true>(window, at, [&](int from, int tap) {
#pragma unroll 1
        for (int k = 0; k < what.read_channels; ++k)
          further += to_accumulate(read[group_read + k * what.read.channel + from]) *
                     to_accumulate(weight[my_weight + k * what.weight_read + tap]);
      });
      shared[i * threads + tid] += further;
    }
#pragma unroll
    for (int i = 0; i < kRows * kColumns<K>; ++i) sum[i / kColumns<K>][i % kColumns<K>] = shared[i * threads + tid];
  }
  if (!made_here) return;

  const A start = bias != nullptr ? to_accumulate(bias[channel]) : A(0);
  const int plane_out = image * what.made.image + channel * what.made.channel;
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int h = first_h + my_row * kRows + j;
    if (h >= what.made_size[1]) break;
    T* to = out + (plane_out + (d * what.made_size[1] + h) * what.made_size[2] + w);
#pragma unroll
    for (int i = 0; i < kColumns<K>; ++i) sum[j][i] += start;
    constexpr int kStored = kColumns<K> < kPack<T> ? kColumns<K> : kPack<T>;
    if (task.vector_made && w + kColumns<K> <= what.made_size[2]) {
#pragma unroll
      for (int i = 0; i < kColumns<K>; i += kStored) store_pack<kStored>(to + i, sum[j] + i);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns<K>; ++i)
        if (w + i < what.made_size[2]) to[i] = from_accumulate<T>(sum[j][i]);
    }
  }
}

template <typename T, int K>
void run(const char* name, const ConvArguments& args, bool backward) {
  const ConvGeometry& g = args.geometry;
  using A = Accumulate<T>;
  const Tile tile = tile_of<A>(g, backward, K);
  const int64_t made_channels = backward ? g.in_channels : g.out_channels;
  Task task = {Depthwise(g, backward), tile, 0, false, Divide(tile.rows)};
  const T* read_data = static_cast<const T*>(backward ? args.grad_output : args.input);
  const T *weight = static_cast<const T*>(args.weight), *bias = backward ? nullptr : static_cast<const T*>(args.bias);
  constexpr int kStored = kColumns<K> < kPack<T> ? kColumns<K> : kPack<T>;
  task.vector_made = packable(static_cast<T*>(args.output), kStored) && task.what.made_size[2] % kStored == 0;

  const int64_t larger = task.what.made.image > task.what.read.image ? task.what.made.image : task.what.read.image;
  const int64_t most = images_at_once(g.batch, larger);
  for (int64_t n = 0; n < g.batch; n += most) {
    const int64_t images = g.batch - n < most ? g.batch - n : most;
    task.planes = int(images * made_channels);
    const int64_t blocks =
        ceil_div(task.planes, tile.planes) * task.what.made_size[0] * tile.row_tiles * tile.column_tiles;
    launch(name, depthwise_kernel<T, K>, grid_of(blocks), dim3(unsigned(tile.threads())),
           shared_bytes<A>(tile, weights_of(g, K)), args.stream, task, read_data + n * task.what.read.image, weight,
           bias, static_cast<T*>(args.output) + n * task.what.made.image);
  }
}

}  // namespace

bool conv_direct_depthwise_suits(const ConvGeometry& g, DType dtype, Direction direction) {
  if (g.layout != Layout::contiguous || direction == Direction::backward_weight) return false;
  for (int axis : {kHeight, kWidth})
    if (g.stride[axis] != 1 || g.dilation[axis] != 1 || g.kernel[axis] > kMaxSide) return false;
  const bool backward = direction == Direction::backward_input;
  return dtype == DType::float64
             ? shared_bytes<double>(tile_of<double>(g, backward, 0), weights_of(g, 0)) <= kPlainSharedBytes
             : shared_bytes<float>(tile_of<float>(g, backward, 0), weights_of(g, 0)) <= kPlainSharedBytes;
}

void conv_direct_depthwise(const char* name, const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  const bool backward = direction == Direction::backward_input;
  const int64_t side = g.kernel[1] == g.kernel[2] ? g.kernel[1] : 0;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) <= 4) {
      if (side == 3) return run<T, 3>(name, args, backward);
      if (side == 5) return run<T, 5>(name, args, backward);
      if (side == 7) return run<T, 7>(name, args, backward);
    }
    run<T, 0>(name, args, backward);
  });
}

}  // namespace convext::cuda
