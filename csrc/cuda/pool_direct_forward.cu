// Pooling of small and of adaptive windows: packs of channels, or rows in shared memory.
//
//   row[h, q] = max (sum) over s of x[h, source(q, s)],   y[p, q] = max (sum) over r of row[source(p, r), q]
//
// pack_kernel, channels_last: a thread takes 16 bytes of channels (8 of float16, 4 of float32) and, of 3x3 windows, two
// outputs one above the other, which share the results of rows. Lanes lie along channels, then along q. kSide 2 and 3
// are square windows, unrolled; 0 is any window, also dilated, of three dimensions, or adaptive; that one also takes
// channels one by one where packs lie badly, and adaptive windows of contiguous images.
// row_kernel, contiguous: whole rows, or whole planes while they are small, pass through shared memory 16 bytes at a
// time wherever they begin, and the results the same way back; between, a thread makes outputs as above, one channel
// wide, lanes along q.
//
// Traffic: x, y and a byte per output (max, for training), each once, but for a row or two that neighbouring blocks
// both read; the overlap of windows is left to the first-level cache (channels_last: 9 loads per 3x3 output at stride 2
// come to 7.5, at stride 1 to 6) or to shared memory. Sums and maxima run row by row in every kernel of direct pooling,
// so that no bit depends on which one runs.
#include "pool_direct.cuh"

namespace convext::cuda {
namespace {

constexpr int64_t kFewTaps = 32;  // of more, bands of shared rows (pool_direct.cu) make fewer steps

template <int kSide>
constexpr int kStrip = kSide == 3 ? 2 : 1;  // outputs of a thread, one above the other

// A running maximum or sum of a pack of channels. Taps come in order.
template <typename A, bool kMax, int kSize>
struct Running {
  A value[kSize];
  int tap[kSize];  // max: the winner's

  __device__ __forceinline__ void start(int first_tap) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) value[i] = kMax ? kLowest<A> : A(0), tap[i] = first_tap;
  }
  __device__ __forceinline__ void take(int i, A next, int next_tap) {
    if (!kMax)
      value[i] += next;
    else if (wins(next, value[i]))
      value[i] = next, tap[i] = next_tap;
  }
};

// The first tap inside along one axis is the winner unless another wins, so that a window of -infinity names it.
__device__ __forceinline__ int first_tap(int place) { return place < 0 ? -place : 0; }

// kStrip outputs from p down at q: kSide x kSide windows. load(h, w) gives a pack of the input.
template <typename T, bool kMax, int kSize, int kSide, typename Load>
__device__ __forceinline__ void pool_strip(const PoolTask& task, int p, int q, const Load& load,
                                           Running<Accumulate<T>, kMax, kSize> (&best)[kStrip<kSide>]) {
  const int step = task.stride[1], h_first = p * step - task.before[1], w_first = q * task.stride[2] - task.before[2];
  const int s_first = first_tap(w_first);
  const bool columns = s_first < kSide && w_first + s_first < task.in[2];
#pragma unroll
  for (int j = 0; j < kStrip<kSide>; ++j) {
    const int h = h_first + j * step, r_first = first_tap(h);
    const bool inside = columns && r_first < kSide && h + r_first < task.in[1];
    best[j].start(inside ? r_first * kSide + s_first : 0);
  }
  const int rows = (kStrip<kSide> - 1) * step + kSide;
#pragma unroll 1
  for (int i = 0; i < rows; ++i) {
    if (i >= kSide && i < step) continue;  // between the windows
    const int h = h_first + i;
    if (h < 0 || h >= task.in[1]) continue;
    Pack<T, kSize> x[kSide] = {};
#pragma unroll
    for (int s = 0; s < kSide; ++s)
      if (w_first + s >= 0 && w_first + s < task.in[2]) x[s] = load(h, w_first + s);
    Running<Accumulate<T>, kMax, kSize> row;
    row.start(s_first);
#pragma unroll
    for (int s = 0; s < kSide; ++s) {
      if (w_first + s < 0 || w_first + s >= task.in[2]) continue;
#pragma unroll
      for (int c = 0; c < kSize; ++c) row.take(c, to_accumulate(x[s].v[c]), s);
    }
#pragma unroll
    for (int j = 0; j < kStrip<kSide>; ++j) {
      const int r = i - j * step;
      if (r < 0 || r >= kSide) continue;
#pragma unroll
      for (int c = 0; c < kSize; ++c) best[j].take(c, row.value[c], r * kSide + row.tap[c]);
    }
  }
}

