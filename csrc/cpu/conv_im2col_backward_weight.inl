// The kernels of im2col's gradient of the weight, see conv_im2col_backward_weight.cpp.
#include "conv_im2col_weight_lanes.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

using im2col::WeightKernels;
using im2col::WeightPlan;
using im2col::WeightThread;

#if CONVEXT_ISA_LEVEL == 3
constexpr int kOuterRows[] = {0, 10, 10};  // by vectors; each row has a pointer, and all stay in registers
#else
constexpr int kOuterRows[] = {0, 8, 6};
#endif
constexpr int64_t kPlaces = 256;  // of a block, about
constexpr int64_t kMostColumns = 320;
constexpr int64_t kMostCopied = 8;  // bands of rows copied together
constexpr int64_t kMostLanes = 8;   // panels of a task
template <typename A>
constexpr int64_t kMostSums = 192 * 1024 / int64_t(sizeof(A));  // of a task, in the second-level cache
template <typename A>
constexpr int64_t kMostTile = 192 * 1024 / int64_t(sizeof(A));
constexpr int64_t kPartSums = 32 * 1024;  // weights of so few elements are summed in parts
constexpr int64_t kParts = 16;

// What the next block reads, asked for a little at a time: `rows` rows of `bytes`, `step` bytes apart.
struct Ahead {
  struct Region {
    const char* at;
    int64_t rows, step, bytes;
    int64_t lines() const { return rows * ceil_div(bytes, 64); }
  } region[2];
  int64_t at_once, offset, which;  // lines at once

  CONVEXT_INLINE void ask() {
    for (int64_t i = 0; i < at_once && which < 2;) {
      Region& r = region[which];
      if (r.rows <= 0) {
        ++which;
        continue;
      }
      for (; i < at_once && offset < r.bytes; ++i, offset += 64) __builtin_prefetch(r.at + offset);
      if (offset < r.bytes) return;
      offset = 0;
      r.at += r.step;
      --r.rows;
    }
  }
};

// `count` tiles of rows times one panel of lanes, over `pieces` runs of `columns` places.
template <typename A>
struct OuterTiles {
  int64_t count;
  const A* rows;
  const int64_t *offset, *piece;  // of each row, of each run
  int64_t pieces, columns;
  const A* lanes;
  A* sums;
  int64_t step;  // from row to row of the sums
  bool accumulate;
  Ahead* ahead;
};

template <typename A, int ROWS, int VECTORS>
__attribute__((noinline)) void outer_tile(const OuterTiles<A>& tiles) {
  constexpr int kCount = kLanes<A>;
  OuterTiles<A> t = tiles;
  for (; t.count > 0; --t.count, t.offset += ROWS, t.sums += ROWS * t.step) {
    Vec<A> sum[ROWS][VECTORS] = {};
    const A* b = t.lanes;
    for (int64_t i = 0; i < t.pieces; ++i) {
      const A* from[ROWS];
#pragma GCC unroll 10
      for (int j = 0; j < ROWS; ++j) from[j] = t.rows + t.offset[j] + t.piece[i];
      for (int64_t q = 0; q < t.columns; ++q, b += VECTORS * kCount) {
        Vec<A> lane[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) lane[v] = load(b + v * kCount);
#pragma GCC unroll 10
        for (int j = 0; j < ROWS; ++j) {
          const Vec<A> one = splat<A>(from[j][q]);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) sum[j][v] += one * lane[v];
        }
      }
    }
#pragma GCC unroll 10
    for (int j = 0; j < ROWS; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) {
        A* to = t.sums + j * t.step + v * kCount;
        store(to, t.accumulate ? load(to) + sum[j][v] : sum[j][v]);
      }
    if (t.ahead->at_once > 0) t.ahead->ask();
  }
}

