// Layers of few channels on one side, both layouts, whatever kernel, stride, dilation and padding: few that are read
// (the outputs of first layers, 3 to 64) or few that are made (images from 64 channels, and the gradient of the input
// of first layers).
//
// A block makes a tile of places x channels of one image: up to 64 columns, a row or more, up to 64 channels. What its
// windows see of a few channels at a time is staged in shared memory, widened, its padding resolved: row by row where
// places are neighbours in memory, in 16-byte accesses where channels are. Beside it lie the weights, channels fastest.
// A thread makes 8 columns of 4 or 8 channels in registers. Along a kernel row its window slides (conv_direct_few.cuh):
// four taps cost one 16-byte access to the window and 4 or 8 to the weights, which other threads read too, for 128 or
// 256 multiplications; with dilation, 8 plain loads a tap for 32. Results leave in 16-byte accesses in either layout.
//
// Traffic: what is read once, halos again from the second-level cache, and all of it once more for every 64 channels
// made; what is made once. 3 x 3, 3 to 64: 27 multiplications for 4 bytes, where an H200 does 28, so that both bounds
// are near.
// Limits: strides up to kMostPhases in the gradient; a tile of a row fits into 48 kB; else conv_direct.cu. A thread
// sums an element alone, in an order that depends on nothing but the geometry of one image.
#include "conv_direct.cuh"
#include "conv_direct_few.cuh"

namespace convext::cuda {
namespace {

constexpr int kColumns = 8, kTaps = 4;         // of a thread; at a time along a kernel row
constexpr int kTileColumns = 64, kLine = 256;  // of a block; where there is one row
constexpr int kMostRows = 16, kChunk = 8;      // rows of a block; channels staged at a time
constexpr int kFewest = 32;                    // threads
constexpr int kMostPhases = 8, kBatch = 4;     // of the stride; loads in flight
constexpr int kFewRead = 4, kFewMade = 8, kFewLanes = 4;
constexpr int64_t kWeightBytes = 20 * 1024, kLongest = 1 << 14;  // of staged weights; of a stride or a kernel's reach

// Neighbouring channels of a thread: a store's worth.
template <typename T, int kMade>
constexpr int kGroup = sizeof(T) == 2 ? kMade : 4;

struct Tile {
  int column_threads, channel_threads, row_threads;
  int chunk, rows;  // what is staged: channels, rows of each
  Columns columns;
  int weight_rows, weight_taps, weight_pitch;  // kernel rows at a time, their taps, channels of a tap
  int row_tiles, column_tiles, channel_tiles;

