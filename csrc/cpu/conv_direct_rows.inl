// Direct convolution, forward, where a group has one input channel and planes are contiguous: depthwise, a single
// filter.
//
//   y[p][q] = bias + sum over r, s of x[p stride + r][q stride + s] * w[r][s]
//
// The register tile is kHigh output rows x kVectors vectors of columns. Per kernel column the weights of up to kMaxDeep
// kernel rows are broadcast into registers, and each loaded vector of x serves every output row that sees it: 3x3 takes
// 13 loads per 24 multiply-adds. Taller kernels go through in slices of nearly equal height: 7x7 takes 28 per 56.
//
// A task is a few planes, or a band of rows of one. With a stride of 1, small kernels and padding with zeros it reads
// them where they lie: what a vector loads of the rows beside is cleared, and a row of zeros stands for those above and
// below. Else, and at the ends of the tensor, it copies the rows a band sees into a tile with their padding, columns of
// stride 2 sorted by parity, and rows that show only zeros are skipped. Vectors that end a row are stored whole where
// what lies behind is written later by the same task: rows go down, columns from right to left. Where planes have one
// row, columns whose windows are inside see x itself, and only the ends are copied.
//
// Traffic: the input once (and the overlap of bands), by way of the tile where there is one, the output once.
// Limits: kernel of one plane (kernel[0] = 1), no dilation of rows, strides 1 and 2, a kernel whose rows fit the tile.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kRowsHigh = 8;
constexpr int kRowsVectors = CONVEXT_ISA_LEVEL == 3 ? 2 : 1;
constexpr int kLineVectors = 4;          // where there is one row only
constexpr int kMaxDeep = 6;              // 8 sums, 6 weights and a place: 15 registers
constexpr int64_t kMaxRowColumns = 256;  // of a band where there are several rows
constexpr int64_t kMaxKernelColumns = 128;
constexpr int64_t kMostInPlace = 7;       // kernel rows and columns, up to which planes are read where they lie
constexpr int64_t kMaxInPlaceReach = 64;  // from the first of those columns to the last, dilation included
constexpr int64_t kRowsWork = 16 * 1024;  // vector multiply-adds of a task, about

// The input where it lies, as a tile of columns from q on sees it: the rows it sees (those that are padding are zeros),
// each from the place that column 0 sees through the first kernel column; and of each vector that it loads, per kernel
// column, what is inside the row.
template <typename A>
struct PlaneRows {
  const A* const* row = nullptr;
  const LaneMask<A>* mask = nullptr;
  int64_t vectors = 0, q = 0;  // vectors: masks of a kernel column

  PlaneRows at(int64_t column) const { return {row, mask + column / kLanes<A>, vectors, column}; }
};

// One tile's sums += kDeep kernel rows, for kOuts output channels (sum[k kHigh + p] of channel k, row p).
// offset[s]: of kernel column s; w_out, w_row, w_column: steps in w.
// kPlane: of what `plane` shows, instead of the tile x.
template <typename A, int kOuts, int kHigh, int kVectors, int kStride, int kDeep, bool kPlane = false>
CONVEXT_INLINE void add_taps(Vec<A> (&sum)[kOuts * kHigh][kVectors], const A* x, int64_t pitch, const int64_t* offset,
                             int64_t columns, const A* w, int64_t w_out, int64_t w_row, int64_t w_column,
                             const PlaneRows<A>& plane = {}) {
  for (int64_t s = 0; s < columns; ++s, w += w_column) {
    Vec<A> factor[kOuts][kDeep];
#pragma GCC unroll 8
    for (int k = 0; k < kOuts; ++k)
#pragma GCC unroll 8
      for (int r = 0; r < kDeep; ++r) factor[k][r] = splat<A>(w[k * w_out + r * w_row]);
    const A* from = x + offset[s];
#pragma GCC unroll 32
    for (int h = 0; h < (kHigh - 1) * kStride + kDeep; ++h, from += pitch) {
      if (kStride > kDeep && h % kStride >= kDeep) continue;
      Vec<A> row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        row[v] = load((kPlane ? plane.row[h] + plane.q + offset[s] : from) + v * kLanes<A>);
        if constexpr (kPlane) row[v] = where<A>(plane.mask[s * plane.vectors + v], row[v]);
        keep(row[v]);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kHigh; ++p) {
        const int r = h - p * kStride;
        if (r < 0 || r >= kDeep) continue;
#pragma GCC unroll 8
        for (int k = 0; k < kOuts; ++k)
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[k * kHigh + p][v] += row[v] * factor[k][r];
      }
    }
  }
}

