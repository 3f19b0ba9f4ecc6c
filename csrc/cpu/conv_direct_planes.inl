// Direct convolution, forward, contiguous planes, where what is summed over is small or outputs are few: first and last
// layers, filter banks.
//
//   y[k][q] = bias[k] + sum over j = (c t r s) of x[q + offset(j)] * w[j][k]
//
// Vectors run along an output row: a register tile is up to kPlaneOuts output channels x kPlaneVectors vectors of
// columns, 7 loads per 12 multiply-adds with AVX2, 11 per 24 with AVX-512. Weights are packed [block of k][j][k] once
// per call.
//
// A task is (image, group, depth, band of rows; band of columns where there is one row). It copies the rows that a band
// sees into a tile [c][t][row][column] with their padding, columns of stride 2 sorted by parity, so that a tap's
// columns lie side by side; all output channels of the group run over it while it is in first-level cache. Where a tile
// does not hold all channels, it is filled for some at a time, and sums wait on the stack meanwhile. Vectors that end a
// row are stored whole where what lies behind is written later by the same task: rows go down, columns from right to
// left.
//
// Traffic: the input once (and the overlap of bands) into the tile, the output once, weights from second-level cache.
// Limits: strides of columns 1 and 2; a row of the tile for one channel fits; with sums that wait, at most
// kMaxWaitingOuts output channels.
#include "conv_direct_tile.inl"
// Padded rows.
#include "conv_direct_padded.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kPlaneOuts = CONVEXT_ISA_LEVEL == 3 ? 8 : 4;
constexpr int kMostPlaneOuts = CONVEXT_ISA_LEVEL == 3 ? 8 : 6;  // where rows have few vectors
constexpr int kPlaneSums = CONVEXT_ISA_LEVEL == 3 ? 24 : CONVEXT_ISA_LEVEL == 2 ? 12 : 8;
constexpr int kMaxPlaneVectors = 6;
constexpr int64_t kMaxPlaneColumns = 256;    // of a band where there are several rows
constexpr int64_t kMaxPlaneTaps = 1024;      // of a filled tile
constexpr int64_t kMaxWaitingOuts = 8;       // output channels of a group whose sums wait
constexpr int64_t kMinPlaces = 256;          // of an output plane: packing the weight pays
constexpr int64_t kPlanesWork = 128 * 1024;  // vector multiply-adds of a task, about
constexpr int64_t kFarPlanes = 256 * 1024;   // bytes of an image that do not stay in second-level cache

template <int kOuts>
constexpr int kPlaneVectors = kPlaneSums / kOuts < kMaxPlaneVectors ? kPlaneSums / kOuts : kMaxPlaneVectors;

// Where the sums of a tile start and end, at its first row: a bias per channel, sums that waited (not null); sums that
// wait further (not null), outputs, stored whole where they stay below `end`.
template <typename T>
struct PlanesTo {
  using A = Accumulate<T>;
  const A *start, *waited;
  A* wait;
  int64_t wait_channel, wait_row;
  T* y = nullptr;
  int64_t channel = 0, row = 0, columns = 0;
  const T* end = nullptr;  // in the first channel
  const Finish<A>* finish = nullptr;
};