  int threads() const { return column_threads * channel_threads * row_threads; }
  CONVEXT_HD int staged() const { return chunk * rows * columns.pitch; }
  CONVEXT_HD int weights() const { return chunk * weight_rows * weight_taps * weight_pitch; }
  template <typename A>
  size_t shared_bytes() const {
    return size_t(chunk) * rows * (columns.pitch * sizeof(A) + sizeof(int)) + size_t(weights()) * sizeof(A);
  }
};

struct Task {
  Depthwise what;
  Tile tile;
  Steps h[kMostPhases], w[kMostPhases];
  int phases_h, phases_w, groups;
  bool contiguous, vector_read, vector_made;  // whether 16-byte accesses are aligned
  Divide by_rows;
};

template <typename T, int kMade, bool kSlide>
__global__ __launch_bounds__(kThreads,
                             sizeof(T) == 8 ? 1 : 2) void few_kernel(const Task task, const T* __restrict__ read,
                                                                     const T* __restrict__ weight,
                                                                     const T* __restrict__ bias, T* __restrict__ out) {
  using A = Accumulate<T>;
  constexpr int kGroup = cuda::kGroup<T, kMade>;
  CONVEXT_DYNAMIC_SHARED(A, shared);
  const Depthwise& what = task.what;
  const Tile& tile = task.tile;
  const Window& window = what.window;
  A* const weights = shared + tile.staged();
  int* const row_at = reinterpret_cast<int*>(weights + tile.weights());
  const int tile_channels = tile.channel_threads * kMade, pitch = tile.columns.pitch;

  const int tid = threadIdx.x, threads = blockDim.x;
  const int my_column = tid % tile.column_threads * kColumns,
            my_channel = tid / tile.column_threads % tile.channel_threads,
            my_row = tid / tile.column_threads / tile.channel_threads;
  int rest = blockIdx.x;
  const int first_channel = rest % tile.channel_tiles * tile_channels;
  rest /= tile.channel_tiles;
  const int first_w = rest % tile.column_tiles * tile.column_threads * kColumns;
  rest /= tile.column_tiles;
  const int first_h = rest % tile.row_tiles * tile.row_threads;
  rest /= tile.row_tiles;
  const Steps& w = task.w[rest % task.phases_w];
  rest /= task.phases_w;
  const Steps& h = task.h[rest % task.phases_h];
  rest /= task.phases_h;
  const int d = rest % what.made_size[0];
  rest /= what.made_size[0];
  const int group = rest % task.groups, image = rest / task.groups;
  if (first_h >= h.count || first_w >= w.count) return;  // a phase with fewer places

  const int left_h = h.count - first_h, left_w = w.count - first_w;
  const int height = h.seen(left_h < tile.row_threads ? left_h : tile.row_threads);
  const int width = w.seen(left_w < tile.column_threads * kColumns ? left_w : tile.column_threads * kColumns);
  const int from_h = h.start + first_h * h.stride, from_w = w.start + first_w * w.stride;
  const int read_at = image * what.read.image + group * what.read_channels * what.read.channel;
  const T* const tile_weight = weight + (group * what.weight_group + first_channel * what.weight_made);
  const auto column = [&](int j) {
    const int at = tile.columns.template operator()<kSlide>(j, w.stride);
    return at < width ? what.w(from_w + at) * what.read.place : -1;
  };

  A sum[kMade][kColumns] = {};
  const int end_c = h.taps > 0 && w.taps > 0 ? what.read_channels : 0;
#pragma unroll 1
  for (int first_c = 0; first_c < end_c; first_c += tile.chunk) {
    const int left_c = end_c - first_c, channels = left_c < tile.chunk ? left_c : tile.chunk;
#pragma unroll 1
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int source_d = what.depth(d, t);  // the same for the whole block
      if (source_d < 0) continue;
      for (int i = tid; i < channels * tile.rows; i += threads) {  // nobody reads the old ones: they served the staging
        int row = i;
        const int c = split(row, task.by_rows);
        const int source_h = row < height ? what.h(from_h + row) : -1;
        row_at[i] = source_h < 0 ? -1
                                 : read_at + (first_c + c) * what.read.channel +
                                       (source_d * what.h.size + source_h) * what.w.size * what.read.place;
      }
      __syncthreads();
      if (task.vector_read)
        stage_channels<T>(shared, tile.columns.by_pitch, tile.rows, channels, row_at, read, column);
      else
        stage_rows<kBatch>(shared, pitch, channels * tile.rows, pitch, threads < 32 ? threads : 32, row_at, read,
                           column);
#pragma unroll 1
      for (int first_r = 0; first_r < h.taps; first_r += tile.weight_rows) {
        const int rows = h.taps - first_r < tile.weight_rows ? h.taps - first_r : tile.weight_rows;
        const int taps = rows * w.taps;
        if (first_r > 0) __syncthreads();
        constexpr int kLanes = 16;  // along taps
        for (int j = tid / kLanes; j < channels * tile_channels; j += threads / kLanes) {
          const int c = j / tile_channels, k = j % tile_channels;
          const T* from = tile_weight + ((first_c + c) * what.weight_read + k * what.weight_made +
                                         what.weight_depth(t) + (h.tap + first_r * h.tap_step) * window.kernel[2]);
          A* to = weights + c * taps * tile.weight_pitch + k;
          const bool inside = first_channel + k < what.made_channels;
          for (int i = tid % kLanes; i < taps; i += kLanes) {
            const int r = i / w.taps, s = i - r * w.taps;
            to[i * tile.weight_pitch] =
                inside ? to_accumulate(from[r * h.tap_step * window.kernel[2] + w.tap + s * w.tap_step]) : A(0);
          }
        }
        __syncthreads();

#pragma unroll 1
        for (int c = 0; c < channels; ++c)
#pragma unroll 1
          for (int r = 0; r < rows; ++r) {
            const A* row = shared + ((c * tile.rows + my_row * h.stride + (first_r + r) * h.dilation) * pitch +
                                     my_column * (kSlide ? 1 : w.stride));
            const A* row_weights = weights + ((c * taps + r * w.taps) * tile.weight_pitch + my_channel * kGroup);
            // Column i of the thread sees value(i) through tap s.
            const auto use = [&](int s, const auto& value) {
              const Four<A>* from = reinterpret_cast<const Four<A>*>(row_weights + s * tile.weight_pitch);
              Four<A> k[kMade / 4];
#pragma unroll
              for (int b = 0; b < kMade / 4; ++b) k[b] = from[kGroup > 4 ? b : b * tile.channel_threads];
#pragma unroll
              for (int i = 0; i < kColumns; ++i) {
                const A x = value(i);
#pragma unroll
                for (int v = 0; v < kMade; ++v) sum[v][i] += x * k[v / 4].v[v % 4];
              }
            };
            if constexpr (kSlide) {
#pragma unroll 1
              for (int phase = 0; phase < w.stride && phase < w.taps; ++phase) {
                const Four<A>* line = reinterpret_cast<const Four<A>*>(row + phase * tile.columns.line);
                Four<A> seen[3] = {line[0], line[1], {}};
                line += 2;
#pragma unroll 1
                for (int s = phase; s < w.taps; s += kTaps * w.stride) {
                  seen[2] = *line++;
#pragma unroll
                  for (int u = 0; u < kTaps; ++u)
                    if (s + u * w.stride < w.taps)
                      use(s + u * w.stride, [&](int i) { return seen[(i + u) / 4].v[(i + u) % 4]; });
                  seen[0] = seen[1], seen[1] = seen[2];
                }
              }
            } else {
#pragma unroll 1
              for (int s = 0; s < w.taps; ++s) use(s, [&](int i) { return row[i * w.stride + s * w.dilation]; });
            }
          }
      }
    }
  }
  if (my_row >= left_h || my_column >= left_w) return;

