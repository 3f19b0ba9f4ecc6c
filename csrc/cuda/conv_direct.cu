// Convolution from registers, without a workspace: the outputs, and the gradient of the input as the same sum seen from
// the other side ("made" is what a thread computes, "read" what it sums over):
//
//   forward         y[n, k, o p q]  = sum over c, taps of x[n, c, source(o p q, tap)] * w[k, c, tap]   (+ bias[k])
//   backward_input  dx[n, c, d h w] = sum over k, taps of dy[n, k, the place that sees d h w by tap] * w[k, c, tap]
//
// tile_kernel: a block makes a tile of places x channels, a thread 4 x 8 (channels_last: 8 x 4) of it. For one tap
// after the other, the threads find out, one place each, where the tile's places read; kChunk channels' weights at a
// time pass through shared memory, and the values of the places come straight from memory, a load for 8 (4)
// multiplications; that windows overlap is left to the first-level cache. Lanes lie along places (256 x 32 tiles), so
// that loads of contiguous images are coalesced, or, for channels_last, along channels (128 x 64), so that all lanes of
// a half warp read one value and store neighbours. lane_kernel: where a group makes few channels (depthwise above all),
// a thread makes 4 (2) places of a single channel from the channels of its group, in the order of memory. No shared
// memory.
//
// Every element is summed by one thread, in an order that depends on nothing but the geometry of one image; padding is
// resolved place by place (window.cuh). Several images per launch, as many as 32-bit offsets allow.
#include "conv_direct.cuh"

#include "dtype.cuh"
#include "launch.cuh"
#include "window.cuh"

