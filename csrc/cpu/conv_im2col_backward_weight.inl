// The kernels of im2col's gradient of the weight, see conv_im2col_backward_weight.cpp.
#include "conv_im2col_weight_tile.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

using im2col::WeightKernels;
using im2col::WeightPlan;
using im2col::WeightThread;

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
constexpr int64_t kFewInputs = 4;  // channels_last: so many stay side by side in the copy
constexpr int64_t kFewRows = 48;   // channels_last: lanes for so few rows are read where they lie

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

// The copy of the rows' operand: `copied` bands together.
void plan_copy(WeightPlan& plan, int64_t copied) {
  const ConvGeometry& v = plan.view;
  const int64_t outs[kMaxSpatial] = {1, copied * plan.rows, plan.columns};
  for (int a = 0; a < kMaxSpatial; ++a) plan.axis[a] = axis_layout(v.stride[a], v.dilation[a], outs[a], v.kernel[a]);
  if (plan.interleaved)  // one depth for each tap, rows and columns as they lie
    plan.axis[0] = {1, 1, 1, v.kernel[0]}, plan.axis[1] = {1, 1, 1, seen(v, 1, outs[1])},
    plan.axis[2] = {1, 1, 1, seen(v, 2, outs[2])};
  plan.plane = tile_plane(plan.axis);
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

  const bool channels_last = v.layout == Layout::channels_last;
  plan.interleaved =
      channels_last && v.in_channels <= kFewInputs && v.groups == 1 && v.dilation[1] == 1 && v.dilation[2] == 1;
  plan_copy(plan, 1);

  const int64_t inputs = v.group_inputs(), outputs = v.group_outputs(), taps = v.taps();
  plan.width = (outputs > kLanes<A> ? 2 : 1) * kLanes<A>;
  const int64_t panels = ceil_div(outputs, plan.width);
  int64_t high = kMostTile<A> / (plan.images * plan.rows * plan.columns * plan.width);
  high = least(panels, greatest(high, kMostLanes));
  while (high > 1 && taps * high * plan.width > kMostSums<A>) high /= 2;
  int64_t wide = clamp(kMostSums<A> / (taps * high * plan.width), 1, inputs);
  wide = plan.interleaved ? inputs : clamp(kMostTile<A> / (plan.plane * plan.images), 1, wide);
  plan.copied = 1;
  if (plan.column_bands == 1 && v.kernel[1] > 1)
    while (plan.copied < least(kMostCopied, plan.row_bands)) {
      plan_copy(plan, plan.copied + 1);
      if (plan.plane * wide > kMostTile<A>) break;
      ++plan.copied;
    }
  plan_copy(plan, plan.copied);
  plan.parts = inputs * taps * outputs <= kPartSums ? least(plan.blocks, kParts) : 1;
  for (;;) {
    plan.lane_blocks = ceil_div(panels, high);
    plan.channel_blocks = ceil_div(inputs, wide);
    plan.tasks = g.groups * plan.lane_blocks * plan.channel_blocks;
    const bool whole = wide == 1 || plan.interleaved;  // no channels are cut
    if (plan.tasks * plan.parts >= wanted || (high == 1 && whole)) break;
    if (high > 1 && (whole || high * plan.width > wide))
      high = ceil_div(high, 2);
    else
      wide = ceil_div(wide, 2);
  }
  high = ceil_div(panels, plan.lane_blocks);
  plan.lanes = high * plan.width;
  plan.channels = ceil_div(inputs, plan.channel_blocks);

  plan.offsets = plan.channels * taps;
  plan.tile = plan.channels * plan.plane * plan.images + 2 * kLanes<A>;
  plan.lanes_in_place =
      std::is_same_v<T, A> && channels_last && outputs % plan.width == 0 && plan.channels * taps <= kFewRows;
  plan.panels = plan.lanes_in_place ? 0 : plan.lanes * plan.images * plan.rows * plan.columns;
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

// The copy of an image, its channels side by side as in memory. Writes up to a vector past a row's end.
template <typename T>
void fill_interleaved(Accumulate<T>* tile, const T* image, const WeightPlan& plan, const AxisView* view,
                      const WeightPlaces& b) {
  using A = Accumulate<T>;
  const ConvGeometry& v = plan.view;
  const int64_t channels = v.in_channels, columns = seen(v, 2, b.columns);
  const int64_t place = view[2].origin + b.q * view[2].step;
  const int64_t first = clamp(-place, 0, columns), last = clamp(view[2].size - place, first, columns);
  for (int64_t t = 0; t < v.kernel[0]; ++t) {
    const int64_t d = view[0].source(view[0].origin + b.o * view[0].step + t * view[0].dilation);
    A* to = tile + t * plan.axis[1].length * plan.axis[2].length * channels;
    for (int64_t i = 0; i < seen(v, 1, b.copied_rows); ++i, to += plan.axis[2].length * channels) {
      const int64_t h = view[1].source(view[1].origin + b.copied_p * view[1].step + i);
      if (d < 0 || h < 0) {
        store_zeros(to, 0, columns * channels);
        continue;
      }
      const T* row = image + (d * v.input[1] + h) * v.input[2] * channels;
      const T* from = row + place * channels;
      store_zeros(to, 0, first * channels);
      for (int64_t j = first * channels; j < last * channels; j += kLanes<A>) {
        const int64_t some = last * channels - j;
        store(to + j, some >= kLanes<A> ? load(from + j) : load_some(from + j, 0, some));
      }
      store_zeros(to, last * channels, columns * channels);
      if (v.padding_mode == PaddingMode::zeros) continue;
      for (int64_t j = 0; j < columns; ++j) {
        if (j == first) j = last;
        const int64_t source = j < columns ? view[2].source(place + j) : -1;
        for (int64_t c = 0; source >= 0 && c < channels; ++c)
          to[j * channels + c] = to_accumulate(row[source * channels + c]);
      }
    }
  }
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
  const int64_t row_apart = plan.axis[2].length * (plan.interleaved ? v.in_channels * v.stride[1] : 1);
  const int64_t tiles = ceil_div(block.lanes, plan.width) * ceil_div(rows, kOuterRows[plan.width / kLanes<A>]);

  AxisView view[kMaxSpatial];
  Band band = {};
  for (int a = 0; a < kMaxSpatial; ++a) {
    view[a] = forward_view(v, a);
    band.taps[a] = v.kernel[a];
  }
  int64_t piece[kPlaces], lane_piece[kPlaces];
  const int64_t apart = plan.interleaved ? v.in_channels : 1;  // from column to column of the copy
  tap_offsets(plan.axis, band, own.offsets);
  if (apart > 1)
    for (int64_t i = 0; i < taps; ++i) own.offsets[i] *= apart;
  if (v.flip_kernel)  // in the order of the weight's memory
    for (int64_t i = 0; i < taps / 2; ++i) {
      const int64_t other = own.offsets[i];
      own.offsets[i] = own.offsets[taps - 1 - i];
      own.offsets[taps - 1 - i] = other;
    }
  for (int64_t i = taps; i < rows; ++i) own.offsets[i] = own.offsets[i - taps] + (plan.interleaved ? 1 : plane);

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
      const T* source = seen + v.input_offset(b.n + m, c0, 0);
      if (copy && plan.interleaved)
        fill_interleaved(own.tile + m * image, source, plan, view, b);
      else if (copy)
        fill_tile(own.tile + m * image, plane, source, seen_channel, seen_place, block.channels, view, plan.axis, band);
      for (int64_t j = 0; j < b.rows; ++j) {
        piece[m * b.rows + j] = m * image + (b.p - b.copied_p + j) * row_apart;
        lane_piece[m * b.rows + j] =
            plan.lanes_in_place ? v.output_offset(b.n + m, k0, (b.o * v.output[1] + b.p + j) * v.output[2] + b.q)
                                : (m * b.rows + j) * b.columns * plan.width;
      }
      if (plan.lanes_in_place) continue;
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
      ahead.at_once = ceil_div(ahead.region[0].lines() + ahead.region[1].lines(),
                               tiles * b.images * b.rows * ceil_div(b.columns, kRun));
    }
    OuterTiles<A> t = {};
    t.rows = own.tile;
    t.offset = own.offsets;
    t.piece = piece;
    t.lane_piece = lane_piece;
    t.pieces = b.images * b.rows;
    t.columns = b.columns;
    t.row_step = plan.interleaved ? v.in_channels * v.stride[2] : 1;
    t.lane_step = plan.lanes_in_place ? lane_step : plan.width;
    t.step = plan.width;
    t.accumulate = i > first;
    t.ahead = &ahead;
    for (int64_t k = 0; k < block.lanes; k += plan.width) {
      t.lanes = own.panels + k * panel;
      if constexpr (std::is_same_v<T, A>)
        if (plan.lanes_in_place) t.lanes = lanes + k;
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
  const bool last = args.weight_channels_last || taps == 1;  // input channels side by side
  const int64_t channel_step = last ? 1 : taps;
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
      T* to = dw + (block.k + k) * inputs * taps + block.c * channel_step;
      const int64_t pieces = last ? taps : 1;  // rows of a tap, or all
      for (int64_t t = 0; t < pieces; ++t)
        store_turned(from + t * plan.width, pieces * plan.width, rows / pieces, lanes, to + t * inputs, inputs * taps);
      continue;
    }
    T* to = dw + block.c * inputs * taps + (block.k + k) * channel_step;
    for (int64_t c = 0; c < block.channels; ++c, to += inputs * taps, from += taps * plan.width) {
      if (!last) {
        store_turned(from, plan.width, taps, lanes, to, taps);
        continue;
      }
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t i = 0; i < lanes; i += kLanes<A>)
          store_first(to + t * inputs + i, load(from + t * plan.width + i), lanes - i);
    }
  }
}

template <typename T>
constexpr WeightKernels<T> kWeightKernels = {weight_plan<T>, weight_sum<T>, weight_write<T>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