template <typename T, int kOuts, int kVectors, typename A = Accumulate<T>>
void planes_tile(const A* x, const int64_t* offset, int64_t taps, const A* w, const PlanesTo<T>& to, int64_t row,
                 int64_t v, const char* ahead, int64_t ahead_step) {
  constexpr int kCount = kLanes<A>;
  Vec<A> sum[kOuts][kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kOuts; ++k)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i)
      sum[k][i] = to.waited == nullptr ? splat<A>(to.start[k])
                                       : load(to.waited + k * to.wait_channel + row * to.wait_row + (v + i) * kCount);
  T* y = to.y + row * to.row + v * kCount;
  if (to.wait == nullptr)  // lines of the output, asked for in time
    for (int k = 0; k < kOuts; ++k) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; i += 2) __builtin_prefetch(y + k * to.channel + i * kCount, 1);
      __builtin_prefetch(y + k * to.channel + kVectors * kCount - 1, 1);
    }
  for (int64_t j = 0; j < taps; ++j, w += kOuts, ahead += ahead_step) {
    __builtin_prefetch(ahead, 0, 2);
    const A* from = x + offset[j];
    if constexpr (kOuts < kVectors) {  // the fewer stay in registers
      Vec<A> factor[kOuts];
#pragma GCC unroll 8
      for (int k = 0; k < kOuts; ++k) factor[k] = splat<A>(w[k]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        const Vec<A> place = load(from + i * kCount);
#pragma GCC unroll 8
        for (int k = 0; k < kOuts; ++k) sum[k][i] += place * factor[k];
      }
    } else {
      Vec<A> place[kVectors];
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) place[i] = load(from + i * kCount);
#pragma GCC unroll 8
      for (int k = 0; k < kOuts; ++k) {
        const Vec<A> factor = splat<A>(w[k]);
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) sum[k][i] += place[i] * factor;
      }
    }
  }
  if (to.wait != nullptr) {
    A* wait = to.wait + row * to.wait_row + v * kCount;
#pragma GCC unroll 8
    for (int k = 0; k < kOuts; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) store(wait + k * to.wait_channel + i * kCount, sum[k][i]);
    return;
  }
  const bool whole = (v + kVectors) * kCount <= to.columns || y + kVectors * kCount <= to.end;
  if constexpr (sizeof(T) == sizeof(A))
    if (to.finish != nullptr) {
      const Ends<A> ends(*to.finish);
#pragma GCC unroll 8
      for (int k = 0; k < kOuts; ++k)
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i)
          sum[k][i] = ends(sum[k][i], y + k * to.channel + i * kCount,
                           whole ? kCount : clamp(to.columns - (v + i) * kCount, 0, kCount));
    }
#pragma GCC unroll 8
  for (int k = 0; k < kOuts; ++k)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      T* at = y + k * to.channel + i * kCount;
      if (whole)
        store(at, sum[k][i]);
      else
        store_rest(at, sum[k][i], clamp(to.columns - (v + i) * kCount, 0, kCount));
    }
}

template <typename T, typename A = Accumulate<T>>
using PlanesTile = void (*)(const A*, const int64_t*, int64_t, const A*, const PlanesTo<T>&, int64_t, int64_t,
                            const char*, int64_t);

template <typename T, int kOuts, int kVectors = kPlaneVectors<kOuts>>
PlanesTile<T> planes_tile_of(int64_t vectors) {
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return planes_tile_of<T, kOuts, kVectors - 1>(vectors);
  return planes_tile<T, kOuts, kVectors>;
}

// What the next tile will be filled from: `size` bytes from `at` on in each of `planes` planes, `plane` bytes apart. A
// register tile asks for a line with every tap; step 0: always for the same one, which should be near.
struct PlanesAhead {
  const char* at;
  int64_t step = 0, planes = 0, plane = 0, size = 0, done = 0;

  const char* next(int64_t taps) {
    const char* from = at + done;
    done += taps * step;
    if (done < size || planes <= 1) return from;
    done = 0;
    --planes;
    at += plane;
    return from;
  }
};

// kOuts output channels, `rows` rows. x_row: from row to row in the tile.
template <typename T, int kOuts, typename A = Accumulate<T>>
void planes_rows(const A* x, int64_t x_row, const int64_t* offset, int64_t taps, const A* w, const PlanesTo<T>& to,
                 int64_t rows, PlanesAhead& ahead) {
  constexpr int64_t kCount = kLanes<A>;
  const int64_t vectors = ceil_div(to.columns, kCount), parts = ceil_div(vectors, kPlaneVectors<kOuts>);
  for (int64_t row = 0; row < rows; ++row, x += x_row)
    for (int64_t i = 0, v = vectors; i < parts; ++i) {
      const int64_t wide = (v + parts - i - 1) / (parts - i);
      v -= wide;
      planes_tile_of<T, kOuts>(wide)(x + v * kCount, offset, taps, w, to, row, v, ahead.next(taps), ahead.step);
    }
}