  // The channel of sum[v], and how many columns there are.
  const auto channel_of = [&](int v) {
    return first_channel + (v / kGroup * tile.channel_threads + my_channel) * kGroup + v % kGroup;
  };
  const int columns = left_w - my_column < kColumns ? left_w - my_column : kColumns;
  const int at_h = h.first + (first_h + my_row) * h.step, at_w = w.first + (first_w + my_column) * w.step;
  if (what.backward && window.mode != PaddingMode::zeros)
#pragma unroll 1
    for (int q = 0; q < columns; ++q) {
      const Place32 at = {d, at_h, at_w + q * w.step};
      if (window.shown(at) == 1) continue;
#pragma unroll 1
      for (int k = 0; k < kMade; ++k) {
        if (channel_of(k) >= what.made_channels) continue;
        const T* channel_weight = weight + (group * what.weight_group + channel_of(k) * what.weight_made);
        A further = 0;
        further_terms<false>(window, at, [&](int from, int tap) {
#pragma unroll 1
          for (int c = 0; c < what.read_channels; ++c)
            further += to_accumulate(read[read_at + c * what.read.channel + from * what.read.place]) *
                       to_accumulate(channel_weight[c * what.weight_read + tap]);
        });
#pragma unroll
        for (int v = 0; v < kMade; ++v)
#pragma unroll
          for (int i = 0; i < kColumns; ++i)
            if (v == k && i == q) sum[v][i] += further;  // registers have no address
      }
    }