// The same for `deep` kernel rows, in slices.
template <typename A, int kOuts, int kHigh, int kVectors, int kStride, bool kPlane = false>
CONVEXT_INLINE void add_tall_taps(Vec<A> (&sum)[kOuts * kHigh][kVectors], const A* x, int64_t pitch,
                                  const int64_t* offset, int64_t columns, const A* w, int64_t w_out, int64_t w_row,
                                  int64_t w_column, int64_t deep, PlaneRows<A> plane = {}) {
  constexpr int kMost = kOuts == 1 ? kMaxDeep : kMaxDeep / 2;
  const int64_t slices = ceil_div(deep, kMost);
  for (int64_t i = 0, r = 0; i < slices; ++i) {
    const int64_t slice = (deep - r + slices - i - 1) / (slices - i);
    switch (slice) {
#define CONVEXT_SLICE(n)                                                                                       \
  case n:                                                                                                      \
    if constexpr (n <= kMost)                                                                                  \
      add_taps<A, kOuts, kHigh, kVectors, kStride, n, kPlane>(sum, x, pitch, offset, columns, w, w_out, w_row, \
                                                              w_column, plane);                                \
    break
      CONVEXT_SLICE(1);
      CONVEXT_SLICE(2);
      CONVEXT_SLICE(3);
      CONVEXT_SLICE(4);
      CONVEXT_SLICE(5);
      CONVEXT_SLICE(6);
#undef CONVEXT_SLICE
    }
    x += slice * pitch;
    plane.row += slice;
    w += slice * w_row;
    r += slice;
  }
}

// What all tiles of a band share. Kernel rows [0, deep): w and the tile start at the first that is not skipped.
template <typename A>
struct RowsKernel {
  const A* w;
  int64_t w_row, w_column, deep, columns, pitch;
  A start;
  const int64_t* offset;
  const Finish<A>* finish = nullptr;
  PlaneRows<A> plane;  // where the input is read as it lies
};

// One tile, columns from q on of those that x and y point to; columns: how many are wanted; vectors that stay below
// `end` are stored whole.
template <typename T, int kHigh, int kVectors, int kStride, int kDeep, bool kPlane>
void rows_tile(const RowsKernel<Accumulate<T>>& k, const Accumulate<T>* x, T* y, int64_t q, int64_t y_pitch,
               int64_t columns, const T* end) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kHigh][kVectors];
#pragma GCC unroll 8
  for (int p = 0; p < kHigh; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[p][v] = splat<A>(k.start);
  if constexpr (kDeep > 0) {
    add_taps<A, 1, kHigh, kVectors, kStride, kDeep, kPlane>(sum, x + q, k.pitch, k.offset, k.columns, k.w, 0, k.w_row,
                                                            k.w_column, k.plane.at(q));
  } else {
    add_tall_taps<A, 1, kHigh, kVectors, kStride, kPlane>(sum, x + q, k.pitch, k.offset, k.columns, k.w, 0, k.w_row,
                                                          k.w_column, k.deep, k.plane.at(q));
  }
  y += q;
  columns -= q;
  if constexpr (sizeof(T) == sizeof(A))
    if (k.finish != nullptr) {
      const Ends<A> ends(*k.finish);
#pragma GCC unroll 8
      for (int p = 0; p < kHigh; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const T* to = y + p * y_pitch + v * kCount;
          const bool whole = to + kCount <= end;
          sum[p][v] = ends(sum[p][v], to, whole ? kCount : clamp(columns - v * kCount, 0, kCount));
        }
    }
#pragma GCC unroll 8
  for (int p = 0; p < kHigh; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* to = y + p * y_pitch + v * kCount;
      if (to + kCount <= end)
        store(to, sum[p][v]);
      else
        store_rest(to, sum[p][v], clamp(columns - v * kCount, 0, kCount));
    }
}