// Any window, output (o, p, q). load(d, h, w).
template <typename T, bool kMax, int kSize, typename Load>
__device__ __forceinline__ void pool_window(const PoolTask& task, int o, int p, int q, const Load& load,
                                            Running<Accumulate<T>, kMax, kSize>& best) {
  const Taps ts = task.taps(0, o), rs = task.taps(1, p), ss = task.taps(2, q);
  const bool inside = ts.first < ts.last && rs.first < rs.last && ss.first < ss.last;
  best.start(inside ? (ts.first * task.kernel[1] + rs.first) * task.kernel[2] + ss.first : 0);
  for (int t = ts.first; t < ts.last; ++t)
    for (int r = rs.first; r < rs.last; ++r) {
      const int d = ts.place + t * task.dilation[0], h = rs.place + r * task.dilation[1];
      Running<Accumulate<T>, kMax, kSize> row;
      row.start(ss.first);
#pragma unroll 4
      for (int s = ss.first; s < ss.last; ++s) {
        const Pack<T, kSize> x = load(d, h, ss.place + s * task.dilation[2]);
#pragma unroll
        for (int c = 0; c < kSize; ++c) row.take(c, to_accumulate(x.v[c]), s);
      }
      const int first = (t * task.kernel[1] + r) * task.kernel[2];
#pragma unroll
      for (int c = 0; c < kSize; ++c) best.take(c, row.value[c], first + row.tap[c]);
    }
}

// by_packs: packs of channels per place; by_strips: strips of outputs per column.
template <typename T, bool kMax, int kSize, int kSide>
__global__ __launch_bounds__(kThreads, 1) void pack_kernel(const PoolTask task, Divide by_packs, Divide by_strips,
                                                           const T* __restrict__ x, T* __restrict__ y, void* places) {
  int pack = 0, q = int(blockIdx.x) * kThreads + int(threadIdx.x);
  const bool contiguous = task.x.place == 1;
  if (!contiguous) pack = q, q = split(pack, by_packs);
  int strip = split(q, task.by_out[2]), o = split(strip, by_strips), plane = split(o, task.by_out[0]);
  if (!contiguous) plane = plane * task.by_channels.divisor + pack * kSize;
  if (plane >= task.planes) return;

  const T* x_plane = x + task.plane_offset(task.x, plane);
  const auto load = [&](int d, int h, int w) { return load_pack<kSize>(x_plane + task.input_offset(d, h, w)); };
  const int p_first = strip * kStrip<kSide>;
  Running<Accumulate<T>, kMax, kSize> best[kStrip<kSide>];
  if constexpr (kSide == 0)
    pool_window<T, kMax, kSize>(task, o, p_first, q, load, best[0]);
  else
    pool_strip<T, kMax, kSize, kSide>(task, p_first, q, [&](int h, int w) { return load(o, h, w); }, best);

  const int y_plane = task.plane_offset(task.y, plane);
#pragma unroll
  for (int j = 0; j < kStrip<kSide>; ++j) {
    const int p = p_first + j, at = y_plane + task.output_offset(o, p, q);
    if (p >= task.out[1]) continue;
    if constexpr (!kMax) {
      const Divisor<Accumulate<T>> divisor = task.divisor_of<Accumulate<T>>(o, p, q);
#pragma unroll
      for (int c = 0; c < kSize; ++c) best[j].value[c] = divisor.template under<(kSide > 0)>(best[j].value[c]);
    }
    Pack<T, kSize> result;
    Pack<uint8_t, kSize> bytes;
#pragma unroll
    for (int c = 0; c < kSize; ++c) {
      result.v[c] = from_accumulate<T>(best[j].value[c]);
      bytes.v[c] = static_cast<uint8_t>(best[j].tap[c]);
    }
    store_pack(y + at, result);
    if (!kMax || places == nullptr) continue;
    if (kSide > 0 || task.byte_places) {
      store_pack(static_cast<uint8_t*>(places) + at, bytes);
    } else {
#pragma unroll
      for (int c = 0; c < kSize; ++c) store_place(places, false, at + c, best[j].tap[c]);
    }
  }
}

