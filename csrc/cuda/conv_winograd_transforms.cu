// Winograd's transforms, each a kernel whose threads take one tile (or filter) of one channel from memory to its points
// or back:
//
//   to_points     v = B^T d B, or A dy A^T      padding resolved place by place: n^2 loads, n^2 stores
//   filters       u = G w G^T
//   from_points   y = A^T m A  (+ bias)
//   filter_sums   dw = G^T m G, the parts of m added in order before
//   fold          the gradient of padding that repeats the input: a gather, one thread per place
//
// A thread keeps a whole tile in registers, n^2 numbers of it (64 at most). Lanes run along the contiguous index of the
// images: tiles, whose places overlap in the first-level cache, or channels; and so do points in memory, so that all
// stores and loads of points are coalesced. Traffic: (n / m)^2 times the image, written and, by the product, read.
#include "conv_winograd.cuh"

namespace convext::cuda {
namespace {

// Which row and column of `columns` x rows elements thread `at` has.
struct Element {
  int row, column;
};
__device__ __forceinline__ Element element(int at, const Divide& by_rows, const Divide& by_columns,
                                           bool along_columns) {
  Element e;
  if (along_columns) {
    e.row = split(at, by_columns), e.column = at;
  } else {
    e.column = split(at, by_rows), e.row = at;
  }
  return e;
}

template <typename A, class H, class W, int kStepH, int kStepW>
__global__ __launch_bounds__(kThreads, 1) void to_points_kernel(const Patches patches, Divide by_all_rows,
                                                                Divide by_columns, Divide by_rows, Divide by_channels,
                                                                const A* __restrict__ x, A* __restrict__ v) {
  const int at = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (at >= by_all_rows.divisor * patches.columns) return;
  Element e = element(at, by_all_rows, by_columns, patches.to.column == 1);
  const int group = split(e.row, by_rows);
  int c = e.row;
  const int t = split(c, by_channels);
  const Window& window = patches.window;
  const TileGrid::Tile tile = patches.tiles.tile(patches.first + e.column);
  const int d = window.source(0, tile.o * window.stride[0] - window.before[0] + t);
  const A* plane = x + tile.n * patches.image.image + (group * patches.channels + c) * patches.image.channel +
                   d * window.in[1] * window.in[2] * patches.image.place;
  int column[W::in];
#pragma unroll
  for (int s = 0; s < W::in; ++s) column[s] = shown_place(window, 2, tile.j * kStepW + s - window.before[2]);
  const auto load = [&](int r, int s) {
    const int h = shown_place(window, 1, tile.i * kStepH + r - window.before[1]);
    return d >= 0 && h >= 0 && column[s] >= 0 ? plane[(h * window.in[2] + column[s]) * patches.image.place] : A(0);
  };
  const int point = patches.rows * patches.columns;
  A* to = v + group * H::out * W::out * point + e.row * patches.to.row + e.column * patches.to.column;
  transform<A, H, W>(load, [&](int r, int s, A value) { to[(r * W::out + s) * point] = value; });
}

template <typename A, class H, class W>
__global__ __launch_bounds__(kThreads, 1) void filters_kernel(const Filters filters, Divide by_made, Divide by_rows,
                                                              Divide by_channels, const A* __restrict__ w,
                                                              A* __restrict__ u) {
  int k = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (k >= filters.groups * filters.made * filters.rows) return;
  int c = k;
  k = split(c, by_rows);
  const int row = c, t = split(c, by_channels), group = split(k, by_made), point = filters.made * filters.rows;
  A* to = u + group * H::out * W::out * point + k * filters.rows + row;
  const auto load = [&](int r, int s) { return w[filters.offset(group, k, c, t, r * W::in + s, H::in * W::in)]; };
  transform<A, H, W>(load, [&](int r, int s, A value) { to[(r * W::out + s) * point] = value; });
}

template <typename A, class H, class W>
__global__ __launch_bounds__(kThreads, 1) void from_points_kernel(const Results results, Divide by_all_made,
                                                                  Divide by_columns, Divide by_made,
                                                                  const A* __restrict__ m, const A* __restrict__ bias,
                                                                  A* __restrict__ y) {
  const int at = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (at >= by_all_made.divisor * results.columns) return;
  Element e = element(at, by_all_made, by_columns, results.from.column == 1);
  const int channel = e.row, group = split(e.row, by_made), point = results.made * results.columns;
  const A* from = m + group * H::in * W::in * point + e.row * results.from.row + e.column * results.from.column;
  const TileGrid::Tile tile = results.tiles.tile(results.first + e.column);
  const A start = bias != nullptr ? bias[channel] : A(0);
  const int h0 = tile.i * H::out, w0 = tile.j * W::out;
  A* to = y + tile.n * results.image.image + channel * results.image.channel +
          ((tile.o * results.height + h0) * results.width + w0) * results.image.place;
  transform<A, H, W>([&](int r, int s) { return from[(r * W::in + s) * point]; },
                     [&](int r, int s, A value) {
                       if (h0 + r < results.height && w0 + s < results.width)
                         to[(r * results.width + s) * results.image.place] = start + value;
                     });
}

// The first part = the sum of all, in order.
template <typename A>
__global__ __launch_bounds__(kThreads, 1) void add_parts_kernel(A* m, int elements, int parts) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  A sum = m[i];
  for (int part = 1; part < parts; ++part) sum += m[i + part * int64_t(elements)];
  m[i] = sum;
}

template <typename A, class H, class W>
__global__ __launch_bounds__(kThreads, 1) void filter_sums_kernel(const Filters filters, Divide by_made, Divide by_rows,
                                                                  Divide by_channels, const A* __restrict__ m,
                                                                  A* __restrict__ dw) {
  int k = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (k >= filters.groups * filters.made * filters.rows) return;
  int c = k;
  k = split(c, by_rows);
  const int row = c, t = split(c, by_channels), group = split(k, by_made), point = filters.made * filters.rows;
  const A* from = m + group * H::in * W::in * point + k * filters.rows + row;
  const auto load = [&](int r, int s) { return from[(r * W::in + s) * point]; };
  transform<A, H, W>(load, [&](int r, int s, A value) {
    dw[filters.offset(group, k, c, t, r * W::out + s, H::out * W::out)] = value;
  });
}

template <typename A>
__global__ __launch_bounds__(kThreads, 1) void fold_kernel(const Window window, const Strides image, const Strides from,
                                                           int elements, Divide by_channels, Divide by_places,
                                                           const A* __restrict__ padded, A* __restrict__ dx) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= elements) return;
  int at = int(thread), c, n;
  if (image.place == 1) {
    c = split(at, by_places), n = split(c, by_channels);
  } else {
    c = at, at = split(c, by_channels), n = split(at, by_places);
  }
  const Place32 in = window.input_place(at);
  const A* plane = padded + n * from.image + c * from.channel;
  const int height = window.in[1] + window.before[1] + window.after[1];
  const int width = window.in[2] + window.before[2] + window.after[2], shown = window.shown(in);
  A sum = 0;
  for (int i = 0; i < shown; ++i) {
    const Place32 p = window.shown_at(in, i);
    const int row = (p.d + window.before[0]) * height + p.h + window.before[1];
    sum += plane[(row * width + p.w + window.before[2]) * from.place];
  }
  dx[n * image.image + c * image.channel + at * image.place] = sum;
}

}  // namespace

