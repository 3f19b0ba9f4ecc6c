// Direct convolution, forward, for every geometry: the register tiles of conv_direct_slide_tile.inl run over tiles of
// the input (conv_direct_tile.inl).
//
// A task is (image, group or a few small ones, block of output channels, band of rows and columns). It
// fills the tile for a chunk of channels (and taps, where a kernel is large), runs the register tile over all its
// outputs, and goes on with the next chunk, sums waiting on the stack in the accumulate type; then it rounds and
// stores. Where one tile holds all that is summed over and planes are contiguous, sums go straight to the output.
//
// Traffic: the source once per block of output channels and overlap of bands, the weights once per band; the rest is in
// registers and first-level cache.
// Limits: strides above 2 copy element by element.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kMaxChannels = 64;  // of a task
constexpr int64_t kMaxRows = 40;      // of a band
constexpr int64_t kMaxVectors = 16;   // of a band's row
constexpr int kWidths = 3;            // widths of a band that are tried
constexpr int64_t kMaxGrouped = 16;   // output channels of a task of several groups
constexpr double kCopyCost = 0.5;     // of an element into or out of a tile, in multiply-adds of a vector
constexpr double kTaskCost = 500;     // of a task, likewise

// Rounds and stores the sums of `channels` channels: to points at the image's first place, first channel.
// size: of the destination.
template <typename T>
void store_sums(T* to, const Accumulate<T>* sums, int64_t sum_stride, int64_t pitch, int64_t channels,
                int64_t channel_stride, int64_t place_stride, const int64_t* size, const Band& band) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t columns = band.outs[2];
  for (int64_t p = 0; p < band.outs[1]; ++p) {
    T* row = to + ((band.out[0] * size[1] + band.out[1] + p) * size[2] + band.out[2]) * place_stride;
    if (channel_stride != 1 || place_stride == 1) {
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t q = 0; q < columns; q += kCount) {
          const Vec<A> v = load(sums + k * sum_stride + p * pitch + q);
          T* place = row + k * channel_stride + q * place_stride;
          if (place_stride == 1 && q + kCount <= columns)
            store(place, v);
          else
            store_some(place, v, least(columns - q, kCount), place_stride);
        }
      continue;
    }
    for (int64_t q = 0; q < columns; q += kCount)
      for (int64_t k = 0; k < channels; k += kCount) {
        Vec<A> v[kCount];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kCount; ++i)
          v[i] = k + i < channels ? load(sums + (k + i) * sum_stride + p * pitch + q) : Vec<A>{};
        transpose_lanes<A>(v);
        for (int64_t i = 0; i < least(columns - q, kCount); ++i) {
          T* place = row + (q + i) * place_stride + k;
          if (k + kCount <= channels)
            store(place, v[i]);
          else
            store_some(place, v[i], channels - k, 1);
        }
      }
  }
}

// Given rows, columns and taps, fills in the rest of the plan and estimates the time, in multiply-adds of a vector.
// Negative: the band does not fit.
template <typename A>
double plan_band(DirectPlan& plan, const ConvGeometry& g) {
  constexpr int64_t kCount = kLanes<A>;
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs();
  const bool channels_last = g.layout == Layout::channels_last;
  const int64_t outs[kMaxSpatial] = {1, plan.rows, plan.columns};
  for (int a = 0; a < kMaxSpatial; ++a) plan.axis[a] = axis_layout(g.stride[a], g.dilation[a], outs[a], plan.taps[a]);
  plan.plane = tile_plane(plan.axis);
  const int64_t vectors = ceil_div((plan.rows - 1) * plan.axis[2].length + plan.columns, kCount);
  plan.sum_stride = vectors * kCount;
  const int64_t fit = kTileSize<A> / plan.plane, fit_sums = kSumsSize<A> / plan.sum_stride;
  const int64_t tap_count = plan.taps[0] * plan.taps[1] * plan.taps[2], chunks = ceil_div(g.taps(), tap_count);
  // One tile holds all that is summed over: sums stay in registers.
  plan.at_once = !channels_last && chunks == 1 && fit >= inputs && kWeightsSize<A> >= kOuts * tap_count * inputs &&
                 plan.columns >= kCount;
  if (fit == 0 || (!plan.at_once && fit_sums < least<int64_t>(outputs, kOuts))) return -1;

  const int64_t unit = channels_last ? greatest<int64_t>(kCount, kOuts) : kOuts;  // outputs: best in multiples of it
  int64_t most = plan.at_once ? kMaxChannels : least(kMaxChannels, fit_sums);
  if (most >= unit) most = most / unit * unit;
  plan.channels = least(outputs, least(most, round_up(ceil_div(outputs, ceil_div(outputs, most)), unit)));
  plan.channel_blocks = ceil_div(outputs, plan.channels);
  most = least(inputs, least(fit, kWeightsSize<A> / (kOuts * tap_count)));
  if (most >= unit) most = most / unit * unit;
  plan.reduce = least(inputs, least(most, round_up(ceil_div(inputs, ceil_div(inputs, most)), unit)));
  if (plan.at_once) {
    plan.reduce = inputs;
    plan.channels = ceil_div(outputs, ceil_div(outputs, kMaxChannels));
    plan.channel_blocks = ceil_div(outputs, plan.channels);
  }
  plan.groups = 1;
  if (plan.reduce == inputs && plan.channel_blocks == 1)
    plan.groups =
        clamp(least(fit / inputs, (plan.at_once ? kMaxGrouped : least(kMaxGrouped, fit_sums)) / outputs), 1, g.groups);
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.column_bands = ceil_div(g.output[2], plan.columns);

  // Squares are transposed whole, also where outputs are few.
  const int64_t moved = plan.groups * plan.reduce, stored = plan.groups * plan.channels;
  const int64_t square = channels_last ? kCount : 1;
  const double fill = double(round_up(moved, square)) / double(moved) * double(inputs) * double(plan.plane);
  const double drain = double(round_up(stored, square)) / double(stored) * double(plan.channels * plan.sum_stride);
  const int64_t computed = plan.at_once ? plan.rows * round_up(ceil_div(plan.columns, kCount), kFullWide) : vectors;
  const double sums = double(plan.channels * computed * tap_count * chunks) * double(inputs);
  const double waiting =
      plan.at_once ? 0
                   : 2.0 * double(plan.channels * vectors * chunks * ceil_div(inputs, plan.reduce)) + kCopyCost * drain;
  return double(plan.row_bands * plan.column_bands * plan.channel_blocks) *
         (sums + kCopyCost * double(chunks) * fill + waiting + kTaskCost / double(plan.groups));
}