// A plane here is an image of one channel and one depth: they lie one behind the other.
template <typename T, bool kMax, int kSide>
__global__ __launch_bounds__(kThreads, 1) void row_kernel(const PoolTask task, const RowTiles tiles, int all_planes,
                                                          const T* __restrict__ x, T* __restrict__ y,
                                                          uint8_t* __restrict__ places) {
  CONVEXT_DYNAMIC_SHARED(unsigned char, shared);
  const int height = task.in[1], width = task.in[2], out_height = task.out[1], out_width = task.out[2];
  const int band = int(blockIdx.x) % tiles.bands, plane_first = int(blockIdx.x) / tiles.bands * tiles.planes;
  const int planes = all_planes - plane_first < tiles.planes ? all_planes - plane_first : tiles.planes;
  const int p_first = band * tiles.units * kStrip<kSide>;
  const int room = out_height - p_first, most = tiles.units * kStrip<kSide>, rows = room < most ? room : most;

  int h_first = 0, h_end = height;
  if (tiles.bands > 1) {
    const int first = p_first * task.stride[1] - task.before[1], end = first + (rows - 1) * task.stride[1] + kSide;
    h_first = first < 0 ? 0 : first < height ? first : height;
    h_end = end < h_first ? h_first : end < height ? end : height;
  }
  const int x_rows = h_end - h_first, x_count = planes * x_rows * width, y_count = planes * rows * out_width;
  const T* from = x + (plane_first * height + h_first) * width;
  const int to = (plane_first * out_height + p_first) * out_width;
  T* x_tile = reinterpret_cast<T*>(shared);
  T* y_tile = reinterpret_cast<T*>(shared + staged_bytes<T>(x_count));
  uint8_t* place_tile = shared + staged_bytes<T>(x_count) + staged_bytes<T>(y_count);
  stage(from, x_count, x_tile);
  __syncthreads();

  const T* x_staged = x_tile + phase_of(from);
  T* y_staged = y_tile + phase_of(y + to);
  uint8_t* place_staged = place_tile + phase_of(places + to);
  for (int i = threadIdx.x; i < planes * tiles.units * out_width; i += kThreads) {
    int q = i, strip = split(q, tiles.by_columns);
    const int plane = split(strip, tiles.by_units), p = strip * kStrip<kSide>;
    Running<Accumulate<T>, kMax, 1> best[kStrip<kSide>];
    const auto load = [&](int h, int w) { return load_pack<1>(x_staged + (plane * x_rows + h - h_first) * width + w); };
    pool_strip<T, kMax, 1, kSide>(task, p_first + p, q, load, best);
#pragma unroll
    for (int j = 0; j < kStrip<kSide>; ++j) {
      const int at = (plane * rows + p + j) * out_width + q;
      if (p + j >= rows) continue;
      auto value = best[j].value[0];
      if constexpr (!kMax) value = task.divisor_of<Accumulate<T>>(0, p_first + p + j, q).template under<true>(value);
      y_staged[at] = from_accumulate<T>(value);
      if (kMax && places != nullptr) place_staged[at] = static_cast<uint8_t>(best[j].tap[0]);
    }
  }
  __syncthreads();
  unstage(y_tile, y_count, y + to);
  if (kMax && places != nullptr) unstage(place_tile, y_count, places + to);
}