// kHigh rows, all columns, from right to left; one row from left to right, as memory is read best.
template <typename T, int kHigh, int kVectors, int kStride, int kDeep, bool kPlane = false>
void rows_strip(const RowsKernel<Accumulate<T>>& k, const Accumulate<T>* x, T* y, int64_t y_pitch, int64_t columns,
                const T* end) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>, kTile = kVectors * kCount;
  const auto tile = rows_tile<T, kHigh, kVectors, kStride, kDeep, kPlane>;
  const auto narrow = rows_tile<T, kHigh, 1, kStride, kDeep, kPlane>;
  if constexpr (kHigh == 1) {
    int64_t q = 0;
    for (; q + kTile <= columns; q += kTile) tile(k, x, y, q, y_pitch, columns, end);
    for (; q < columns; q += kCount) narrow(k, x, y, q, y_pitch, columns, end);
    return;
  }
  int64_t q = round_up(columns, kCount);
  for (; q % kTile != 0; q -= kCount) narrow(k, x, y, q - kCount, y_pitch, columns, end);
  for (; q > 0; q -= kTile) tile(k, x, y, q - kTile, y_pitch, columns, end);
}

template <typename T, int kHigh, int kVectors, int kStride>
void rows_strip_of(const RowsKernel<Accumulate<T>>& k, const Accumulate<T>* x, T* y, int64_t y_pitch, int64_t columns,
                   const T* end) {
  auto* strip = rows_strip<T, kHigh, kVectors, kStride, 0>;
  if constexpr (kHigh == 1) {
    if (k.deep == 1) strip = rows_strip<T, kHigh, kVectors, kStride, 1>;
  } else {
    if (k.deep == 3) strip = rows_strip<T, kHigh, kVectors, kStride, 3>;
    if (k.deep == 5) strip = rows_strip<T, kHigh, kVectors, kStride, 5>;
    if constexpr (kStride == 1 && sizeof(T) == sizeof(Accumulate<T>))
      if (k.plane.row != nullptr) {
        strip = rows_strip<T, kHigh, kVectors, kStride, 0, true>;
        if (k.deep == 3) strip = rows_strip<T, kHigh, kVectors, kStride, 3, true>;
        if (k.deep == 5) strip = rows_strip<T, kHigh, kVectors, kStride, 5, true>;
      }
  }
  strip(k, x, y, y_pitch, columns, end);
}

template <typename A>
bool rows_fit(const ConvGeometry& g) {
  return row_slots<A>(g, kLanes<A>).slots * g.stride[2] * g.kernel[1] <= kTileSize<A>;
}

// One input channel per group, contiguous planes. With few outputs per group: more share loads in
// conv_direct_slide.inl.
template <typename T>
bool suits_rows(const ConvGeometry& g) {
  const bool planes = g.layout == Layout::contiguous || (g.in_channels == 1 && g.out_channels == 1);
  return planes && g.group_inputs() == 1 && g.group_outputs() <= 2 && g.kernel[0] == 1 && g.dilation[1] == 1 &&
         g.stride[1] <= 2 && g.stride[2] <= 2 && g.kernel[2] <= kMaxKernelColumns && rows_fit<Accumulate<T>>(g);
}

