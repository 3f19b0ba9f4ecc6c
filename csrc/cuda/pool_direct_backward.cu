// The gradients of pooling, gathered: no atomics, so deterministic.
//
//   dx[h w] = sum over the outputs p q whose windows cover h w, in row-major order, of
//             dy[p q] where the place saved for p q is h w's tap (max),   dy[p q] / divisor(p q) (average)
//
// gather_kernel: any window, also dilated, of three dimensions, or adaptive. A thread per input place and pack of
// channels (channels_last; 16 bytes) or per element finds by division the outputs that span it.
// For windows of 2x2 at stride 2 and 3x3 at strides 2 and 1, unrolled: a thread makes a patch, the kStep x kStep places
// that begin with the same padded window (of 3x3 at stride 1 two patches, one above the other); the outputs that
// reach over it are 1, 2x2 or 4x3, at known taps, and each is loaded, or divided, once for the whole patch.
// patch_kernel, channels_last: a pack of channels. row_kernel, contiguous: rows, or whole planes, of dy and of the
// places pass through shared memory 16 bytes at a time wherever they begin, and those of dx the same way back.
//
// Traffic: dy, a byte per output (max) and dx, each once, but for the rows of outputs that neighbouring blocks both
// reach; what patches share comes from the first-level cache or shared memory.
#include "pool_direct.cuh"

namespace convext::cuda {
namespace {

constexpr const char* kNames[] = {"pool_direct_avg_backward", "pool_direct_max_backward"};

template <typename T, bool kMax, int kSize>
__global__ __launch_bounds__(kThreads, 1) void gather_kernel(const PoolTask task, Divide by_packs,
                                                             const T* __restrict__ dy, const void* __restrict__ places,
                                                             T* __restrict__ dx) {
  using A = Accumulate<T>;
  int pack = 0, w = int(blockIdx.x) * kThreads + int(threadIdx.x);
  const bool contiguous = task.x.place == 1;
  if (!contiguous) pack = w, w = split(pack, by_packs);
  int h = split(w, task.by_in[2]), d = split(h, task.by_in[1]), plane = split(d, task.by_in[0]);
  if (!contiguous) plane = plane * task.by_channels.divisor + pack * kSize;
  if (plane >= task.planes) return;

  const int y_plane = task.plane_offset(task.y, plane);
  const Range32 os = task.spanning(0, d), ps = task.spanning(1, h), qs = task.spanning(2, w);
  A sum[kSize] = {};
  for (int o = os.first; o < os.last; ++o) {
    const int t = task.tap_of(0, d, o);
    for (int p = ps.first; p < ps.last; ++p) {
      const int r = task.tap_of(1, h, p);
      if (t < 0 || r < 0) continue;
      for (int q = qs.first; q < qs.last; ++q) {
        const int s = task.tap_of(2, w, q), at = y_plane + task.output_offset(o, p, q);
        if (s < 0) continue;
        const Pack<T, kSize> grad = load_pack<kSize>(dy + at);
        const int tap = (t * task.kernel[1] + r) * task.kernel[2] + s;
        Pack<uint8_t, kSize> bytes = {};
        if (kMax && task.byte_places) bytes = load_pack<kSize>(static_cast<const uint8_t*>(places) + at);
        const Divisor<A> divisor = kMax ? Divisor<A>() : task.divisor_of<A>(o, p, q);
#pragma unroll
        for (int c = 0; c < kSize; ++c) {
          const A value = to_accumulate(grad.v[c]);
          if constexpr (!kMax)
            sum[c] += divisor.template under<false>(value);
          else if ((task.byte_places ? bytes.v[c] : load_place(places, false, at + c)) == tap)
            sum[c] += value;
        }
      }
    }
  }
  Pack<T, kSize> result;
#pragma unroll
  for (int c = 0; c < kSize; ++c) result.v[c] = from_accumulate<T>(sum[c]);
  store_pack(dx + task.plane_offset(task.x, plane) + task.input_offset(d, h, w), result);
}

// A square window and its step.
template <int kSide_, int kStep_>
struct Square {
  static constexpr int kSide = kSide_, kStep = kStep_;
  static constexpr int kBack = (kSide - 1) / kStep;   // how many outputs before its own a patch is reached by
  static constexpr int kPatches = kBack > 1 ? 2 : 1;  // of a thread, one above the other
  static constexpr int kRows = kPatches * kStep, kColumns = kStep;  // of its places