  const int group_channel = group * what.made_channels;
  T* const to = out + (image * what.made.image + group_channel * what.made.channel +
                       ((d * what.made_size[1] + at_h) * what.made_size[2] + at_w) * what.made.place);
#pragma unroll
  for (int v = 0; v < kMade; ++v) {
    const A start = bias != nullptr && channel_of(v) < what.made_channels
                        ? to_accumulate(bias[group_channel + channel_of(v)])
                        : A(0);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum[v][i] += start;
  }
  if (task.contiguous) {
    constexpr int kStored = kPack<T>;
#pragma unroll
    for (int v = 0; v < kMade; ++v) {
      if (channel_of(v) >= what.made_channels) continue;
      T* const row = to + channel_of(v) * what.made.channel;
      if (task.vector_made && columns == kColumns) {
#pragma unroll
        for (int i = 0; i < kColumns; i += kStored) store_pack<kStored>(row + i, sum[v] + i);
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i)
          if (i < columns) row[i * w.step] = from_accumulate<T>(sum[v][i]);
      }
    }
    return;
  }
  constexpr int kStored = kGroup < kPack<T> ? kGroup : kPack<T>;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (i >= columns) break;
    T* const place = to + i * w.step * what.made.place;
#pragma unroll
    for (int v = 0; v < kMade; v += kStored) {
      A some[kStored];
#pragma unroll
      for (int j = 0; j < kStored; ++j) some[j] = sum[v + j][i];
      if (task.vector_made && channel_of(v) + kStored <= what.made_channels) {
        store_pack<kStored>(place + channel_of(v), some);
      } else {
#pragma unroll
        for (int j = 0; j < kStored; ++j)
          if (channel_of(v + j) < what.made_channels) place[channel_of(v + j)] = from_accumulate<T>(some[j]);
      }
    }
  }
}

// Of all phases of an axis the largest ones.
Steps largest(const ConvGeometry& g, int axis, bool backward) {
  Steps most(g, axis, backward);
  for (int phase = 1; backward && phase < g.stride[axis]; ++phase) {
    const Steps other(g, axis, backward, phase);
    if (other.taps > most.taps) most.taps = other.taps;
  }
  return most;
}

template <int kMade, typename A>
Tile tile_of(const ConvGeometry& g, bool backward) {
  const Steps h = largest(g, kHeight, backward), w = largest(g, kWidth, backward);
  const int64_t made = backward ? g.group_inputs() : g.group_outputs();
  const int64_t read = backward ? g.group_outputs() : g.group_inputs();
  Tile tile = {};
  tile.channel_threads = power_up_to(ceil_div(made, kMade), 8);
  tile.column_threads = power_up_to(ceil_div(w.count, kColumns), (h.count == 1 ? kLine : kTileColumns) / kColumns);
  const int others = tile.channel_threads * tile.column_threads;
  tile.row_threads = power_up_to(h.count, kThreads / others < kMostRows ? kThreads / others : kMostRows);
  while (tile.threads() < kFewest) tile.row_threads *= 2;
  tile.chunk = int(read < kChunk ? read : kChunk);
  tile.weight_pitch = tile.channel_threads * kMade + 4;  // neighbouring taps lie in different banks
  tile.weight_taps = w.taps;
  const auto measure = [&] {
    tile.rows = h.taps > 0 ? h.seen(tile.row_threads) : 1;
    tile.columns = Columns(w, tile.column_threads * kColumns, w.dilation == 1, false);
    const int64_t row = int64_t(tile.chunk) * w.taps * tile.weight_pitch * int64_t(sizeof(A));
    const int64_t fitting = row > 0 ? kWeightBytes / row : h.taps;
    tile.weight_rows = int(fitting < 1 ? 1 : fitting < h.taps ? fitting : h.taps);
  };
  measure();
  const auto fits = [&] { return tile.template shared_bytes<A>() <= kPlainSharedBytes; };
  while (!fits() && tile.chunk > kChunk / 2) tile.chunk = kChunk / 2, measure();
  const auto more = [&](int least) { return !fits() && tile.threads() > kFewest && tile.row_threads > least; };
  while (more(2)) tile.row_threads /= 2, measure();
  while (!fits() && tile.chunk > 1) tile.chunk /= 2, measure();
  while (more(1)) tile.row_threads /= 2, measure();
  while (!fits() && tile.threads() > kFewest && tile.column_threads > 1) tile.column_threads /= 2, measure();
  tile.row_tiles = int(ceil_div(h.count, tile.row_threads));
  tile.column_tiles = int(ceil_div(w.count, tile.column_threads * kColumns));
  tile.channel_tiles = int(ceil_div(made, tile.channel_threads * kMade));
  return tile;
}

// Whether a thread makes eight channels, else four.
bool eight(const ConvGeometry& g, bool backward) {
  return (backward ? g.group_inputs() : g.group_outputs()) > 4 && Steps(g, kWidth, backward).dilation == 1;
}