template <typename T, typename A = Accumulate<T>>
using PlanesRows = void (*)(const A*, int64_t, const int64_t*, int64_t, const A*, const PlanesTo<T>&, int64_t,
                            PlanesAhead&);

template <typename T, int kOuts = kMostPlaneOuts>
PlanesRows<T> planes_rows_of(int64_t outs) {
  if constexpr (kOuts > 1)
    if (outs < kOuts) return planes_rows_of<T, kOuts - 1>(outs);
  return planes_rows<T, kOuts>;
}

// Where block i of `blocks`, as equal as can be, begins.
CONVEXT_INLINE int64_t planes_block(int64_t outs, int64_t blocks, int64_t i) {
  return i * (outs / blocks) + least(i, outs % blocks);
}

// Elements from row to row of a tile that shows `columns` outputs.
template <typename A>
int64_t planes_pitch(const ConvGeometry& g, int64_t columns) {
  return row_slots<A>(g, columns).slots * g.stride[2];
}

template <typename A>
int64_t planes_tile_elements(const ConvGeometry& g, int64_t columns, int64_t channels, int64_t rows) {
  return planes_pitch<A>(g, columns) * channels * g.kernel[0] * seen(g, kHeight, rows);
}

// Whether one row of `columns` columns (or of all there are) fits the tile.
template <typename A>
bool planes_fit(const ConvGeometry& g, int64_t columns, int64_t channels) {
  return planes_tile_elements<A>(g, least(g.output[2], columns), channels, 1) <= kTileSize<A>;
}

// Output channels of a register tile: as many as rows of so many vectors leave sums for.
int64_t planes_outs(int64_t vectors) {
  return vectors == 4 ? kPlaneSums / 4 : vectors <= 2 ? least(kMostPlaneOuts, kPlaneSums / 2) : kPlaneOuts;
}

// Cuts the output into bands; false: none fits.
template <typename A>
bool cut_planes(const ConvGeometry& g, DirectPlan* plan) {
  constexpr int64_t kCount = kLanes<A>, kUnit = kCount * kPlaneVectors<kPlaneOuts>;
  const int64_t outs = g.group_outputs(), inputs = g.group_inputs(), taps = g.taps(), height = g.output[1];
  if (taps > kMaxPlaneTaps) return false;
  plan->columns = g.output[2];
  if (height > 1) plan->columns = ceil_div(plan->columns, ceil_div(plan->columns, kMaxPlaneColumns));
  const bool few = outs <= kMaxWaitingOuts;
  const bool all = inputs * taps <= kMaxPlaneTaps && planes_fit<A>(g, few ? 4 * kUnit : kUnit, inputs);
  if (!all && (!few || !planes_fit<A>(g, kUnit, 1))) return false;
  if (plan->columns < g.output[2]) plan->columns = round_up(plan->columns, kUnit);
  while (planes_tile_elements<A>(g, plan->columns, all ? inputs : 1, 1) > kTileSize<A> ||
         (all ? kMostPlaneOuts : outs) * round_up(plan->columns, kCount) > kSumsSize<A>)
    plan->columns = round_up(ceil_div(plan->columns, 2), kUnit);
  plan->plane = planes_pitch<A>(g, plan->columns);
  plan->sum_stride = round_up(plan->columns, kCount);
  const int64_t row_work = outs * inputs * taps * ceil_div(plan->columns, kCount);
  const int64_t most = clamp(ceil_div(all ? kPlanesWork : 2 * kPlanesWork, row_work), 1, height);
  // Rows: of the tile, each is copied for every band that sees it; sums that wait are read and written for every tile.
  double least_cost = -1;
  for (int64_t rows = 1; rows <= most; ++rows) {
    int64_t reduce = inputs;
    if ((all ? kMostPlaneOuts : outs) * rows * plan->sum_stride > kSumsSize<A>) break;
    if (!all) {
      reduce = least(least(inputs, kMaxPlaneTaps / taps),
                     kTileSize<A> / greatest<int64_t>(planes_tile_elements<A>(g, plan->columns, 1, rows), 1));
      if (reduce > 0) reduce = ceil_div(inputs, ceil_div(inputs, reduce));
    }
    if (reduce == 0 || planes_tile_elements<A>(g, plan->columns, reduce, rows) > kTileSize<A>) break;
    const double copied = double(seen(g, kHeight, rows) * g.kernel[0]) / double(rows);
    const double cost = copied * double(plan->plane) + 2.0 * double(outs * plan->sum_stride) / double(reduce);
    const double uneven = double(ceil_div(height, rows) * rows) / double(height);
    if (least_cost >= 0 && cost * uneven >= least_cost) continue;
    least_cost = cost * uneven;
    plan->rows = rows;
    plan->reduce = reduce;
  }
  return true;
}

