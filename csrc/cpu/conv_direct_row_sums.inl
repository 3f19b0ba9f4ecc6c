// Direct convolution, forward, where a group has one output channel and several planes to sum over (channels, depths),
// all contiguous: last layers, and the gradient of a first layer's input.
//
//   y[p][q] = bias + sum over planes i, r, s of x[i][p stride + r][q stride + s] * w[i][r][s]
//
// The register tile is that of conv_direct_rows.inl, kHigh output rows x a vector of columns, whose sums stay in
// registers through as many planes as the tile in first-level cache holds (kTileSize), and wait in a buffer of their
// own for the next ones: 3x3 takes 13 loads per 24 multiply-adds, and 16 more per chunk of planes.
//
// A task is a band of rows of one output plane. Tiles and their padding are filled as there.
// Traffic: the input once per depth of the kernel (and the overlap of bands), the output once.
// Limits: as conv_direct_rows.inl, kernels of at least 2 rows, float32 and float64.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kSumPlanes = 64;    // filled at once, at most
constexpr int64_t kSumColumns = 512;  // of a band
constexpr int64_t kSumRows = 32;      // of a band, at most

// The filled planes: `count` of them, x_plane apart in the tile; w[i] points at the first tap of plane i.
template <typename A>
struct SummedPlanes {
  const A* w[kSumPlanes];
  int64_t count = 0, x_plane, w_row, w_column, deep, columns, pitch, sums_pitch;
  const int64_t* offset;
};

// Adds to kHigh rows of kVectors vectors of sums.
template <typename A, int kHigh, int kVectors, int kStride, int kDeep>
void row_sums_tile(const SummedPlanes<A>& planes, const A* x, A* sums) {
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kHigh][kVectors];
#pragma GCC unroll 8
  for (int p = 0; p < kHigh; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[p][v] = load(sums + p * planes.sums_pitch + v * kCount);
  for (int64_t i = 0; i < planes.count; ++i, x += planes.x_plane) {
    const A* w = planes.w[i];
    if constexpr (kDeep > 0) {
      add_taps<A, kHigh, kVectors, kStride, kDeep>(sum, x, planes.pitch, planes.offset, planes.columns, w, planes.w_row,
                                                   planes.w_column);
    } else {
      add_tall_taps<A, kHigh, kVectors, kStride>(sum, x, planes.pitch, planes.offset, planes.columns, w, planes.w_row,
                                                 planes.w_column, planes.deep);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kHigh; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + p * planes.sums_pitch + v * kCount, sum[p][v]);
}

template <typename A, int kHigh, int kStride>
auto row_sums_tile_of(int64_t deep) {
  if (deep == 3) return &row_sums_tile<A, kHigh, kRowsVectors, kStride, 3>;
  if (deep == 5) return &row_sums_tile<A, kHigh, kRowsVectors, kStride, 5>;
  return &row_sums_tile<A, kHigh, kRowsVectors, kStride, 0>;
}

template <typename T>
bool suits_row_sums(const ConvGeometry& g) {
  const bool planes = g.layout == Layout::contiguous || (g.in_channels == 1 && g.out_channels == 1);
  return planes && std::is_same_v<T, Accumulate<T>> && g.group_outputs() == 1 && g.group_inputs() * g.kernel[0] > 1 &&
         g.kernel[1] > 1 && g.output[1] >= kRowsHigh / 2 && g.dilation[1] == 1 && g.stride[1] <= 2 &&
         g.stride[2] <= 2 && g.kernel[2] <= kMaxKernelColumns && rows_fit<Accumulate<T>>(g);
}

// Rows that a register tile makes at once.
int64_t row_sums_high(const ConvGeometry& g) { return g.stride[1] == 1 ? kRowsHigh : kRowsHigh / 2; }

template <typename T>
DirectPlan row_sums_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  constexpr int64_t kTile = kLanes<A> * kRowsVectors;
  DirectPlan plan;
  const int64_t high = row_sums_high(g);
  const auto rows_seen = [&](int64_t rows) { return (rows - 1) * g.stride[1] + g.kernel[1]; };
  plan.columns = ceil_div(g.output[2], ceil_div(g.output[2], kSumColumns));
  for (;; plan.columns = round_up(ceil_div(plan.columns, 2), kTile)) {
    if (plan.columns < g.output[2]) plan.columns = round_up(plan.columns, kTile);
    plan.plane = row_slots<A>(g, plan.columns).slots * g.stride[2];  // a row of the tile
    if (plan.columns <= kTile || plan.plane * rows_seen(high) <= kTileSize<A>) break;
  }
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  plan.rows = least(round_up(g.output[1], high), kSumRows);
  while (plan.rows > high && plan.plane * rows_seen(plan.rows) > kTileSize<A>) plan.rows -= high;
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.depths = g.output[0];
  plan.reduce = clamp(kTileSize<A> / (plan.plane * rows_seen(plan.rows)), 1, kSumPlanes);
  plan.prefetch = g.group_inputs() * g.input_places() * int64_t(sizeof(T)) > kFarSource;
  plan.tasks = g.batch * g.groups * plan.depths * plan.row_bands;
  return plan;
}