namespace convext::cuda {
namespace {

constexpr int kChunk = 32, kLaneChannels = 8;
template <bool kBackward>
constexpr int kLanePlaces = kBackward ? 2 : 4;  // fewer where each needs more registers

// The convolution as one direction sees it. Channels are those of one group.
struct Task {
  Window window;
  int images, groups, made_channels, read_channels, made_places;
  Strides made, read;
  int weight_group, weight_made, weight_read;  // strides
  Divide by_made_places;
};

// The offset in an image of what is read for `at` (made, or where that is shown) through tap t r s; -1 for nothing.
template <bool kBackward>
__device__ __forceinline__ int read_offset(const Task& task, Place32 at, int t, int r, int s) {
  const Window& window = task.window;
  const int* size = kBackward ? window.out : window.in;
  const auto read = [&](int axis, int i, int tap) {
    return kBackward ? window.seen_by(axis, i, tap)
                     : window.source(axis, i * window.stride[axis] - window.before[axis] + tap * window.dilation[axis]);
  };
  const int d = read(0, at.d, t), h = read(1, at.h, r), w = read(2, at.w, s);
  return d < 0 || h < 0 || w < 0 ? -1 : ((d * size[1] + h) * size[2] + w) * task.read.place;
}

template <bool kBackward>
__device__ __forceinline__ Place32 made_place(const Task& task, int place) {
  return kBackward ? task.window.input_place(place) : task.window.output_place(place);
}

// The tile of a block, and of a thread in it.
template <bool kChannelsLast>
struct Tile {
  static constexpr int kPlaces = kChannelsLast ? 8 : 4, kChannels = kChannelsLast ? 4 : 8;  // of a thread
  static constexpr int kChannelThreads = kChannelsLast ? 16 : 4, kPlaceThreads = kThreads / kChannelThreads;
  static constexpr int kTilePlaces = kPlaces * kPlaceThreads, kTileChannels = kChannels * kChannelThreads;
};

template <typename T, bool kChannelsLast, bool kBackward>
__global__ __launch_bounds__(kThreads, 1) void tile_kernel(const Task task, const T* __restrict__ read,
                                                           const T* __restrict__ weight, const T* __restrict__ bias,
                                                           T* __restrict__ out) {
  using A = Accumulate<T>;
  using Tile = Tile<kChannelsLast>;
  static_assert(Tile::kTilePlaces <= kThreads, "a thread finds what is read for one place");
  __shared__ Four<A> weights[kChunk][Tile::kTileChannels / 4 + 1];
  __shared__ int offsets[Tile::kTilePlaces];  // of what is read, or -1

  const Window& window = task.window;
  const int places = task.images * task.made_places, tid = threadIdx.x;
  const int place_tiles = (places - 1) / Tile::kTilePlaces + 1;
  const int channel_tiles = (task.made_channels - 1) / Tile::kTileChannels + 1;
  const int tile = blockIdx.x, group = tile / place_tiles / channel_tiles;
  const int first_place = tile % place_tiles * Tile::kTilePlaces;
  const int first_channel = tile / place_tiles % channel_tiles * Tile::kTileChannels;

  // The place whose offsets this thread finds, and how often the tile's places are shown at most (window.cuh).
  int found = first_place + tid;
  const bool finds = tid < Tile::kTilePlaces && found < places;
  const int found_image = split(found, task.by_made_places);
  const Place32 at = made_place<kBackward>(task, found);
  int shown = kBackward && finds ? window.shown(at) : 1;
  const int own_shown = shown;
  if (kBackward && window.mode != PaddingMode::zeros) {
    if (tid < Tile::kTilePlaces) offsets[tid] = shown;
    __syncthreads();
    for (int i = 0; i < Tile::kTilePlaces; ++i) shown = offsets[i] > shown ? offsets[i] : shown;
  }

  const int my_place = kChannelsLast ? tid / Tile::kChannelThreads : tid % Tile::kPlaceThreads;
  const int my_channel = kChannelsLast ? tid % Tile::kChannelThreads : tid / Tile::kPlaceThreads;
  const T* group_read = read + group * task.read_channels * task.read.channel;
  const T* group_weight = weight + group * task.weight_group + first_channel * task.weight_made;
  A sum[Tile::kPlaces][Tile::kChannels] = {};

  const auto use_tap = [&](int t, int r, int s, int m) {
    const int tap = (t * window.kernel[1] + r) * window.kernel[2] + s;
    const T* tap_weight = group_weight + (window.flip ? window.taps - 1 - tap : tap);
    for (int first = 0; first < task.read_channels; first += kChunk) {
      const int chunk = task.read_channels - first < kChunk ? task.read_channels - first : kChunk;
      __syncthreads();
      if (first == 0 && tid < Tile::kTilePlaces) {
        const int offset = finds && m < own_shown
                               ? read_offset<kBackward>(task, kBackward ? window.shown_at(at, m) : at, t, r, s)
                               : -1;
        offsets[tid] = offset < 0 ? -1 : found_image * task.read.image + offset;
      }
      for (int i = tid; i < kChunk * Tile::kTileChannels; i += kThreads) {
        const int c = kBackward ? i / Tile::kTileChannels : i % kChunk;
        const int k = kBackward ? i % Tile::kTileChannels : i / kChunk;
        const bool inside = c < chunk && first_channel + k < task.made_channels;
        weights[c][k / 4].v[k % 4] =
            inside ? to_accumulate(tap_weight[(first + c) * task.weight_read + k * task.weight_made]) : A(0);
      }
      __syncthreads();
      int offset[Tile::kPlaces];
#pragma unroll
      for (int i = 0; i < Tile::kPlaces; ++i) offset[i] = offsets[my_place + i * Tile::kPlaceThreads];
      const T* from = group_read + first * task.read.channel;
#pragma unroll 2
      for (int c = 0; c < chunk; ++c, from += task.read.channel) {
        A value[Tile::kPlaces];
        Four<A> row[Tile::kChannels / 4];
#pragma unroll
        for (int i = 0; i < Tile::kPlaces; ++i) value[i] = offset[i] >= 0 ? to_accumulate(from[offset[i]]) : A(0);
#pragma unroll
        for (int j = 0; j < Tile::kChannels / 4; ++j) row[j] = weights[c][my_channel * Tile::kChannels / 4 + j];
#pragma unroll
        for (int i = 0; i < Tile::kPlaces; ++i)
#pragma unroll
          for (int j = 0; j < Tile::kChannels; ++j)
            if (offset[i] >= 0) sum[i][j] += value[i] * row[j / 4].v[j % 4];
      }
    }
  };
  for (int t = 0; t < window.kernel[0]; ++t)
    for (int r = 0; r < window.kernel[1]; ++r)
      for (int s = 0; s < window.kernel[2]; ++s)
        for (int m = 0; m < shown; ++m) use_tap(t, r, s, m);

#pragma unroll
  for (int i = 0; i < Tile::kPlaces; ++i) {
    int place = first_place + my_place + i * Tile::kPlaceThreads;
    if (place >= places) continue;
    const int image = split(place, task.by_made_places);
#pragma unroll
    for (int j = 0; j < Tile::kChannels; ++j) {
      const int c = first_channel + my_channel * Tile::kChannels + j, channel = group * task.made_channels + c;
      if (c >= task.made_channels) continue;
      const A start = bias != nullptr ? to_accumulate(bias[channel]) : A(0);
      out[image * task.made.image + channel * task.made.channel + place * task.made.place] =
          from_accumulate<T>(start + sum[i][j]);
    }
  }
}

// A thread's places lie `step` apart in one channel of one image.
template <typename T, bool kBackward>
__global__ __launch_bounds__(kThreads, 1) void lane_kernel(const Task task, Divide by_step, Divide by_all_channels,
                                                           Divide by_group_channels, const T* __restrict__ read,
                                                           const T* __restrict__ weight, const T* __restrict__ bias,
                                                           T* __restrict__ out) {
  using A = Accumulate<T>;
  constexpr int kPlaces = kLanePlaces<kBackward>;
  const Window& window = task.window;
  int first = int(blockIdx.x) * kThreads + int(threadIdx.x), channel, image;
  if (task.made.place == 1) {
    channel = split(first, by_step), image = split(channel, by_all_channels);
  } else {
    channel = first, first = split(channel, by_all_channels), image = split(first, by_step);
  }
  if (image >= task.images) return;

  Place32 made[kPlaces];
  int shown[kPlaces], most = 0;  // how often each is shown
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int place = first + i * by_step.divisor;
    made[i] = made_place<kBackward>(task, place < task.made_places ? place : 0);
    shown[i] = place >= task.made_places ? 0 : kBackward ? window.shown(made[i]) : 1;
    most = shown[i] > most ? shown[i] : most;
  }
  int c = channel;
  const int group = split(c, by_group_channels);
  const T* group_read = read + image * task.read.image + group * task.read_channels * task.read.channel;
  const T* channel_weight = weight + group * task.weight_group + c * task.weight_made;
  A sum[kPlaces] = {};
  for (int m = 0; m < most; ++m) {
    Place32 at[kPlaces];
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) at[i] = kBackward && m < shown[i] ? window.shown_at(made[i], m) : made[i];
    int tap = window.flip ? window.taps - 1 : 0;
    for (int t = 0; t < window.kernel[0]; ++t)
      for (int r = 0; r < window.kernel[1]; ++r)
        for (int s = 0; s < window.kernel[2]; ++s, tap += window.flip ? -1 : 1) {
          int offset[kPlaces];
#pragma unroll
          for (int i = 0; i < kPlaces; ++i)
            offset[i] = m < shown[i] ? read_offset<kBackward>(task, at[i], t, r, s) : -1;
          for (int k = 0; k < task.read_channels; ++k) {
            const A value = to_accumulate(channel_weight[k * task.weight_read + tap]);
            const T* from = group_read + k * task.read.channel;
#pragma unroll
            for (int i = 0; i < kPlaces; ++i)
              if (offset[i] >= 0) sum[i] += to_accumulate(from[offset[i]]) * value;
          }
        }
  }
  const A start = bias != nullptr ? to_accumulate(bias[channel]) : A(0);
  T* to = out + image * task.made.image + channel * task.made.channel;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i)
    if (shown[i] > 0) to[(first + i * by_step.divisor) * task.made.place] = from_accumulate<T>(start + sum[i]);
}