// The band with the least estimated time, of a few widths and heights. One row of one vector always fits: it sees at
// most kMaxTaps vectors.
template <typename T>
DirectPlan slide_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  DirectPlan best, plan;
  plan_taps(plan, g.kernel, kMaxTaps);
  double least_cost = -1;
  const int64_t width = g.output[2];
  int64_t columns = ceil_div(width, ceil_div(width, kMaxVectors * kLanes<A>));
  for (int tries = 0; tries < kWidths || least_cost < 0; ++tries) {
    for (int64_t height = 1; height <= kMaxRows; height += ceil_div(height, 4)) {
      plan.columns = columns;
      plan.rows = ceil_div(g.output[1], ceil_div(g.output[1], least(height, g.output[1])));
      const double cost = plan_band<A>(plan, g);
      if (cost < 0) break;
      if (least_cost < 0 || cost < least_cost) {
        least_cost = cost;
        best = plan;
      }
      if (plan.rows == g.output[1]) break;
    }
    if (columns <= kLanes<A>) break;
    columns = round_up(ceil_div(columns, 2), kLanes<A>);
  }
  best.depths = g.output[0];
  const int64_t source = g.group_inputs() * g.input_places();
  best.prefetch = g.layout == Layout::contiguous && source * int64_t(sizeof(T)) > kFarSource;
  best.tasks = g.batch * ceil_div(g.groups, best.groups) * best.channel_blocks * best.depths * best.row_bands *
               best.column_bands;
  return best;
}

// Asks for what a tile of `channels` contiguous planes will be filled from, while another is worked on.
template <typename T>
void prefetch_source(const T* source, int64_t channel_stride, int64_t channels, const AxisView* view,
                     const Band& band) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  int64_t first[kMaxSpatial], end[kMaxSpatial];
  for (int a = 0; a < kMaxSpatial; ++a) {
    const int64_t place = view[a].origin + band.out[a] * view[a].step + band.tap[a] * view[a].dilation;
    first[a] = clamp(place, 0, view[a].size);
    end[a] = clamp(place + (band.outs[a] - 1) * view[a].step + (band.taps[a] - 1) * view[a].dilation + 1, first[a],
                   view[a].size);
  }
  for (int64_t c = 0; c < channels; ++c, source += channel_stride)
    for (int64_t d = first[0]; d < end[0]; ++d)
      for (int64_t h = first[1]; h < end[1]; ++h) {
        const T* row = source + (d * view[1].size + h) * view[2].size;
        for (int64_t w = first[2]; w < end[2] + kLine - 1; w += kLine)
          __builtin_prefetch(row + least(w, view[2].size - 1), 0, 2);
      }
}