template <typename A, int VECTORS, int ROWS = kOuterRows[VECTORS]>
void multiply_rows(const OuterTiles<A>& tiles, int64_t rows) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return multiply_rows<A, VECTORS, ROWS - 1>(tiles, rows);
  outer_tile<A, ROWS, VECTORS>(tiles);
}

// All rows with one panel, in tiles as equal as can be: those of one row more, then the others.
template <typename A, int VECTORS>
void multiply_panel(OuterTiles<A> t, int64_t rows) {
  const int64_t tiles = ceil_div(rows, kOuterRows[VECTORS]), fewer = rows / tiles, longer = rows - tiles * fewer;
  for (int64_t high = fewer + 1; high >= fewer; --high) {
    t.count = high > fewer ? longer : tiles - longer;
    if (t.count == 0) continue;
    multiply_rows<A, VECTORS>(t, high);
    t.offset += t.count * high;
    t.sums += t.count * high * t.step;
  }
}

// The same sums with the operands' roles exchanged: a sum over input places, each of which sees, through the taps in
// reverse, the outputs that saw it.
ConvGeometry turned_geometry(const ConvGeometry& g) {
  ConvGeometry v = g;
  v.in_channels = g.out_channels;
  v.out_channels = g.in_channels;
  v.flip_kernel = !g.flip_kernel;
  for (int a = 0; a < kMaxSpatial; ++a) {
    v.input[a] = g.output[a];
    v.output[a] = g.input[a];
    v.pad_before[a] = (g.kernel[a] - 1) * g.dilation[a] - g.pad_before[a];
    v.pad_after[a] = (g.kernel[a] - 1) * g.dilation[a] - g.pad_after[a];
  }
  return v;
}

bool may_turn(const ConvGeometry& g) {
  return g.padding_mode == PaddingMode::zeros && g.stride[0] == 1 && g.stride[1] == 1 && g.stride[2] == 1;
}

// Twentieths of a cycle, by the rates of AVX2.
template <typename T>
int64_t weight_cost(const ConvGeometry& v, bool turned) {
  using A = Accumulate<T>;
  const bool channels_last = v.layout == Layout::channels_last;
  const int64_t rows = greatest<int64_t>(v.group_inputs() * v.taps(), 4), lanes = v.group_outputs();
  return v.output_places() *
             (10 * ceil_div(lanes, kLanes<A>) * rows + (channels_last ? 3 : 7) * lanes + 6 * v.group_inputs()) +
         (turned && v.taps() == 1 ? 0 : 12 * rows * lanes);
}