template <typename A>
void winograd_to_points(WinogradTile tile, const Patches& patches, bool of_gradient, const A* x, A* v, void* stream) {
  const int rows = patches.groups * patches.rows;
  dispatch_tile(tile, [&](auto of) {
    using H = typename decltype(of)::H;
    using W = typename decltype(of)::W;
    launch("conv_winograd_to_points",
           of_gradient ? to_points_kernel<A, OutputToPoints<H>, OutputToPoints<W>, H::m, W::m>
                       : to_points_kernel<A, InputToPoints<H>, InputToPoints<W>, H::m, W::m>,
           grid_of(ceil_div(int64_t(rows) * patches.columns, kThreads)), kThreads, 0, stream, patches, Divide(rows),
           Divide(patches.columns), Divide(patches.rows), Divide(patches.channels), x, v);
  });
}

template <typename A>
void winograd_filters(WinogradTile tile, const Filters& filters, const A* w, A* u, void* stream) {
  const int64_t elements = int64_t(filters.groups) * filters.made * filters.rows;
  dispatch_tile(tile, [&](auto of) {
    using H = WeightToPoints<typename decltype(of)::H>;
    using W = WeightToPoints<typename decltype(of)::W>;
    launch("conv_winograd_filters", filters_kernel<A, H, W>, grid_of(ceil_div(elements, kThreads)), kThreads, 0, stream,
           filters, Divide(filters.made), Divide(filters.rows), Divide(filters.channels), w, u);
  });
}