template <typename T>
bool suits_planes(const ConvGeometry& g) {
  DirectPlan plan;
  return g.layout == Layout::contiguous && g.stride[2] <= 2 && g.output_places() >= kMinPlaces &&
         cut_planes<Accumulate<T>>(g, &plan);
}

template <typename T>
int64_t planes_workspace(const ConvGeometry& g) {
  return g.weight_elements() * int64_t(sizeof(Accumulate<T>));
}

template <typename T>
DirectPlan planes_plan(const ConvGeometry& g) {
  DirectPlan plan;
  cut_planes<Accumulate<T>>(g, &plan);
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.depths = g.output[0];
  plan.channel_blocks = ceil_div(g.group_outputs(), planes_outs(ceil_div(plan.columns, kLanes<Accumulate<T>>)));
  const int64_t source = g.in_channels * g.input_places() * int64_t(sizeof(T));
  plan.prefetch = plan.reduce < g.group_inputs() && source > kFarPlanes;
  plan.tasks = g.batch * g.groups * plan.depths * plan.row_bands * (g.output[1] == 1 ? plan.column_bands : 1);
  plan.packs = g.groups * plan.channel_blocks;
  return plan;
}

// One block of a group: [c t r s][k].
template <typename T>
void planes_pack(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t outs = g.group_outputs(), taps = g.taps(), summed = g.group_inputs() * taps;
  const int64_t block = take(task, plan.channel_blocks), group = task;
  const int64_t k0 = planes_block(outs, plan.channel_blocks, block);
  const int64_t high = planes_block(outs, plan.channel_blocks, block + 1) - k0;
  const T* w = static_cast<const T*>(args.weight) + (group * outs + k0) * summed;
  A* to = static_cast<A*>(args.workspace) + (group * outs + k0) * summed;
  for (int64_t c = 0; c < g.group_inputs(); ++c, w += taps)
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* from = w + g.weight_tap(tap);
      for (int64_t k = 0; k < high; ++k) *to++ = to_accumulate(from[k * summed]);
    }
}