  // How many patches cover an axis.
  static int patches(const PoolGeometry& g, int axis) {
    return int(ceil_div(g.input[axis] + g.pad_before[axis], kStep));
  }
};

// The gradient of the places that begin with padded place (a, b) kStep. load(p, q, &grad, &place) gives packs.
template <typename T, bool kMax, int kSize, typename Square, typename Load>
__device__ __forceinline__ void gather_patch(const PoolTask& task, int a, int b, const Load& load,
                                             Accumulate<T> (&sum)[Square::kRows][Square::kColumns][kSize]) {
  constexpr int kSide = Square::kSide, kStep = Square::kStep, kBack = Square::kBack;
#pragma unroll
  for (int i = -kBack; i < Square::kPatches; ++i) {
    const int p = a + i;
#pragma unroll
    for (int j = -kBack; j <= 0; ++j) {
      const int q = b + j;
      if (p < 0 || p >= task.out[1] || q < 0 || q >= task.out[2]) continue;
      Pack<T, kSize> grad;
      Pack<uint8_t, kSize> place = {};
      load(p, q, grad, place);
      using A = Accumulate<T>;
      const Divisor<A> divisor = kMax ? Divisor<A>() : task.divisor_of<A>(0, p, q);
      A value[kSize];
#pragma unroll
      for (int c = 0; c < kSize; ++c) {
        value[c] = to_accumulate(grad.v[c]);
        if constexpr (!kMax) value[c] = divisor.template under<true>(value[c]);
      }
#pragma unroll
      for (int row = 0; row < Square::kRows; ++row)
#pragma unroll
        for (int column = 0; column < Square::kColumns; ++column) {
          const int r = row - i * kStep, s = column - j * kStep;
          if (r < 0 || r >= kSide || s >= kSide) continue;
#pragma unroll
          for (int c = 0; c < kSize; ++c)
            if (!kMax || place.v[c] == r * kSide + s) sum[row][column][c] += value[c];
        }
    }
  }
}

// by_packs: packs of channels per place; by_columns, by_rows: patches along an axis.
template <typename T, bool kMax, int kSize, typename Square>
__global__ __launch_bounds__(kThreads, 1) void patch_kernel(const PoolTask task, Divide by_packs, Divide by_columns,
                                                            Divide by_rows, const T* __restrict__ dy,
                                                            const uint8_t* __restrict__ places, T* __restrict__ dx) {
  int pack = int(blockIdx.x) * kThreads + int(threadIdx.x), b = split(pack, by_packs), a = split(b, by_columns);
  int d = split(a, by_rows);
  const int plane = split(d, task.by_in[0]) * task.by_channels.divisor + pack * kSize;
  if (plane >= task.planes) return;
  a *= Square::kPatches;

  const int y_plane = task.plane_offset(task.y, plane), x_plane = task.plane_offset(task.x, plane);
  Accumulate<T> sum[Square::kRows][Square::kColumns][kSize] = {};
  const auto load = [&](int p, int q, Pack<T, kSize>& grad, Pack<uint8_t, kSize>& place) {
    const int at = y_plane + task.output_offset(d, p, q);
    grad = load_pack<kSize>(dy + at);
    if (kMax) place = load_pack<kSize>(places + at);
  };
  gather_patch<T, kMax, kSize, Square>(task, a, b, load, sum);

#pragma unroll
  for (int row = 0; row < Square::kRows; ++row)
#pragma unroll
    for (int column = 0; column < Square::kColumns; ++column) {
      const int h = a * Square::kStep - task.before[1] + row, w = b * Square::kStep - task.before[2] + column;
      if (h < 0 || h >= task.in[1] || w < 0 || w >= task.in[2]) continue;
      Pack<T, kSize> result;
#pragma unroll
      for (int c = 0; c < kSize; ++c) result.v[c] = from_accumulate<T>(sum[row][column][c]);
      store_pack(dx + x_plane + task.input_offset(d, h, w), result);
    }
}

// A plane here is an image of one channel and one depth: they lie one behind the other. Units of tiles are strips of
// patches.
template <typename T, bool kMax, typename Square>
__global__ __launch_bounds__(kThreads, 1) void row_kernel(const PoolTask task, const RowTiles tiles, int all_planes,
                                                          const T* __restrict__ dy, const uint8_t* __restrict__ places,
                                                          T* __restrict__ dx) {
  CONVEXT_DYNAMIC_SHARED(unsigned char, shared);
  const int height = task.in[1], width = task.in[2], out_height = task.out[1], out_width = task.out[2];
  const int band = int(blockIdx.x) % tiles.bands, plane_first = int(blockIdx.x) / tiles.bands * tiles.planes;
  const int planes = all_planes - plane_first < tiles.planes ? all_planes - plane_first : tiles.planes;
  const int a_first = band * tiles.units * Square::kPatches, a_end = a_first + tiles.units * Square::kPatches;

  // Rows of dx, and the outputs that reach them: of a plane that is not cut, all.
  int h_first = 0, h_end = height, p_first = 0, p_end = out_height;
  if (tiles.bands > 1) {
    const int first = a_first * Square::kStep - task.before[1], end = a_end * Square::kStep - task.before[1];
    h_first = first < 0 ? 0 : first < height ? first : height;
    h_end = end < h_first ? h_first : end < height ? end : height;
    p_first = a_first < Square::kBack ? 0 : a_first - Square::kBack;
    p_first = p_first < out_height ? p_first : out_height;
    p_end = a_end < out_height ? a_end : out_height;
  }
  const int rows = h_end - h_first, y_rows = p_end - p_first;
  const int x_count = planes * rows * width, y_count = planes * y_rows * out_width;
  const int from = (plane_first * out_height + p_first) * out_width;
  T* to = dx + (plane_first * height + h_first) * width;
  T* x_tile = reinterpret_cast<T*>(shared);
  T* y_tile = reinterpret_cast<T*>(shared + staged_bytes<T>(x_count));
  uint8_t* place_tile = shared + staged_bytes<T>(x_count) + staged_bytes<T>(y_count);
  stage(dy + from, y_count, y_tile);
  if (kMax) stage(places + from, y_count, place_tile);
  __syncthreads();

  const T* y_staged = y_tile + phase_of(dy + from);
  const uint8_t* place_staged = place_tile + phase_of(places + from);
  T* x_staged = x_tile + phase_of(to);
  for (int i = threadIdx.x; i < planes * tiles.units * tiles.by_columns.divisor; i += kThreads) {
    int b = i, unit = split(b, tiles.by_columns);
    const int plane = split(unit, tiles.by_units), a = a_first + unit * Square::kPatches;
    Accumulate<T> sum[Square::kRows][Square::kColumns][1] = {};
    const auto load = [&](int p, int q, Pack<T, 1>& grad, Pack<uint8_t, 1>& place) {
      const int at = (plane * y_rows + p - p_first) * out_width + q;
      grad.v[0] = y_staged[at];
      if (kMax) place.v[0] = place_staged[at];
    };
    gather_patch<T, kMax, 1, Square>(task, a, b, load, sum);
#pragma unroll
    for (int row = 0; row < Square::kRows; ++row)
#pragma unroll
      for (int column = 0; column < Square::kColumns; ++column) {
        const int h = a * Square::kStep - task.before[1] + row, w = b * Square::kStep - task.before[2] + column;
        if (h >= h_first && h < h_end && w >= 0 && w < width)
          x_staged[(plane * rows + h - h_first) * width + w] = from_accumulate<T>(sum[row][column][0]);
      }
  }
  __syncthreads();
  unstage(x_tile, x_count, to);
}

// The places of image n.
const void* places_from(const PoolArguments& args, const PoolTask& task, int64_t n) {
  const char* places = static_cast<const char*>(args.places);
  return places == nullptr ? nullptr : places + n * task.y.image * (task.byte_places ? 1 : 4);
}

template <typename T, bool kMax, int kSize>
void run_gather(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  for_each_piece(g, [&](const PoolTask& task, int64_t n) {
    const int64_t threads = task.planes / kSize * g.input_places();
    launch(kNames[kMax], gather_kernel<T, kMax, kSize>, grid_of(ceil_div(threads, kThreads)), kThreads, 0, args.stream,
           task, Divide(g.layout == Layout::contiguous ? 1 : g.channels / kSize),
           static_cast<const T*>(args.grad_output) + n * task.y.image, places_from(args, task, n),
           static_cast<T*>(args.output) + n * task.x.image);
  });
}

template <typename T, bool kMax, typename Square>
void run_patches(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t rows = ceil_div(Square::patches(g, 1), Square::kPatches), columns = Square::patches(g, 2);
  for_each_piece(g, [&](const PoolTask& task, int64_t n) {
    const int64_t threads = task.planes / kPack<T> * task.in[0] * rows * columns;
    launch(kNames[kMax], patch_kernel<T, kMax, kPack<T>, Square>, grid_of(ceil_div(threads, kThreads)), kThreads, 0,
           args.stream, task, Divide(g.channels / kPack<T>), Divide(columns), Divide(rows),
           static_cast<const T*>(args.grad_output) + n * task.y.image,
           static_cast<const uint8_t*>(places_from(args, task, n)), static_cast<T*>(args.output) + n * task.x.image);
  });
}

template <typename T, bool kMax, typename Square>
bool run_rows(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t all_units = ceil_div(Square::patches(g, 1), Square::kPatches);
  const auto bytes = [&](int64_t units, int64_t planes) {
    const int64_t patches = units * Square::kPatches;
    const bool whole = units >= all_units;
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    const int64_t x_rows = whole ? g.input[1] : least(patches * Square::kStep, g.input[1]);
    const int64_t y_rows = whole ? g.output[1] : least(patches + Square::kBack, g.output[1]);
    const int64_t y_count = planes * y_rows * g.output[2];
    return staged_bytes<T>(planes * x_rows * g.input[2]) + staged_bytes<T>(y_count) + staged_bytes<uint8_t>(y_count);
  };
  const RowTiles tiles = row_tiles(all_units, Square::patches(g, 2), g.batch * g.channels * g.input[0], bytes);
  if (tiles.units == 0) return false;
  for_each_piece(g, [&](const PoolTask& task, int64_t n) {
    const int planes = task.planes * task.in[0];
    launch(kNames[kMax], row_kernel<T, kMax, Square>, grid_of(ceil_div(planes, tiles.planes) * tiles.bands), kThreads,
           size_t(tiles.bytes), args.stream, task, tiles, planes,
           static_cast<const T*>(args.grad_output) + n * task.y.image,
           static_cast<const uint8_t*>(places_from(args, task, n)), static_cast<T*>(args.output) + n * task.x.image);
  });
  return true;
}

template <typename T, bool kMax, typename Square>
bool run_square(const PoolArguments& args, bool packs) {
  if (packs) return run_patches<T, kMax, Square>(args), true;
  return args.geometry.layout == Layout::contiguous && run_rows<T, kMax, Square>(args);
}

template <typename T, bool kMax>
void run(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const bool packs = packs_lie_well<T>(g, {args.grad_output, args.output}, args.places);
  if constexpr (sizeof(T) < 8) {
    const int64_t side = small_square(g, args.dtype), step = g.stride[1] == g.stride[2] ? g.stride[1] : 0;
    if (side == 2 && step == 2 && run_square<T, kMax, Square<2, 2>>(args, packs)) return;
    if (side == 3 && step == 2 && run_square<T, kMax, Square<3, 2>>(args, packs)) return;
    if (side == 3 && step == 1 && run_square<T, kMax, Square<3, 1>>(args, packs)) return;
  }
  packs ? run_gather<T, kMax, kPack<T>>(args) : run_gather<T, kMax, 1>(args);
}

}  // namespace

void pool_direct_backward(const PoolArguments& args, bool max) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    max ? run<T, true>(args) : run<T, false>(args);
  });
}

}  // namespace convext::cuda