template <typename A>
void winograd_from_points(WinogradTile tile, const Results& results, const A* m, const A* bias, A* y, void* stream) {
  const int made = results.groups * results.made;
  dispatch_tile(tile, [&](auto of) {
    using H = PointsToOutput<typename decltype(of)::H>;
    using W = PointsToOutput<typename decltype(of)::W>;
    launch("conv_winograd_from_points", from_points_kernel<A, H, W>,
           grid_of(ceil_div(int64_t(made) * results.columns, kThreads)), kThreads, 0, stream, results, Divide(made),
           Divide(results.columns), Divide(results.made), m, bias, y);
  });
}

template <typename A>
void winograd_filter_sums(WinogradTile tile, const Filters& filters, A* m, int parts, A* dw, void* stream) {
  const int64_t elements = int64_t(filters.groups) * filters.made * filters.rows;
  dispatch_tile(tile, [&](auto of) {
    using H = PointsToWeight<typename decltype(of)::H>;
    using W = PointsToWeight<typename decltype(of)::W>;
    const int64_t all = H::in * W::in * elements;
    if (parts > 1)
      launch("conv_winograd_add_parts", add_parts_kernel<A>, grid_of(ceil_div(all, kThreads)), kThreads, 0, stream, m,
             int(all), parts);
    launch("conv_winograd_filter_sums", filter_sums_kernel<A, H, W>, grid_of(ceil_div(elements, kThreads)), kThreads, 0,
           stream, filters, Divide(filters.made), Divide(filters.rows), Divide(filters.channels),
           static_cast<const A*>(m), dw);
  });
}

template <typename A>
void winograd_fold(const ConvGeometry& g, int images, int channels, const A* padded, A* dx, void* stream) {
  int64_t places = 1;
  for (int i = 0; i < kMaxSpatial; ++i) places *= g.input[i] + g.pad_before[i] + g.pad_after[i];
  const int64_t elements = images * channels * g.input_places();
  launch("conv_winograd_fold", fold_kernel<A>, grid_of(ceil_div(elements, kThreads)), kThreads, 0, stream, Window(g),
         input_strides(g), strides_of(channels, places, g.layout), int(elements), Divide(channels),
         Divide(g.input_places()), padded, dx);
}

#define CONVEXT_INSTANTIATE(A)                                                                     \
  template void winograd_to_points(WinogradTile, const Patches&, bool, const A*, A*, void*);       \
  template void winograd_filters(WinogradTile, const Filters&, const A*, A*, void*);               \
  template void winograd_from_points(WinogradTile, const Results&, const A*, const A*, A*, void*); \
  template void winograd_filter_sums(WinogradTile, const Filters&, A*, int, A*, void*);            \
  template void winograd_fold(const ConvGeometry&, int, int, const A*, A*, void*);
CONVEXT_INSTANTIATE(float)
CONVEXT_INSTANTIATE(double)
#undef CONVEXT_INSTANTIATE

}  // namespace convext::cuda