template <typename T, int kMade>
void run(const char* name, const ConvArguments& args, bool backward) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  Task task = {Depthwise(g, backward), tile_of<kMade, A>(g, backward)};
  const Depthwise& what = task.what;
  const Tile& tile = task.tile;
  task.phases_h = backward ? int(g.stride[kHeight]) : 1, task.phases_w = backward ? int(g.stride[kWidth]) : 1;
  for (int i = 0; i < task.phases_h; ++i) task.h[i] = Steps(g, kHeight, backward, i);
  for (int i = 0; i < task.phases_w; ++i) task.w[i] = Steps(g, kWidth, backward, i);
  task.groups = int(g.groups), task.by_rows = Divide(tile.rows);
  const T* read = static_cast<const T*>(backward ? args.grad_output : args.input);
  const T *weight = static_cast<const T*>(args.weight), *bias = backward ? nullptr : static_cast<const T*>(args.bias);
  T* out = static_cast<T*>(args.output);
  task.contiguous = g.layout == Layout::contiguous;
  task.vector_read =
      !task.contiguous && what.read_channels % kPack<T> == 0 && tile.chunk % kPack<T> == 0 && packable(read, kPack<T>);
  constexpr int kStored = kGroup<T, kMade> < kPack<T> ? kGroup<T, kMade> : kPack<T>;
  task.vector_made = task.contiguous
                         ? task.phases_w == 1 && what.made_size[2] % kPack<T> == 0 && packable(out, kPack<T>)
                         : what.made_channels % kStored == 0 && packable(out, kStored);

  const int64_t larger = what.made.image > what.read.image ? what.made.image : what.read.image;
  const int64_t most = images_at_once(g.batch, larger);
  auto kernel = few_kernel<T, kMade, true>;
  if constexpr (kMade == 4)
    if (task.w[0].dilation > 1) kernel = few_kernel<T, kMade, false>;
  for (int64_t n = 0; n < g.batch; n += most) {
    const int64_t images = g.batch - n < most ? g.batch - n : most;
    const int64_t blocks = images * g.groups * what.made_size[0] * task.phases_h * task.phases_w * tile.row_tiles *
                           tile.column_tiles * tile.channel_tiles;
    launch(name, kernel, grid_of(blocks), dim3(unsigned(tile.threads())), tile.template shared_bytes<A>(), args.stream,
           task, read + n * what.read.image, weight, bias, out + n * what.made.image);
  }
}

}  // namespace

bool conv_direct_few_suits(const ConvGeometry& g, DType dtype, Direction direction) {
  const bool backward = direction == Direction::backward_input;
  const int64_t made = backward ? g.group_inputs() : g.group_outputs();
  const int64_t read = backward ? g.group_outputs() : g.group_inputs();
  if (read > kFewRead && made > kFewMade) return false;
  // Depthwise, or a single channel made from planes, is for conv_direct_depthwise*.cu; but those for channels_last have
  // their lanes along channels.
  const bool planes = (g.group_inputs() == 1 && g.group_outputs() < kFewRead) || made == 1;
  if (planes && (g.layout == Layout::contiguous || (g.groups > 1 && g.out_channels >= kFewLanes))) return false;
  for (int axis : {kHeight, kWidth}) {
    if (g.stride[axis] > (backward ? kMostPhases : kLongest)) return false;
    if (g.dilation[axis] > kLongest || g.kernel[axis] * g.dilation[axis] > kLongest) return false;
  }
  const auto fits = [](const Tile& tile, size_t bytes) {
    return bytes <= kPlainSharedBytes && tile.threads() >= kFewest;
  };
  if (dtype == DType::float64) {
    const Tile tile = tile_of<4, double>(g, backward);
    return fits(tile, tile.shared_bytes<double>());
  }
  const Tile tile = eight(g, backward) ? tile_of<8, float>(g, backward) : tile_of<4, float>(g, backward);
  return fits(tile, tile.shared_bytes<float>());
}

void conv_direct_few(const char* name, const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  const bool backward = direction == Direction::backward_input;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) <= 4) {
      if (eight(g, backward)) return run<T, 8>(name, args, backward);
    }
    run<T, 4>(name, args, backward);
  });
}

}  // namespace convext::cuda