constexpr const char* kNames[] = {"pool_direct_avg_forward", "pool_direct_max_forward"};

// The places of image n.
void* places_from(const PoolArguments& args, const PoolTask& task, int64_t n) {
  char* places = static_cast<char*>(args.places_out);
  return places == nullptr ? nullptr : places + n * task.y.image * (task.byte_places ? 1 : 4);
}

template <typename T, bool kMax, int kSize, int kSide>
void run_packs(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t packs = g.layout == Layout::contiguous ? 1 : g.channels / kSize;
  const int64_t strips = ceil_div(g.output[1], kStrip<kSide>);
  for_each_piece(g, [&](const PoolTask& task, int64_t n) {
    const int64_t threads = task.planes / kSize * g.output[0] * strips * g.output[2];
    launch(kNames[kMax], pack_kernel<T, kMax, kSize, kSide>, grid_of(ceil_div(threads, kThreads)), kThreads, 0,
           args.stream, task, Divide(packs), Divide(strips), static_cast<const T*>(args.input) + n * task.x.image,
           static_cast<T*>(args.output) + n * task.y.image, places_from(args, task, n));
  });
}

template <typename T, bool kMax, int kSide>
bool run_rows(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const auto bytes = [&](int64_t units, int64_t planes) {
    const int64_t rows = units * kStrip<kSide>, reach = (rows - 1) * g.stride[1] + kSide;
    const int64_t x_rows = rows < g.output[1] && reach < g.input[1] ? reach : g.input[1];
    const int64_t y_count = planes * (rows < g.output[1] ? rows : g.output[1]) * g.output[2];
    return staged_bytes<T>(planes * x_rows * g.input[2]) + staged_bytes<T>(y_count) + staged_bytes<uint8_t>(y_count);
  };
  const RowTiles tiles =
      row_tiles(ceil_div(g.output[1], kStrip<kSide>), g.output[2], g.batch * g.channels * g.input[0], bytes);
  if (tiles.units == 0) return false;
  for_each_piece(g, [&](const PoolTask& task, int64_t n) {
    const int planes = task.planes * task.in[0];
    launch(kNames[kMax], row_kernel<T, kMax, kSide>, grid_of(ceil_div(planes, tiles.planes) * tiles.bands), kThreads,
           size_t(tiles.bytes), args.stream, task, tiles, planes, static_cast<const T*>(args.input) + n * task.x.image,
           static_cast<T*>(args.output) + n * task.y.image, static_cast<uint8_t*>(places_from(args, task, n)));
  });
  return true;
}

template <typename T, bool kMax>
bool run(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int side = small_square(g, args.dtype);
  if (packs_lie_well<T>(g, {args.input, args.output}, args.places_out)) {
    if constexpr (sizeof(T) < 8) {
      if (side == 2) return run_packs<T, kMax, kPack<T>, 2>(args), true;
      if (side == 3) return run_packs<T, kMax, kPack<T>, 3>(args), true;
    }
    if (g.adaptive || g.window() <= kFewTaps) return run_packs<T, kMax, kPack<T>, 0>(args), true;
  }
  if constexpr (sizeof(T) < 8) {
    if (side == 2 && g.layout == Layout::contiguous) return run_rows<T, kMax, 2>(args);
    if (side == 3 && g.layout == Layout::contiguous) return run_rows<T, kMax, 3>(args);
  }
  if (!g.adaptive) return false;
  return run_packs<T, kMax, 1, 0>(args), true;
}

}  // namespace

bool pool_direct_windows(const PoolArguments& args, bool max) {
  return dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return max ? run<T, true>(args) : run<T, false>(args);
  });
}

}  // namespace convext::cuda