template <typename T, bool kChannelsLast, bool kBackward>
void run_tiles(const char* name, const Task& task, const T* read, const T* weight, const T* bias, T* out,
               void* stream) {
  using Tile = Tile<kChannelsLast>;
  const int64_t blocks = ceil_div(int64_t(task.images) * task.made_places, Tile::kTilePlaces) *
                         ceil_div(task.made_channels, Tile::kTileChannels) * task.groups;
  launch(name, tile_kernel<T, kChannelsLast, kBackward>, grid_of(blocks), kThreads, 0, stream, task, read, weight, bias,
         out);
}

template <typename T, bool kBackward>
void run(const char* name, const ConvArguments& arguments, const void* read_data, const T* bias) {
  ConvArguments args = arguments;
  args.geometry = of_planes(arguments.geometry);
  const ConvGeometry& g = args.geometry;
  constexpr Direction kDirection = kBackward ? Direction::backward_input : Direction::forward;
  const int64_t made_of_group = kBackward ? g.group_inputs() : g.group_outputs();
  if (conv_direct_causal_suits(args, kDirection)) return conv_direct_causal(name, args, kDirection);
  if (conv_direct_few_suits(g, args.dtype, kDirection)) return conv_direct_few(name, args, kDirection);
  if (made_of_group <= kLaneChannels && conv_direct_depthwise_suits(g, args.dtype, kDirection))
    return conv_direct_depthwise(name, args, kDirection);
  if (made_of_group <= kLaneChannels && conv_direct_depthwise_strided_suits(g, args.dtype, kDirection))
    return conv_direct_depthwise_strided(name, args, kDirection);
  if (conv_direct_depthwise_last_suits(g)) return conv_direct_depthwise_last(name, args, kDirection);
  const int64_t made_channels = kBackward ? g.in_channels : g.out_channels, taps = g.taps();
  const int64_t made_places = kBackward ? g.input_places() : g.output_places();
  const T* weight = static_cast<const T*>(args.weight);
  Task task = {Window(g),
               0,
               int(g.groups),
               int(made_channels / g.groups),
               int(kBackward ? g.group_outputs() : g.group_inputs()),
               int(made_places),
               kBackward ? input_strides(g) : output_strides(g),
               kBackward ? output_strides(g) : input_strides(g),
               int(g.group_outputs() * g.group_inputs() * taps),
               int(kBackward ? taps : g.group_inputs() * taps),
               int(kBackward ? g.group_inputs() * taps : taps),
               Divide(made_places)};
  const int64_t larger = task.made.image > task.read.image ? task.made.image : task.read.image;
  const int64_t most = images_at_once(g.batch, larger);
  for (int64_t n = 0; n < g.batch; n += most) {
    task.images = int(g.batch - n < most ? g.batch - n : most);
    const T* read = static_cast<const T*>(read_data) + n * task.read.image;
    T* out = static_cast<T*>(args.output) + n * task.made.image;
    if (task.made_channels <= kLaneChannels) {
      const int64_t step = ceil_div(made_places, kLanePlaces<kBackward>), threads = task.images * made_channels * step;
      launch(name, lane_kernel<T, kBackward>, grid_of(ceil_div(threads, kThreads)), kThreads, 0, args.stream, task,
             Divide(step), Divide(made_channels), Divide(task.made_channels), read, weight, bias, out);
    } else if (g.layout == Layout::contiguous) {
      run_tiles<T, false, kBackward>(name, task, read, weight, bias, out, args.stream);
    } else {
      run_tiles<T, true, kBackward>(name, task, read, weight, bias, out, args.stream);
    }
  }
}

const char* unsupported(const ConvGeometry& g, DType, Direction) { return too_large(g); }
int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction != Direction::backward_weight || too_large(g) != nullptr) return 0;
  return conv_direct_weight_workspace(g, dtype);
}

}  // namespace

const ConvAlgorithm conv_direct = {
    "direct",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        run<T, false>("conv_direct_forward", args, args.input, static_cast<const T*>(args.bias));
      });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        run<T, true>("conv_direct_backward_input", args, args.grad_output, static_cast<const T*>(nullptr));
      });
    },
    conv_direct_backward_weight,
};

}  // namespace convext::cuda