// Asks for what planes further on will be filled from.
template <typename T>
CONVEXT_INLINE void prefetch_rows(const T* plane, int64_t row, int64_t end, int64_t width, int64_t first,
                                  int64_t columns) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  const int64_t begin = greatest(first, int64_t(0)), last = least(first + columns, width) - 1;
  for (; row < end; ++row)
    for (int64_t w = begin; w < last + kLine; w += kLine)
      __builtin_prefetch(plane + row * width + least(w, last), 0, 2);
}

template <typename T>
void row_sums_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    constexpr int64_t kCount = kLanes<T>, kTile = kCount * kRowsVectors;
    const ConvGeometry& g = args.geometry;
    const int64_t p = take(task, plan.row_bands) * plan.rows, o = take(task, plan.depths), group = take(task, g.groups);
    const int64_t n = task, rows = least(plan.rows, g.output[1] - p), width = g.output[2];
    const int64_t high = row_sums_high(g), seen_rows = seen(g, kHeight, round_up(rows, high));
    const AxisView view_h = forward_view(g, 1), view_w = forward_view(g, 2);
    const int64_t h = p * g.stride[1] - g.pad_before[1], inputs = g.group_inputs(), taps = g.taps();

    alignas(64) T tile[kTileSize<T> + 2 * kCount];
    alignas(64) T sums[kSumRows * (kSumColumns + kTile)];
    int64_t offset[kMaxKernelColumns];
    const RowSlots slots = row_slots<T>(g, plan.columns);
    for (int64_t s = 0; s < g.kernel[2]; ++s) offset[s] = slots.of(s * g.dilation[2]);
    SummedPlanes<T> planes;
    planes.x_plane = plan.plane * seen(g, kHeight, plan.rows);
    planes.w_row = g.flip_kernel ? -g.kernel[2] : g.kernel[2];
    planes.w_column = g.flip_kernel ? -1 : 1;
    planes.deep = g.kernel[1], planes.columns = g.kernel[2], planes.pitch = plan.plane, planes.offset = offset;
    planes.sums_pitch = round_up(plan.columns, kTile);
    auto* add = g.stride[1] == 1 ? row_sums_tile_of<T, kRowsHigh, 1>(g.kernel[1])
                                 : row_sums_tile_of<T, kRowsHigh / 2, 2>(g.kernel[1]);

    // of the planes that will be filled when as many as the tile holds are summed
    const int64_t rows_first = clamp(h, 0, g.input[1]), rows_end = clamp(h + seen_rows, rows_first, g.input[1]);
    const int64_t ahead = ceil_div(plan.reduce, g.kernel[0]) * g.input_places();
    const T* x = static_cast<const T*>(args.input) + (n * g.groups + group) * inputs * g.input_places();
    const T* w = static_cast<const T*>(args.weight) + group * inputs * taps;
    T* y = static_cast<T*>(args.output) + (n * g.groups + group) * g.output_places() + (o * g.output[1] + p) * width;
    const T start = args.bias == nullptr ? T(0) : static_cast<const T*>(args.bias)[group];
    for (int64_t q = 0; q < width; q += plan.columns) {
      const int64_t columns = least(plan.columns, width - q), first = q * g.stride[2] - g.pad_before[2];
      const int64_t columns_seen = seen(g, kWidth, columns);
      for (int64_t i = 0; i < round_up(rows, high) * planes.sums_pitch; i += kCount) store(sums + i, splat<T>(start));
      const auto add_planes = [&] {
        for (int64_t r = 0; r < rows; r += high)
          for (int64_t c = 0; c < columns; c += kTile)
            add(planes, tile + r * g.stride[1] * plan.plane + c, sums + r * planes.sums_pitch + c);
        planes.count = 0;
      };
      bool padded = false;  // all places of the tile have their zeros
      for (int64_t c = 0; c < inputs; ++c)
        for (int64_t t = 0; t < g.kernel[0]; ++t) {
          const int64_t d = g.source(0, o, t);
          if (d < 0) continue;
          const T* from = x + (c * g.input[0] + d) * g.input[1] * g.input[2];
          auto* fill = padded ? fill_padded_rows<T, false> : fill_padded_rows<T, true>;
          fill(tile + planes.count * planes.x_plane, plan.plane, slots, from, view_h, h, seen_rows, view_w, first,
               columns_seen);
          if (plan.prefetch) prefetch_rows(from + ahead, rows_first, rows_end, g.input[2], first, columns_seen);
          planes.w[planes.count++] = w + c * taps + g.weight_tap(t * g.kernel[1] * g.kernel[2]);
          if (planes.count < plan.reduce) continue;
          add_planes();
          padded = true;
        }
      if (planes.count > 0) add_planes();
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += kCount) {
          T* to = y + r * width + q + c;
          const Vec<T> sum = load(sums + r * planes.sums_pitch + c);
          if (c + kCount <= columns)
            store(to, sum);
          else
            store_rest(to, sum, columns - c);
        }
    }
    finish_block(args, {n, group, 1, (o * g.output[1] + p) * width, width, rows});
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