template <typename T>
WeightPlan weight_plan(const ConvGeometry& g, int64_t wanted) {
  using A = Accumulate<T>;
  WeightPlan plan;
  ConvGeometry v = g;
  plan.turned = may_turn(v) && weight_cost<T>(turned_geometry(v), true) < weight_cost<T>(v, false);
  if (plan.turned) v = turned_geometry(v);
  plan.view = v;

  const int64_t batch = greatest<int64_t>(v.batch, 1);
  plan.column_bands = ceil_div(v.output[2], kMostColumns);
  plan.columns = ceil_div(v.output[2], plan.column_bands);
  plan.row_bands = ceil_div(v.output[1], clamp(kPlaces / plan.columns, 1, v.output[1]));
  plan.rows = ceil_div(v.output[1], plan.row_bands);
  plan.images = 1;
  if (v.output[0] == 1 && plan.row_bands == 1 && plan.column_bands == 1)
    plan.images = clamp(kPlaces / (plan.rows * plan.columns), 1, batch);
  plan.images = ceil_div(batch, ceil_div(batch, plan.images));
  plan.blocks = ceil_div(batch, plan.images) * v.output[0] * plan.row_bands * plan.column_bands;

  const int64_t outs[kMaxSpatial] = {1, plan.rows, plan.columns};
  for (int a = 0; a < kMaxSpatial; ++a) plan.axis[a] = axis_layout(v.stride[a], v.dilation[a], outs[a], v.kernel[a]);
  plan.plane = tile_plane(plan.axis);

  const int64_t inputs = v.group_inputs(), outputs = v.group_outputs(), taps = v.taps();
  plan.width = (outputs > kLanes<A> ? 2 : 1) * kLanes<A>;
  const int64_t panels = ceil_div(outputs, plan.width);
  int64_t high = kMostTile<A> / (plan.images * plan.rows * plan.columns * plan.width);
  high = least(panels, greatest(high, kMostLanes));
  while (high > 1 && taps * high * plan.width > kMostSums<A>) high /= 2;
  int64_t wide = clamp(kMostSums<A> / (taps * high * plan.width), 1, inputs);
  wide = clamp(kMostTile<A> / (plan.plane * plan.images), 1, wide);
  plan.copied = 1;
  if (plan.column_bands == 1 && v.kernel[1] > 1)
    while (plan.copied < least(kMostCopied, plan.row_bands)) {
      plan.axis[1] = axis_layout(v.stride[1], v.dilation[1], (plan.copied + 1) * plan.rows, v.kernel[1]);
      if (tile_plane(plan.axis) * wide > kMostTile<A>) break;
      ++plan.copied;
    }
  plan.axis[1] = axis_layout(v.stride[1], v.dilation[1], plan.copied * plan.rows, v.kernel[1]);
  plan.plane = tile_plane(plan.axis);
  plan.parts = inputs * taps * outputs <= kPartSums ? least(plan.blocks, kParts) : 1;
  for (;;) {
    plan.lane_blocks = ceil_div(panels, high);
    plan.channel_blocks = ceil_div(inputs, wide);
    plan.tasks = g.groups * plan.lane_blocks * plan.channel_blocks;
    if (plan.tasks * plan.parts >= wanted || (high == 1 && wide == 1)) break;
    if (high > 1 && (wide == 1 || high * plan.width > wide))
      high = ceil_div(high, 2);
    else
      wide = ceil_div(wide, 2);
  }
  high = ceil_div(panels, plan.lane_blocks);
  plan.lanes = high * plan.width;
  plan.channels = ceil_div(inputs, plan.channel_blocks);

  plan.offsets = plan.channels * taps;
  plan.tile = plan.channels * plan.plane * plan.images + 2 * kLanes<A>;
  plan.panels = plan.lanes * plan.images * plan.rows * plan.columns;
  plan.sums = plan.channels * taps * plan.lanes;
  return plan;
}

struct WeightBlock {
  int64_t group, c, channels, k, lanes;
};

WeightBlock weight_block(const WeightPlan& plan, int64_t task) {
  WeightBlock b;
  b.k = take(task, plan.lane_blocks) * plan.lanes;
  b.c = take(task, plan.channel_blocks) * plan.channels;
  b.group = task;
  b.lanes = least(plan.lanes, plan.view.group_outputs() - b.k);
  b.channels = least(plan.channels, plan.view.group_inputs() - b.c);
  return b;
}

// The places of a block: of each image the same rows and columns of one depth.
struct WeightPlaces {
  int64_t n, images, o, p, rows, q, columns;
  int64_t copied_p, copied_rows;  // output rows that the copy serves
};

WeightPlaces weight_places(const WeightPlan& plan, int64_t block) {
  const ConvGeometry& v = plan.view;
  WeightPlaces b;
  b.q = take(block, plan.column_bands) * plan.columns;
  b.p = take(block, plan.row_bands) * plan.rows;
  b.o = take(block, v.output[0]);
  b.n = block * plan.images;
  b.images = least(plan.images, v.batch - b.n);
  b.rows = least(plan.rows, v.output[1] - b.p);
  b.columns = least(plan.columns, v.output[2] - b.q);
  b.copied_p = b.p / (plan.copied * plan.rows) * plan.copied * plan.rows;
  b.copied_rows = least(plan.copied * plan.rows, v.output[1] - b.copied_p);
  return b;
}