template <typename T>
DirectPlan rows_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  constexpr int64_t kTile = kLanes<A> * kRowsVectors;
  DirectPlan plan;
  const int64_t height = g.output[1], stride = g.stride[1];
  const int64_t wished = (least<int64_t>(height, 2 * kRowsHigh) - 1) * stride + g.kernel[1];  // rows of the tile
  plan.columns = g.output[2];
  if (height > 1) plan.columns = ceil_div(plan.columns, ceil_div(plan.columns, kMaxRowColumns));
  for (;; plan.columns = round_up(ceil_div(plan.columns, 2), kTile)) {
    if (plan.columns < g.output[2]) plan.columns = round_up(plan.columns, kTile);
    plan.plane = row_slots<A>(g, plan.columns).slots * g.stride[2];
    if (plan.columns <= kTile || plan.plane * wished <= kTileSize<A>) break;
  }
  if (plan.plane * g.kernel[1] > kTileSize<A>) {
    plan.columns = kLanes<A>;
    plan.plane = row_slots<A>(g, plan.columns).slots * g.stride[2];
  }
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  const int64_t fit = (kTileSize<A> / plan.plane - g.kernel[1]) / stride + 1;
  plan.rows = least(fit, height);
  if (plan.rows < height && plan.rows > kRowsHigh) plan.rows = plan.rows / kRowsHigh * kRowsHigh;
  plan.row_bands = ceil_div(height, plan.rows);
  plan.depths = g.output[0];
  const int64_t work = g.output_places() * g.taps() * g.group_outputs() / kLanes<A>;
  const bool alone = plan.row_bands > 1 || plan.depths > 1;
  plan.groups = alone ? 1 : clamp(ceil_div(kRowsWork, work + 64), 1, g.groups);
  plan.tasks = g.batch * ceil_div(g.groups, plan.groups) * plan.depths * plan.row_bands;
  return plan;
}

// Of a plane that is read where it lies: the place of each row that column 0 sees first, and what stands for padding.
template <typename A>
struct InPlace {
  const A *first, *zeros;
};

// Rows [p, p + rows) of one plane, whose tile is filled from padded input row p stride - before on, or which is read
// where it lies; end: of the task.
template <typename T>
void rows_band(const ConvGeometry& g, RowsKernel<Accumulate<T>>& k, const Accumulate<T>* tile,
               const InPlace<Accumulate<T>>& plane, T* y, int64_t p, int64_t rows, int64_t columns, const T* end) {
  const Accumulate<T>* row[kRowsHigh + kMostInPlace - 1];
  const int64_t width = g.output[2], stride = g.stride[1];
  const Accumulate<T>* w = k.w;
  const bool zeros = g.padding_mode == PaddingMode::zeros;
  for (int64_t done = 0; done < rows;) {
    const int64_t left = rows - done;
    const bool high = stride == 1 && rows >= kRowsHigh && left > kRowsHigh / 2;
    const int64_t strip = high ? kRowsHigh : rows >= kRowsHigh / 2 ? kRowsHigh / 2 : 1;
    done = least(done, rows - strip);  // the last strip may repeat rows
    const int64_t first_row = (p + done) * stride - g.pad_before[1];
    const int64_t r0 = zeros ? clamp(-first_row - (strip - 1) * stride, 0, g.kernel[1] - 1) : 0;
    const int64_t r1 = zeros ? clamp(g.input[1] - first_row, r0 + 1, g.kernel[1]) : g.kernel[1];
    k.w = w + r0 * k.w_row;
    k.deep = r1 - r0;
    k.plane.row = plane.first == nullptr ? nullptr : row;
    if (plane.first != nullptr)
      for (int64_t i = 0; i < strip - 1 + k.deep; ++i) {
        const int64_t h = first_row + r0 + i;
        row[i] = h >= 0 && h < g.input[1] ? plane.first + h * g.input[2] : plane.zeros;
      }
    auto* run = high          ? rows_strip_of<T, kRowsHigh, kRowsVectors, 1>
                : strip == 1  ? rows_strip_of<T, 1, kLineVectors, 1>
                : stride == 1 ? rows_strip_of<T, kRowsHigh / 2, kRowsVectors, 1>
                              : rows_strip_of<T, kRowsHigh / 2, kRowsVectors, 2>;
    run(k, tile + (done * stride + r0) * k.pitch, y + done * width, width, columns, end);
    done += strip;
  }
}

