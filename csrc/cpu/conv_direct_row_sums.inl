// Direct convolution, forward, where a group has few output channels and several planes to sum over (channels, depths),
// all contiguous: last layers, and the gradient of a first layer's input.
//
//   y[k][p][q] = bias[k] + sum over planes i, r, s of x[i][p stride + r][q stride + s] * w[k][i][r][s]
//
// The register tile is that of conv_direct_rows.inl, kOuts output channels x kHigh rows x kVectors vectors, whose sums
// stay in registers through as many planes as the tile in first-level cache holds, and wait in a buffer of their own
// for the next ones. 3x3, AVX-512: 20 loads per 48 multiply-adds for one output channel, 10 per 54 for three, and
// weights in registers.
//
// A task is a band of rows. Tiles and their padding are filled as there, for a band of columns at a time. Higher bands
// read fewer rows twice, lower and narrower ones leave the tile room for more planes: row_sums_plan weighs the two. The
// depths of a band follow each other, so that it is read from afar but once where L2 holds those that one of them sees.
// Traffic: the input once (and the overlap of bands), the output once.
// Limits: as conv_direct_rows.inl, kernels of at least 2 rows, float32 and float64; more than one output channel with
// AVX-512 only, whose 32 registers the weights of three need.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kSumOuts = CONVEXT_ISA_LEVEL == 3 ? 4 : 1;
constexpr int64_t kSumInputs = 8;     // planes that are summed, at least, where outputs are several
constexpr int64_t kSumPlanes = 64;    // filled at once, at most
constexpr int64_t kSumColumns = 512;  // of a band
constexpr int64_t kSumRows = 32;      // of a band, at most
constexpr int64_t kSumRowCost = 48;   // of a row of the tile, in places
constexpr double kSumFar = 4;         // what a place costs that is copied out of memory, of one that is copied nearby

// Output rows of a register tile.
template <int kOuts>
constexpr int kSumHigh = kOuts == 1   ? kRowsHigh
                         : kOuts == 2 ? 4
                         : kOuts == 3 ? 3
                                      : 2;

// The filled planes: `count` of them, x_plane apart in the tile; w[i] points at the first tap of plane i, ahead[i] at
// what its part of the tile will be filled from next, where that is far (not null).
template <typename A>
struct SummedPlanes {
  const A *w[kSumPlanes], *ahead[kSumPlanes];
  int64_t ahead_pitch, ahead_rows;
  int64_t count = 0, x_plane, w_out, w_row, w_column, deep, columns, pitch, sums_pitch, sums_out;
  const int64_t* offset;
};