template <typename T>
void planes_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t bands = g.output[1] == 1 ? 1 : plan.column_bands, first_band = take(task, plan.column_bands / bands);
  const int64_t p = take(task, plan.row_bands) * plan.rows, o = take(task, plan.depths);
  const int64_t group = take(task, g.groups), n = task, rows = least(plan.rows, g.output[1] - p);
  const int64_t inputs = g.group_inputs(), outs = g.group_outputs(), summed = inputs * g.taps();
  const int64_t seen_rows = seen(g, kHeight, rows), plane = g.input_places(), width = g.output[2];
  const AxisView view_h = forward_view(g, 1), view_w = forward_view(g, 2);
  const RowSlots slots = row_slots<A>(g, plan.columns);

  alignas(64) A tile[kTileSize<A> + 2 * kLanes<A>];
  alignas(64) A sums[kSumsSize<A> + 2 * kLanes<A>];
  A start[kMostPlaneOuts];
  int64_t offset[kMaxPlaneTaps], count = 0;
  for (int64_t c = 0; c < plan.reduce; ++c)
    for (int64_t t = 0; t < g.kernel[0]; ++t)
      for (int64_t r = 0; r < g.kernel[1]; ++r)
        for (int64_t s = 0; s < g.kernel[2]; ++s)
          offset[count++] =
              ((c * g.kernel[0] + t) * seen_rows + r * g.dilation[1]) * plan.plane + slots.of(s * g.dilation[2]);

  const T* x = static_cast<const T*>(args.input) + g.input_offset(n, group * inputs, 0);
  const A* packed = static_cast<const A*>(args.workspace) + group * outs * summed;
  const T* bias = static_cast<const T*>(args.bias);
  T* y = static_cast<T*>(args.output) + g.output_offset(n, group * outs, (o * g.output[1] + p) * width);
  const int64_t h = p * g.stride[1] - g.pad_before[1];
  Finish<A> finish;
  const bool in_registers = finish_in_registers<T>(args, &finish);
  for (int64_t band = first_band + bands; band-- > first_band;) {
    const int64_t q = band * plan.columns, columns = least(plan.columns, width - q);
    const int64_t first = q * g.stride[2] - g.pad_before[2];
    for (int64_t c = 0; c < inputs; c += plan.reduce) {
      const int64_t some = least(plan.reduce, inputs - c);
      A* to = tile;
      for (int64_t i = 0; i < some; ++i)
        for (int64_t t = 0; t < g.kernel[0]; ++t, to += seen_rows * plan.plane) {
          const int64_t d = g.source(0, o, t);
          if (d < 0)
            store_zeros(to, 0, seen_rows * plan.plane);
          else
            fill_padded_rows<T, true>(to, plan.plane, slots, x + (c + i) * plane + d * g.input[1] * g.input[2], view_h,
                                      h, seen_rows, view_w, first, seen(g, kWidth, columns));
        }
      PlanesAhead ahead = {reinterpret_cast<const char*>(tile)};
      if (plan.prefetch && c + some < inputs) {
        const int64_t begin = clamp(h, 0, g.input[1]), end = clamp(h + seen_rows, begin, g.input[1]);
        const int64_t size = int64_t(sizeof(T)), channels = least(plan.reduce, inputs - c - some);
        ahead = {reinterpret_cast<const char*>(x + (c + some) * plane + begin * g.input[2]), 64, channels, plane * size,
                 (end - begin) * g.input[2] * size};
      }
      for (int64_t block = 0; block < plan.channel_blocks; ++block) {
        const int64_t k = planes_block(outs, plan.channel_blocks, block);
        const int64_t high = planes_block(outs, plan.channel_blocks, block + 1) - k;
        for (int64_t i = 0; i < high; ++i)
          start[i] = bias == nullptr ? A(0) : to_accumulate(bias[group * outs + k + i]);
        A* wait = sums + (plan.reduce < inputs ? k * rows * plan.sum_stride : 0);
        const bool last = c + some == inputs;
        T* at = y + k * g.output_places();
        PlanesTo<T> sink = {start, c > 0 ? wait : nullptr, wait, rows * plan.sum_stride, plan.sum_stride};
        sink.columns = columns;
        sink.y = at + q;
        sink.channel = g.output_places();
        sink.row = width;
        sink.end = at + rows * width;
        if (in_registers) sink.finish = &finish;
        if (last) sink.wait = nullptr;
        planes_rows_of<T>(high)(tile, g.stride[1] * plan.plane, offset, some * g.taps(),
                                packed + k * summed + c * g.taps() * high, sink, rows, ahead);
      }
    }
  }
  if (in_registers) return;
  const int64_t first = bands > 1 ? 0 : first_band * plan.columns;
  const int64_t places = bands > 1 ? width : least(plan.columns, width - first);
  finish_block(args, {n, group * outs, outs, (o * g.output[1] + p) * width + first, places, rows});
}

// A kernel without functions where it does not suit.
template <typename T>
DirectKernel direct_planes_kernel(const ConvGeometry& g) {
  if (!suits_planes<T>(g)) return {};
  return {planes_plan<T>, planes_task<T>, planes_pack<T>, planes_workspace<T>};
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