// Columns [0, begin) of a line's band see padding before it, [begin, end) none: whole vectors, which see no place past
// the line's end. first: the place that column 0 sees first.
struct LineInside {
  int64_t begin, end;
};

template <typename T>
LineInside line_inside(const ConvGeometry& g, int64_t first, int64_t columns) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  if (sizeof(T) != sizeof(Accumulate<T>) || g.output[1] > 1 || g.kernel[1] > 1 || g.stride[2] > 1 ||
      g.pad_before[1] != 0)
    return {columns, columns};
  const int64_t begin = least(columns, round_up(greatest<int64_t>(-first, 0), kCount));
  const int64_t fit = g.input[2] - first - begin - g.dilation[2] * (g.kernel[2] - 1);
  return {begin, begin + clamp(fit, 0, columns - begin) / kCount * kCount};
}

// Whether the planes of a task are read where they lie, but for those at the ends of the tensor.
template <typename T>
bool reads_in_place(const ConvGeometry& g, int64_t rows) {
  return sizeof(T) == sizeof(Accumulate<T>) && g.padding_mode == PaddingMode::zeros && g.stride[1] == 1 &&
         g.stride[2] == 1 && rows >= kRowsHigh / 2 && g.kernel[1] <= kMostInPlace && g.kernel[2] <= kMostInPlace &&
         g.dilation[2] * (g.kernel[2] - 1) <= kMaxInPlaceReach;
}

// Of the columns of a band, column 0 of which sees place `first` of a row first; returns how many a kernel column has.
template <typename A>
int64_t fill_masks(const ConvGeometry& g, int64_t first, int64_t columns, LaneMask<A>* masks) {
  constexpr int64_t kCount = kLanes<A>;
  A lanes[kCount];
  for (int64_t i = 0; i < kCount; ++i) lanes[i] = A(i);
  const Vec<A> count = load(lanes);
  const int64_t vectors = ceil_div(columns, kCount);
  for (int64_t s = 0; s < g.kernel[2]; ++s)
    for (int64_t v = 0; v < vectors; ++v) {
      const Vec<A> place = count + splat<A>(A(first + s * g.dilation[2] + v * kCount));
      masks[s * vectors + v] = (place >= Vec<A>{}) & (place < splat<A>(A(g.input[2])));
    }
  return vectors;
}

// Whether all that vectors of a plane load is in the tensor.
template <typename T>
bool within(const ConvArguments& args, const T* plane, int64_t first, int64_t columns) {
  const ConvGeometry& g = args.geometry;
  const int64_t at = plane - static_cast<const T*>(args.input), reach = g.dilation[2] * (g.kernel[2] - 1);
  return at + first >= 0 &&
         at + (g.input[1] - 1) * g.input[2] + first + round_up(columns, kLanes<T>) + reach <= g.input_elements();
}

template <typename A>
alignas(64) constexpr A kZeros[kMaxRowColumns + kMaxInPlaceReach + kLanes<A>] = {};

