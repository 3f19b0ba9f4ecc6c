// Pooling, rows first: a window of R x S is S steps along each row, shared by all the windows that cover the row, and
// then R steps down.
//
//   row[h, q] = max (sum) over s of x[h, source(q, s)],   y[p, q] = max (sum) over r of row[source(p, r), q]
//
// Small windows, adaptive ones and the gradients have files of their own (pool_direct_forward.cu, _backward.cu). Here
// is the kernel for all other windows: a block makes a tile of 256 outputs, up to 32 wide, of as many planes as that
// takes, or, for channels_last, 8 high of 32 channels; its threads fill a band of rows in shared memory, lanes along
// the contiguous index, and each then takes what its own output needs of the band, one band after the other, the planes
// of a three-dimensional window too. So any window fits. The maximum's place travels along (its s with a row). Rows
// come in order, so the first greatest and the last NaN are those of the definition.
//
// Memory is read once, but for the rows that neighbouring tiles share. Floating dtypes only; several images per launch,
// as many as 32-bit offsets allow.
#include "pool_direct.cuh"

namespace convext::cuda {
namespace {

constexpr int kTileWidth = 32, kLastHeight = 8, kLastChannels = 32;  // of a tile; the last two for channels_last
constexpr int kBand = 2048;                                          // row results in shared memory

// Of a block.
struct Tile {
  int planes, height, width;
};

template <typename T, bool kMax>
__global__ __launch_bounds__(kThreads, 1) void band_kernel(const PoolTask task, const Tile tile,
                                                           const T* __restrict__ x, T* __restrict__ y, void* places) {
  using A = Accumulate<T>;
  constexpr A kStart = kMax ? kLowest<A> : A(0);
  __shared__ A row_value[kBand];
  __shared__ int row_tap[kMax ? kBand : 1];  // the winner's s, or -1 if the row's window lies outside

  const int tid = threadIdx.x, line = tile.planes * tile.width;  // a row of the band, all planes
  const int p_tiles = (task.out[1] - 1) / tile.height + 1, q_tiles = (task.out[2] - 1) / tile.width + 1;
  int rest = blockIdx.x;
  const int q_first = rest % q_tiles * tile.width, p_first = rest / q_tiles % p_tiles * tile.height;
  rest = rest / q_tiles / p_tiles;
  const int o = rest % task.out[0], plane_first = rest / task.out[0] * tile.planes;

  // Position i of a line: its plane and its q. A thread keeps its position on its way through the band.
  const int position = tid % line;
  const bool contiguous = task.x.place == 1;
  const int plane = plane_first + (contiguous ? position / tile.width : position % tile.planes);
  const int q = q_first + (contiguous ? position % tile.width : position / tile.planes);
  const int p_own = tid / line, p = p_first + p_own;  // the output it makes
  const bool reads = plane < task.planes && q < task.out[2], makes = reads && p < task.out[1];
  const T* x_plane = x + task.plane_offset(task.x, plane < task.planes ? plane : 0);

  const int h_first = p_first * task.stride[1] - task.before[1], w_first = q * task.stride[2] - task.before[2];
  const int height = (tile.height - 1) * task.stride[1] + (task.kernel[1] - 1) * task.dilation[1] + 1;
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
  if constexpr (!kMax) best = task.divisor_of<A>(o, p, q).template under<false>(best);
  y[at] = from_accumulate<T>(best);
  if (kMax && places != nullptr) store_place(places, task.byte_places, at, winner < 0 ? 0 : winner);
}

Tile tile_of(const PoolGeometry& g) {
  // Powers of two that make kThreads together.
  const auto power_up_to = [](int64_t size, int most) {
    int power = 1;
    while (power < most && power < size) power *= 2;
    return power;
  };
  Tile tile;
  if (g.layout == Layout::contiguous) {
    tile.width = power_up_to(g.output[2], kTileWidth);
    tile.height = power_up_to(g.output[1], kThreads / tile.width);
    tile.planes = kThreads / tile.width / tile.height;
  } else {
    tile.planes = power_up_to(g.channels, kLastChannels);
    tile.height = power_up_to(g.output[1], kLastHeight);
    tile.width = kThreads / tile.planes / tile.height;
  }
  return tile;
}

template <typename T, bool kMax>
void forward(const char* name, const PoolArguments& args) {
  if (pool_direct_windows(args, kMax)) return;
  const PoolGeometry& g = args.geometry;
  const Tile tile = tile_of(g);
  for_each_piece(g, [&](const PoolTask& task, int64_t n) {
    const int64_t blocks = ceil_div(task.planes, tile.planes) * g.output[0] * ceil_div(g.output[1], tile.height) *
                           ceil_div(g.output[2], tile.width);
    char* places = static_cast<char*>(args.places_out);
    if (places != nullptr) places += n * task.y.image * (task.byte_places ? 1 : 4);
    launch(name, band_kernel<T, kMax>, grid_of(blocks), kThreads, 0, args.stream, task, tile,
           static_cast<const T*>(args.input) + n * task.x.image, static_cast<T*>(args.output) + n * task.y.image,
           static_cast<void*>(places));
  });
}

const char* unsupported(const PoolGeometry& g, DType dtype) {
  if (dtype != DType::float32 && dtype != DType::float64 && dtype != DType::float16 && dtype != DType::bfloat16)
    return "integers";
  if (g.channels * g.input_places() > kMaxElements || g.channels * g.output_places() > kMaxElements)
    return "an image has 2^31 elements or more";
  constexpr int64_t kSide = 1 << 21;  // times a tile's height stays below 2^30
  for (int i = 0; i < kMaxSpatial; ++i)
    if (g.input[i] + g.pad_before[i] + g.pad_after[i] >= kSide || g.stride[i] >= kSide)
      return "a padded side or a stride has 2^21 places or more";
  for (int i = 0; i < kMaxSpatial; ++i)
    if (g.adaptive && (g.input[i] + 1) * (g.output[i] + 1) > kMaxElements)
      return "an adaptive side's places times its windows come to 2^31 or more";
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
    [](const PoolArguments& args) { pool_direct_backward(args, true); },
    max_pool_indices,
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        forward<typename decltype(type)::type, false>("pool_direct_avg_forward", args);
      });
    },
    [](const PoolArguments& args) { pool_direct_backward(args, false); },
};

}  // namespace convext::cuda