template <typename T>
void slide_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t column_band = take(task, plan.column_bands), row_band = take(task, plan.row_bands);
  const int64_t depth = take(task, plan.depths);
  const int64_t block = take(task, plan.channel_blocks),
                group = take(task, ceil_div(g.groups, plan.groups)) * plan.groups;
  const int64_t groups = least(plan.groups, g.groups - group), n = task;

  AxisView view[kMaxSpatial];
  for (int a = 0; a < kMaxSpatial; ++a) view[a] = forward_view(g, a);
  Band band = {{depth, row_band * plan.rows, column_band * plan.columns}, {}, {}, {}};
  band.outs[0] = least<int64_t>(1, g.output[0] - depth);
  band.outs[1] = least(plan.rows, g.output[1] - band.out[1]);
  band.outs[2] = least(plan.columns, g.output[2] - band.out[2]);

  const int64_t reduce = g.group_inputs(), outs = g.group_outputs();
  const int64_t k0 = block * plan.channels, channels = least(plan.channels, outs - k0);
  const int64_t out_stride = reduce * g.taps(), channel_stride = g.taps();
  const T* source = static_cast<const T*>(args.input) + g.input_offset(n, group * reduce, 0);
  const T* w = static_cast<const T*>(args.weight) + group * outs * reduce * g.taps() + k0 * out_stride;
  const bool channels_last = g.layout == Layout::channels_last;
  const int64_t source_plane = channels_last ? 1 : g.input_places();
  const int64_t source_place = channels_last ? g.in_channels : 1;

  SlideArrays<T> a;
  const int64_t pitch = plan.axis[2].length;
  const int64_t vectors = ceil_div((band.outs[1] - 1) * pitch + band.outs[2], kLanes<A>);
  const T* bias = static_cast<const T*>(args.bias);
  for (int64_t k = 0; k < groups * channels; ++k) {
    const A start = bias == nullptr ? A(0) : to_accumulate(bias[group * outs + k0 + k]);
    if (plan.at_once)
      a.sums[k] = start;
    else
      for (int64_t v = 0; v < vectors; ++v) store(a.sums + k * plan.sum_stride + v * kLanes<A>, splat<A>(start));
  }
  T* to = static_cast<T*>(args.output) + g.output_offset(n, group * outs + k0, 0);
  for (int64_t t = 0; t < g.kernel[0]; t += plan.taps[0])
    for (int64_t r = 0; r < g.kernel[1]; r += plan.taps[1])
      for (int64_t s = 0; s < g.kernel[2]; s += plan.taps[2]) {
        const int64_t first[kMaxSpatial] = {t, r, s};
        for (int x = 0; x < kMaxSpatial; ++x) {
          band.tap[x] = first[x];
          band.taps[x] = least(plan.taps[x], g.kernel[x] - first[x]);
        }
        int64_t offset[kMaxTaps], tap = 0;
        const int64_t count = tap_offsets(plan.axis, band, offset);
        for (int64_t i = t; i < t + band.taps[0]; ++i)
          for (int64_t j = r; j < r + band.taps[1]; ++j)
            for (int64_t l = s; l < s + band.taps[2]; ++l, ++tap)
              a.taps[tap] = {offset[tap], g.weight_tap((i * g.kernel[1] + j) * g.kernel[2] + l)};
        for (int64_t c = 0; c < reduce; c += plan.reduce) {
          const int64_t some = least(plan.reduce, reduce - c);
          fill_tile(a.tile, plan.plane, source + c * source_plane, source_plane, source_place, groups * some, view,
                    plan.axis, band);
          if (plan.prefetch && c + some < reduce)
            prefetch_source(source + (c + some) * source_plane, source_plane, least(plan.reduce, reduce - c - some),
                            view, band);
          for (int64_t i = 0; i < groups; ++i) {
            const A* tile = a.tile + i * some * plan.plane;
            const T* from = w + i * outs * reduce * g.taps() + c * channel_stride;
            if (plan.at_once) {
              const int64_t width = g.output[2], row = (depth * g.output[1] + band.out[1]) * width + band.out[2];
              T* y = to + i * channels * g.output_places() + row;
              const T* end = plan.column_bands == 1 ? y + band.outs[1] * width : y;
              const SlideOutputs<T> sink = {y,   g.output_places(),    width, band.outs[1], band.outs[2], pitch,
                                            end, a.sums + i * channels};
              slide_all(a, sink, channels, tile, plan.plane, some, count, g.taps(), from, out_stride, channel_stride);
            } else {
              const SlideSums<T> sink = {a.sums + i * channels * plan.sum_stride, plan.sum_stride, vectors};
              slide_all(a, sink, channels, tile, plan.plane, some, count, g.taps(), from, out_stride, channel_stride);
            }
          }
        }
      }
  if (!plan.at_once)
    store_sums(to, a.sums, plan.sum_stride, pitch, groups * channels, channels_last ? 1 : g.output_places(),
               channels_last ? g.out_channels : 1, g.output, band);
  finish_block(args, {n, group * outs + k0, groups * channels,
                      (depth * g.output[1] + band.out[1]) * g.output[2] + band.out[2], band.outs[2], band.outs[1]});
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