template <typename T>
void rows_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr bool kWiden = sizeof(T) != sizeof(A);
  const ConvGeometry& g = args.geometry;
  const int64_t p = take(task, plan.row_bands) * plan.rows, o = take(task, plan.depths);
  const int64_t group = take(task, ceil_div(g.groups, plan.groups)) * plan.groups, n = task;
  const int64_t groups = least(plan.groups, g.groups - group), rows = least(plan.rows, g.output[1] - p);
  const int64_t taps = g.taps(), outs = g.group_outputs(), width = g.output[2], stride = g.stride[1];
  const AxisView view_h = forward_view(g, 1), view_w = forward_view(g, 2);
  const int64_t d = g.source(0, o, 0);

  alignas(64) A tile[kTileSize<A> + 2 * kLanes<A>];
  A widened[kWiden ? kTileSize<A> : 1];
  int64_t offset[kMaxKernelColumns];
  LaneMask<A> masks[kMostInPlace * kMaxRowColumns / kLanes<A>];
  const RowSlots slots = row_slots<A>(g, plan.columns);
  for (int64_t s = 0; s < g.kernel[2]; ++s) offset[s] = slots.of(s * g.dilation[2]);
  RowsKernel<A> k = {nullptr, g.kernel[2], 1, g.kernel[1], g.kernel[2], plan.plane, A(0), offset};
  Finish<A> finish;
  if (finish_in_registers<T>(args, &finish)) k.finish = &finish;
  if (g.flip_kernel) {
    k.w_row = -k.w_row;
    k.w_column = -1;
  }
  const T* x = static_cast<const T*>(args.input) + (n * g.groups + group) * g.input_places();
  T* y = static_cast<T*>(args.output) + (n * g.groups + group) * outs * g.output_places();
  y += (o * g.output[1] + p) * width;
  const T* end = y + groups * outs * g.output_places();  // of the task's outputs, where it has whole planes
  const int64_t h = p * stride - g.pad_before[1];
  for (int64_t band = plan.column_bands; band-- > 0;) {
    const int64_t q = band * plan.columns, columns = least(plan.columns, width - q);
    const int64_t first = q * g.stride[2] - g.pad_before[2];
    const LineInside inside = d < 0 ? LineInside{columns, columns} : line_inside<T>(g, first, columns);
    bool filled = false;  // the tile, with its padding
    const bool masked = d >= 0 && reads_in_place<T>(g, rows);
    if (masked) k.plane = {nullptr, masks, fill_masks<A>(g, first, columns, masks), 0};
    for (int64_t i = 0; i < groups; ++i) {
      const T* plane = x + i * g.input_places() + greatest<int64_t>(d, 0) * g.input[1] * g.input[2];
      // Columns [from, to) of the band, whose windows start at `source`.
      const auto columns_of = [&](const A* source, int64_t from, int64_t to, const InPlace<A>& where) {
        for (int64_t m = 0; m < outs; ++m) {
          const int64_t out = (group + i) * outs + m;
          const T* w = static_cast<const T*>(args.weight) + out * taps;
          if constexpr (kWiden) {
            for (int64_t j = 0; j < taps; ++j) widened[j] = to_accumulate(w[j]);
            k.w = widened;
          } else {
            k.w = w;
          }
          if (g.flip_kernel) k.w += taps - 1;
          if (args.bias != nullptr) k.start = to_accumulate(static_cast<const T*>(args.bias)[out]);
          T* start = y + (i * outs + m) * g.output_places();
          const bool later = rows * width == g.output_places() && (outs == 1 || to - from == columns);
          rows_band(g, k, source, where, start + q + from, p, rows, to - from, later ? end : start + rows * width);
        }
      };
      const auto padded_columns_of = [&](int64_t from, int64_t to) {
        if (from == to) return;
        const bool part = to - from < columns;
        auto* fill = part || !filled ? fill_padded_rows<T, true> : fill_padded_rows<T, false>;
        filled = true;
        if (d < 0)
          store_zeros(tile, 0, kTileSize<A>);
        else
          fill(tile, plan.plane, part ? row_slots<A>(g, to - from) : slots, plane, view_h, h, seen(g, kHeight, rows),
               view_w, first + from * g.stride[2], seen(g, kWidth, to - from));
        columns_of(tile, from, to, {});
      };
      if constexpr (!kWiden)
        if (masked && within<T>(args, plane, first, columns)) {
          columns_of(tile, 0, columns, {plane + first, kZeros<A>});
          continue;
        }
      padded_columns_of(0, inside.begin);
      if constexpr (!kWiden)
        if (inside.begin < inside.end) columns_of(plane + first + inside.begin, inside.begin, inside.end, {});
      padded_columns_of(inside.end, columns);
    }
  }
  if (k.finish == nullptr)
    finish_block(args, {n, group * outs, groups * outs, (o * g.output[1] + p) * width, width, rows});
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