// `channels` channels from `c` on of places [place, place + places) of some images.
template <typename T>
Ahead::Region region(const T* data, int64_t all_channels, int64_t all_places, bool channels_last, const WeightPlaces& b,
                     int64_t c, int64_t channels, int64_t place, int64_t places) {
  constexpr int64_t kSize = sizeof(T);
  const T* image = data + b.n * all_channels * all_places;
  const char* at =
      reinterpret_cast<const char*>(image + (channels_last ? place * all_channels + c : c * all_places + place));
  if (places == all_places && (!channels_last || channels == all_channels))
    return {at, b.images, all_channels * all_places * kSize, channels * places * kSize};
  if (!channels_last) return {at, channels, all_places * kSize, places * kSize};
  return {at, channels == all_channels, 0, channels * places * kSize};
}

template <typename T>
void weight_sum(const ConvArguments& args, const WeightPlan& plan, int64_t task, int64_t part,
                const WeightThread<T>& own, Accumulate<T>* sums) {
  using A = Accumulate<T>;
  const ConvGeometry& v = plan.view;
  const WeightBlock block = weight_block(plan, task);
  const bool channels_last = v.layout == Layout::channels_last;
  const T* seen = static_cast<const T*>(plan.turned ? args.grad_output : args.input);
  const T* lanes = static_cast<const T*>(plan.turned ? args.input : args.grad_output);
  const int64_t seen_channel = channels_last ? 1 : v.input_places(), seen_place = channels_last ? v.in_channels : 1;
  const int64_t lane_step = channels_last ? v.out_channels : v.output_places();
  const int64_t c0 = block.group * v.group_inputs() + block.c, k0 = block.group * v.group_outputs() + block.k;
  const int64_t taps = v.taps(), rows = block.channels * taps, panel = plan.images * plan.rows * plan.columns;
  const int64_t image = block.channels * plan.plane, plane = plan.plane;
  const int64_t tiles = ceil_div(block.lanes, plan.width) * ceil_div(rows, kOuterRows[plan.width / kLanes<A>]);

  AxisView view[kMaxSpatial];
  Band band = {};
  for (int a = 0; a < kMaxSpatial; ++a) {
    view[a] = forward_view(v, a);
    band.taps[a] = v.kernel[a];
  }
  int64_t piece[kPlaces];
  tap_offsets(plan.axis, band, own.offsets);
  if (v.flip_kernel)  // in the order of the weight's memory
    for (int64_t i = 0; i < taps / 2; ++i) {
      const int64_t other = own.offsets[i];
      own.offsets[i] = own.offsets[taps - 1 - i];
      own.offsets[taps - 1 - i] = other;
    }
  for (int64_t i = taps; i < rows; ++i) own.offsets[i] = own.offsets[i - taps] + plane;

  const int64_t first = plan.blocks * part / plan.parts, last = plan.blocks * (part + 1) / plan.parts;
  WeightPlaces next = weight_places(plan, first);
  bool copy = true;
  for (int64_t i = first; i < last; ++i) {
    const WeightPlaces b = next;
    const int64_t out[kMaxSpatial] = {b.o, b.copied_p, b.q}, outs[kMaxSpatial] = {1, b.copied_rows, b.columns};
    for (int a = 0; a < kMaxSpatial; ++a) {
      band.out[a] = out[a];
      band.outs[a] = outs[a];
    }
    for (int64_t m = 0; m < b.images; ++m) {
      if (copy)
        fill_tile(own.tile + m * image, plane, seen + v.input_offset(b.n + m, c0, 0), seen_channel, seen_place,
                  block.channels, view, plan.axis, band);
      for (int64_t j = 0; j < b.rows; ++j)
        piece[m * b.rows + j] = m * image + (b.p - b.copied_p + j) * plan.axis[2].length;
      const T* from = lanes + v.output_offset(b.n + m, k0, (b.o * v.output[1] + b.p) * v.output[2] + b.q);
      pack_lanes(from, channels_last, lane_step, block.lanes, b.rows * b.columns,
                 own.panels + m * b.rows * b.columns * plan.width, plan.width, plan.width * panel);
    }

    Ahead ahead = {};
    if (i + 1 < last) {
      next = weight_places(plan, i + 1);
      copy = next.n != b.n || next.o != b.o || next.copied_p != b.copied_p || next.q != b.q;
      ahead.region[0] = region(lanes, v.out_channels, v.output_places(), channels_last, next, k0, block.lanes,
                               (next.o * v.output[1] + next.p) * v.output[2] + next.q, next.rows * next.columns);
      if (copy) {
        const int64_t d = clamp(v.padded_place(0, next.o, v.kernel[0] - 1), 0, v.input[0] - 1);
        const int64_t top = v.padded_place(1, next.copied_p, next.n == b.n && next.o == b.o ? v.kernel[1] - 1 : 0);
        const int64_t end = v.padded_place(1, next.copied_p + next.copied_rows - 1, v.kernel[1] - 1) + 1;
        const int64_t h1 = clamp(top, 0, v.input[1]), h2 = clamp(end, h1, v.input[1]);
        const bool part_of_row = plan.column_bands > 1;
        ahead.region[1] = region(seen, v.in_channels, v.input_places(), channels_last, next, c0, block.channels,
                                 (d * v.input[1] + h1) * v.input[2] + (part_of_row ? next.q * v.stride[2] : 0),
                                 part_of_row ? next.columns * v.stride[2] : (h2 - h1) * v.input[2]);
      }
      ahead.at_once = ceil_div(ahead.region[0].lines() + ahead.region[1].lines(), tiles);
    }
    OuterTiles<A> t = {0,       own.tile,   own.offsets, piece, b.images * b.rows, b.columns, nullptr,
                       nullptr, plan.width, i > first,   &ahead};
    for (int64_t k = 0; k < block.lanes; k += plan.width) {
      t.lanes = own.panels + k * panel;
      t.sums = sums + k * rows;
      if (plan.width == kLanes<A>)
        multiply_panel<A, 1>(t, rows);
      else
        multiply_panel<A, 2>(t, rows);
    }
  }
}