// Adds to kHigh rows of kVectors vectors of sums of each output channel, and asks for as many rows of the planes to
// come, for all that are left where these are the last.
template <typename A, int kOuts, int kHigh, int kVectors, int kStride, int kDeep>
void row_sums_tile(const SummedPlanes<A>& planes, const A* x, A* sums, int64_t row, int64_t column, bool last) {
  constexpr int64_t kCount = kLanes<A>;
  x += row * kStride * planes.pitch + column;
  sums += row * planes.sums_pitch + column;
  const int64_t ahead = row * kStride * planes.ahead_pitch + column * kStride;
  const int64_t ahead_rows = last ? planes.ahead_rows - row * kStride : kHigh * kStride;
  Vec<A> sum[kOuts * kHigh][kVectors];
  const auto at = [&](int row, int v) {
    return sums + (row / kHigh) * planes.sums_out + (row % kHigh) * planes.sums_pitch + v * kCount;
  };
#pragma GCC unroll 16
  for (int row = 0; row < kOuts * kHigh; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[row][v] = load(at(row, v));
  for (int64_t i = 0; i < planes.count; ++i, x += planes.x_plane) {
    const A* w = planes.w[i];
    if (planes.ahead[i] != nullptr) {
      const A* line = planes.ahead[i] + ahead;
      for (int64_t h = 0; h < ahead_rows; ++h, line += planes.ahead_pitch)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors * kStride; ++v) __builtin_prefetch(line + v * kCount, 0, 2);
    }
    if constexpr (kDeep > 0) {
      add_taps<A, kOuts, kHigh, kVectors, kStride, kDeep>(sum, x, planes.pitch, planes.offset, planes.columns, w,
                                                          planes.w_out, planes.w_row, planes.w_column);
    } else {
      add_tall_taps<A, kOuts, kHigh, kVectors, kStride>(sum, x, planes.pitch, planes.offset, planes.columns, w,
                                                        planes.w_out, planes.w_row, planes.w_column, planes.deep);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kOuts * kHigh; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(at(row, v), sum[row][v]);
}

// A register tile and its height.
template <typename A>
struct RowSumsTile {
  void (*add)(const SummedPlanes<A>&, const A*, A*, int64_t, int64_t, bool) = nullptr;
  int64_t high = 0;
};

// Kernels of 5 rows have a tile of their own where their weights fit the registers.
template <typename A, int kOuts, int kHigh, int kStride>
RowSumsTile<A> row_sums_tile_deep(int64_t deep) {
  if (deep == 3) return {row_sums_tile<A, kOuts, kHigh, kRowsVectors, kStride, 3>, kHigh};
  if constexpr (kOuts == 1)
    if (deep == 5) return {row_sums_tile<A, kOuts, kHigh, kRowsVectors, kStride, 5>, kHigh};
  return {row_sums_tile<A, kOuts, kHigh, kRowsVectors, kStride, 0>, kHigh};
}

template <typename A, int kOuts = kSumOuts>
RowSumsTile<A> row_sums_tile_of(const ConvGeometry& g) {
  if constexpr (kOuts > 1)
    if (g.group_outputs() < kOuts) return row_sums_tile_of<A, kOuts - 1>(g);
  constexpr int kHigh = kSumHigh<kOuts>;
  return g.stride[1] == 1 ? row_sums_tile_deep<A, kOuts, kHigh, 1>(g.kernel[1])
                          : row_sums_tile_deep<A, kOuts, (kHigh + 1) / 2, 2>(g.kernel[1]);
}

// Cuts the output into bands, by what copying places into the tile and moving waiting sums cost; false: none fits.
template <typename A>
bool cut_row_sums(const ConvGeometry& g, DirectPlan* plan) {
  constexpr int64_t kTile = kLanes<A> * kRowsVectors;
  const int64_t outs = g.group_outputs(), high = row_sums_tile_of<A>(g).high, width = g.output[2];
  const int64_t planes = g.group_inputs() * g.kernel[0];
  plan->prefetch = g.group_inputs() * g.input_places() * int64_t(sizeof(A)) > kFarSource;
  plan->column_bands = ceil_div(width, kSumColumns);
  plan->columns = plan->column_bands == 1 ? width : round_up(ceil_div(width, plan->column_bands), kTile);
  plan->column_bands = ceil_div(width, plan->columns);
  plan->sum_stride = round_up(plan->columns, kTile);
  double least_cost = -1;
  for (int64_t parts = 1;; parts *= 2) {
    const int64_t part = parts == 1 ? plan->columns : round_up(ceil_div(plan->columns, parts), kTile);
    const int64_t pitch = row_slots<A>(g, part).slots * g.stride[2];
    for (int64_t rows = high; rows < g.output[1] + high && rows <= kSumRows; rows += high) {
      const int64_t tile = pitch * seen(g, kHeight, rows), sums = outs * rows * plan->sum_stride;
      if (tile > kTileSize<A> || sums > kSumsSize<A>) break;
      const int64_t reduce = least(kTileSize<A> / tile, kSumPlanes);
      const double copies = double((tile + kSumRowCost * seen(g, kHeight, rows)) * ceil_div(plan->columns, part)) *
                            (plan->prefetch ? kSumFar : 1);
      const double cost =
          (copies + 2.0 * double(sums) / double(least(reduce, planes))) * double(ceil_div(g.output[1], rows));
      if (least_cost >= 0 && cost >= least_cost) continue;
      least_cost = cost;
      plan->rows = rows, plan->part = part, plan->plane = pitch, plan->reduce = reduce;
    }
    if (part <= kTile) return least_cost >= 0;
  }
}

template <typename T>
bool suits_row_sums(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const bool planes = g.layout == Layout::contiguous || (g.in_channels == 1 && g.out_channels == 1);
  const int64_t outs = g.group_outputs();
  DirectPlan plan;
  return planes && std::is_same_v<T, A> && outs <= kSumOuts &&
         g.group_inputs() * g.kernel[0] >= (outs == 1 ? 2 : kSumInputs) && g.kernel[1] > 1 &&
         g.output[1] >= kRowsHigh / 2 && g.dilation[1] == 1 && g.stride[1] <= 2 && g.stride[2] <= 2 &&
         g.kernel[2] <= kMaxKernelColumns && rows_fit<A>(g) && cut_row_sums<A>(g, &plan);
}

template <typename T>
DirectPlan row_sums_plan(const ConvGeometry& g) {
  DirectPlan plan;
  cut_row_sums<Accumulate<T>>(g, &plan);
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.depths = g.output[0];
  plan.tasks = g.batch * g.groups * plan.depths * plan.row_bands;
  return plan;
}

template <typename T>
void row_sums_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    constexpr int64_t kCount = kLanes<T>, kTile = kCount * kRowsVectors;
    const ConvGeometry& g = args.geometry;
    const int64_t o = take(task, plan.depths), p = take(task, plan.row_bands) * plan.rows, group = take(task, g.groups);
    const int64_t n = task, rows = least(plan.rows, g.output[1] - p), width = g.output[2], outs = g.group_outputs();
    const RowSumsTile<T> kernel = row_sums_tile_of<T>(g);
    const int64_t high = kernel.high, seen_rows = seen(g, kHeight, round_up(rows, high));
    const AxisView view_h = forward_view(g, 1), view_w = forward_view(g, 2);
    const int64_t h = p * g.stride[1] - g.pad_before[1], inputs = g.group_inputs(), taps = g.taps();
    const int64_t summed = inputs * g.kernel[0], ahead = ceil_div(plan.reduce, g.kernel[0]) * g.input_places();

    alignas(64) T tile[kTileSize<T> + 2 * kCount];
    alignas(64) T sums[kSumsSize<T>];
    int64_t offset[kMaxKernelColumns];
    const RowSlots slots = row_slots<T>(g, plan.part);
    for (int64_t s = 0; s < g.kernel[2]; ++s) offset[s] = slots.of(s * g.dilation[2]);
    SummedPlanes<T> planes;
    planes.x_plane = plan.plane * seen(g, kHeight, plan.rows);
    planes.w_out = inputs * taps;
    planes.w_row = g.flip_kernel ? -g.kernel[2] : g.kernel[2];
    planes.w_column = g.flip_kernel ? -1 : 1;
    planes.deep = g.kernel[1], planes.columns = g.kernel[2], planes.pitch = plan.plane, planes.offset = offset;
    planes.sums_pitch = plan.sum_stride, planes.sums_out = plan.rows * plan.sum_stride;

    const T* x = static_cast<const T*>(args.input) + (n * g.groups + group) * inputs * g.input_places();
    const T* w = static_cast<const T*>(args.weight) + group * outs * inputs * taps;
    T* y = static_cast<T*>(args.output) + (n * g.groups + group) * outs * g.output_places();
    y += (o * g.output[1] + p) * width;
    const T* bias = args.bias == nullptr ? nullptr : static_cast<const T*>(args.bias) + group * outs;
    planes.ahead_pitch = g.input[2], planes.ahead_rows = seen_rows;
    for (int64_t q = 0; q < width; q += plan.columns) {
      const int64_t columns = least(plan.columns, width - q);
      for (int64_t k = 0; k < outs; ++k)
        for (int64_t i = 0; i < round_up(rows, high) * plan.sum_stride; i += kCount)
          store(sums + k * planes.sums_out + i, splat<T>(bias == nullptr ? T(0) : bias[k]));
      for (int64_t i = 0; i < summed; i += plan.reduce)
        for (int64_t c = 0; c < columns; c += plan.part) {
          const int64_t part = least(plan.part, columns - c), first = (q + c) * g.stride[2] - g.pad_before[2];
          planes.count = 0;
          for (int64_t j = i; j < least(i + plan.reduce, summed); ++j) {
            const int64_t t = j % g.kernel[0], channel = j / g.kernel[0], d = g.source(0, o, t);
            if (d < 0) continue;
            const T* from = x + (channel * g.input[0] + d) * g.input[1] * g.input[2];
            fill_padded_rows<T, true>(tile + planes.count * planes.x_plane, plan.plane, slots, from, view_h, h,
                                      seen_rows, view_w, first, seen(g, kWidth, part));
            planes.w[planes.count] = w + channel * taps + g.weight_tap(t * g.kernel[1] * g.kernel[2]);
            planes.ahead[planes.count++] =
                plan.prefetch && j + plan.reduce < summed ? from + ahead + h * g.input[2] + first : nullptr;
          }
          for (int64_t r = 0; r < rows; r += high)
            for (int64_t column = 0; column < part; column += kTile)
              kernel.add(planes, tile, sums + c, r, column, r + high >= rows);
        }
      for (int64_t k = 0; k < outs; ++k)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; c += kCount) {
            T* to = y + k * g.output_places() + r * width + q + c;
            const Vec<T> sum = load(sums + k * planes.sums_out + r * plan.sum_stride + c);
            if (c + kCount <= columns)
              store(to, sum);
            else
              store_rest(to, sum, columns - c);
          }
    }
    finish_block(args, {n, group * outs, outs, (o * g.output[1] + p) * width, width, rows});
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