template <typename T>
void weight_write(const ConvArguments& args, const WeightPlan& plan, int64_t task, Accumulate<T>* sums, int64_t step) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const WeightBlock block = weight_block(plan, task);
  const int64_t taps = g.taps(), rows = block.channels * taps, inputs = g.group_inputs();
  const int64_t count = rows * round_up(block.lanes, plan.width);
  if (plan.parts > 1)
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      Vec<A> sum = load(sums + i);
      for (int64_t part = 1; part < plan.parts; ++part) sum += load(sums + part * step + i);
      store(sums + i, sum);
    }
  T* dw = static_cast<T*>(args.output) + block.group * g.group_outputs() * inputs * taps;
  for (int64_t k = 0; k < block.lanes; k += plan.width) {
    const int64_t lanes = least(block.lanes - k, plan.width);
    const A* from = sums + k * rows;
    if (!plan.turned) {
      store_turned(from, plan.width, rows, lanes, dw + ((block.k + k) * inputs + block.c) * taps, inputs * taps);
      continue;
    }
    T* to = dw + (block.c * inputs + block.k + k) * taps;
    for (int64_t c = 0; c < block.channels; ++c, to += inputs * taps, from += taps * plan.width) {
      if (taps > 1)
        store_turned(from, plan.width, taps, lanes, to, taps);
      else
        for (int64_t i = 0; i < lanes; i += kLanes<A>) {
          if (lanes - i >= kLanes<A>)
            store(to + i, load(from + i));
          else
            store_some(to + i, load(from + i), lanes - i, 1);
        }
    }
  }
}

template <typename T>
constexpr WeightKernels<T> kWeightKernels = {weight_plan<T>, weight_sum<T>, weight_write<T>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
