// Direct convolution, forward and gradient of the input: a register tile of kOuts output channels x kWide vectors of
// output columns slides over channels and taps, one broadcast weight against kWide loads per step:
//
//   sum[k][j] += w[k, c, tap] * tile[c][j + offset(tap)]
//
// A task is (image, group or a few small ones, block of output channels, stride phase, band of rows and columns). It
// fills the tile for a chunk of channels (and taps, where a kernel is large), runs the register tile over all its
// outputs, and goes on with the next chunk, sums waiting on the stack in the accumulate type; then it rounds and
// stores.
//
// The gradient of the input is the same computation on the output gradient, once per stride phase (backward_view);
// padding that mirrors or repeats is in conv_direct_fold.inl. Weights are read in place; half types are widened, chunk
// by chunk, into a small array.
//
// Traffic: the source once per block of output channels and overlap of bands, the weights once per band; the rest is in
// registers and first-level cache. 16 multiply-adds per 8 loads with AVX-512.
// Limits: strides above 2 copy element by element, and gradients of few input channels with a large stride fill the
// tile once per phase: slow there.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kOuts = 6;
constexpr int kMaxWide = 6;
constexpr int kSumVectors = CONVEXT_ISA_LEVEL == 3 ? 24 : 12;  // of a register tile
constexpr int kFullWide = kSumVectors / kOuts;
constexpr int64_t kMaxChannels = 64;   // of a task
constexpr int64_t kMaxRows = 40;       // of a band
constexpr int64_t kMaxVectors = 16;    // of a band's row
constexpr int64_t kMaxScattered = 16;  // summed channels at a time, backwards: each has its weights on pages of its own
constexpr int64_t kFarSource = 256 * 1024;  // bytes of an image that do not stay in second-level cache
constexpr int kWidths = 3;                  // widths of a band that are tried
constexpr int64_t kMaxGrouped = 16;         // output channels of a task of several groups
constexpr double kCopyCost = 0.5;           // of an element into or out of a tile, in multiply-adds of a vector
constexpr double kTaskCost = 500;           // of a task, likewise

struct Tap {
  int64_t offset, weight;
};

// What a register tile sums over: the tile's channels and taps, for weights that start at w. out_stride and
// channel_stride: elements from output channel to output channel, from summed to summed channel.
template <typename A>
struct SlideTaps {
  const A* tile;
  int64_t plane, channels;
  const Tap* taps;
  int64_t tap_count;
  const A* w;
  int64_t out_stride, channel_stride;
};

// at: of the first vector in the tile.
template <typename A, int kHigh, int kVectors>
CONVEXT_INLINE void slide_taps(Vec<A> (&sum)[kHigh][kVectors], const SlideTaps<A>& s, int64_t at) {
  constexpr int kCount = kLanes<A>;
  const A *tile = s.tile + at, *w = s.w;
  const int64_t out_stride = s.out_stride;
  for (int64_t c = 0; c < s.channels; ++c, tile += s.plane, w += s.channel_stride)
    for (int64_t i = 0; i < s.tap_count; ++i) {
      const A *from = tile + s.taps[i].offset, *weight = w + s.taps[i].weight;
      if constexpr (kHigh < kVectors) {  // the fewer stay in registers
        Vec<A> factor[kHigh];
#pragma GCC unroll 8
        for (int k = 0; k < kHigh; ++k) factor[k] = splat<A>(weight[k * out_stride]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const Vec<A> x = load(from + v * kCount);
#pragma GCC unroll 8
          for (int k = 0; k < kHigh; ++k) sum[k][v] += factor[k] * x;
        }
      } else {
        Vec<A> x[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) x[v] = load(from + v * kCount);
#pragma GCC unroll 8
        for (int k = 0; k < kHigh; ++k) {
          const Vec<A> factor = splat<A>(weight[k * out_stride]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sum[k][v] += factor * x[v];
        }
      }
    }
}

// Where sums wait for the next tile: `vectors` vectors per output channel.
template <typename T>
struct SlideSums {
  using A = Accumulate<T>;
  A* sums;
  int64_t stride, vectors;

  template <int kHigh, int kVectors>
  static void tile(const SlideSums& to, const SlideTaps<A>& s, int64_t k, int64_t v) {
    constexpr int kCount = kLanes<A>;
    A* sums = to.sums + k * to.stride + v * kCount;
    Vec<A> sum[kHigh][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = load(sums + i * to.stride + j * kCount);
    slide_taps<A, kHigh, kVectors>(sum, s, v * kCount);
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) store(sums + i * to.stride + j * kCount, sum[i][j]);
  }

  template <int kHigh>
  void run(const SlideTaps<A>& s, int64_t k) const;
};

// Where one tile holds all that is summed over: outputs, contiguous, `rows` rows of `columns` columns, the tile's
// `pitch` apart. Vectors that pass a row's end but stay below `end` are stored whole: rows go down, columns from right
// to left, so what they write too much is written again.
template <typename T>
struct SlideOutputs {
  using A = Accumulate<T>;
  T* y;
  int64_t channel_stride, row_stride, rows, columns, pitch;
  const T* end;  // in the first channel
  const A* start;

  template <int kHigh, int kVectors>
  static void tile(const SlideOutputs& to, const SlideTaps<A>& s, int64_t k, int64_t row, int64_t v) {
    constexpr int64_t kCount = kLanes<A>;
    Vec<A> sum[kHigh][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = splat<A>(to.start[k + i]);
    slide_taps<A, kHigh, kVectors>(sum, s, row * to.pitch + v * kCount);
    T* y = to.y + row * to.row_stride + v * kCount;
    const bool whole = (v + kVectors) * kCount <= to.columns || y + kVectors * kCount <= to.end;
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        T* at = y + (k + i) * to.channel_stride + j * kCount;
        if (whole)
          store(at, sum[i][j]);
        else
          store_rest(at, sum[i][j], clamp(to.columns - (v + j) * kCount, 0, kCount));
      }
  }

  template <int kHigh>
  void run(const SlideTaps<A>& s, int64_t k) const;
};

// The register tile of kHigh output channels and the vectors that are wanted, at most kVectors.
template <typename Sink, int kHigh, int kVectors>
auto slide_tile_of(int64_t vectors) {
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return slide_tile_of<Sink, kHigh, kVectors - 1>(vectors);
  return &Sink::template tile<kHigh, kVectors>;
}

template <typename Sink, int kHigh>
auto slide_tile_of(int64_t vectors) {
  return slide_tile_of<Sink, kHigh, least(kMaxWide, kSumVectors / kHigh)>(vectors);
}

template <int kHigh>
CONVEXT_INLINE int64_t slide_parts(int64_t vectors) {
  return ceil_div(vectors, least(kMaxWide, kSumVectors / kHigh));
}

template <typename T>
template <int kHigh>
void SlideSums<T>::run(const SlideTaps<A>& s, int64_t k) const {
  const int64_t parts = slide_parts<kHigh>(vectors);
  for (int64_t i = 0, v = 0; i < parts; ++i) {
    const int64_t wide = (vectors - v + parts - i - 1) / (parts - i);
    slide_tile_of<SlideSums, kHigh>(wide)(*this, s, k, v);
    v += wide;
  }
}

template <typename T>
template <int kHigh>
void SlideOutputs<T>::run(const SlideTaps<A>& s, int64_t k) const {
  const int64_t vectors = ceil_div(columns, kLanes<A>), parts = slide_parts<kHigh>(vectors);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0, v = vectors; i < parts; ++i) {
      const int64_t wide = (v + parts - i - 1) / (parts - i);
      v -= wide;
      slide_tile_of<SlideOutputs, kHigh>(wide)(*this, s, k, row, v);
    }
}

// The arrays of a task. raw: half weights brought together before they are widened.
template <typename T>
struct SlideArrays {
  using A = Accumulate<T>;
  static constexpr bool kWiden = sizeof(T) != sizeof(A);
  alignas(64) A tile[kTileSize<A> + 2 * kLanes<A>];
  alignas(64) A sums[kSumsSize<A> + 2 * kLanes<A>];
  alignas(64) A weights[kWiden ? kWeightsSize<A> + kLanes<A> : 1];
  T raw[kWiden ? kWeightsSize<A> + kLanes<A> : 1];
  Tap taps[kMaxTaps], own_taps[kWiden ? kMaxTaps : 1];
};

// The tile's channels and taps for `outs` output channels, into `sink` (SlideSums, SlideOutputs). w points at the first
// output and first summed channel.
template <typename T, typename Sink>
void slide_all(SlideArrays<T>& a, const Sink& sink, int64_t outs, const Accumulate<T>* tile, int64_t plane,
               int64_t channels, int64_t tap_count, int64_t all_taps, const T* w, int64_t out_stride,
               int64_t channel_stride) {
  using A = Accumulate<T>;
  if constexpr (SlideArrays<T>::kWiden)  // copies keep the taps of a chunk in the order of memory if all are there
    for (int64_t i = 0; i < tap_count; ++i)
      a.own_taps[i] = {a.taps[i].offset, tap_count == all_taps ? a.taps[i].weight : i};
  const int64_t blocks = ceil_div(outs, kOuts);
  for (int64_t block = 0, k = 0, high; block < blocks; ++block, k += high) {
    high = (outs - k + blocks - block - 1) / (blocks - block);
    const A* weights;
    const Tap* taps = a.taps;
    int64_t from_out = out_stride, from_channel = channel_stride;
    if constexpr (SlideArrays<T>::kWiden) {
      const T* first = w + k * out_stride;
      const bool channels_inside = channel_stride == all_taps;
      const int64_t outer = channels_inside ? high : channels, inner = channels_inside ? channels : high;
      const int64_t outer_stride = channels_inside ? out_stride : channel_stride, run = inner * tap_count;
      const int64_t inner_stride = channels_inside ? channel_stride : out_stride;
      for (int64_t y = 0; y < outer; ++y) {
        const T* source = first + y * outer_stride;
        if (tap_count != all_taps) {
          for (int64_t x = 0; x < inner; ++x)
            for (int64_t i = 0; i < tap_count; ++i)
              a.raw[x * tap_count + i] = source[x * inner_stride + a.taps[i].weight];
          source = a.raw;
        }
        A* to = a.weights + y * run;
        int64_t i = 0;
        for (; i + kLanes<A> <= run; i += kLanes<A>) store(to + i, load(source + i));
        for (; i < run; ++i) to[i] = to_accumulate(source[i]);
      }
      weights = a.weights;
      taps = a.own_taps;
      from_out = channels_inside ? run : tap_count;
      from_channel = channels_inside ? tap_count : run;
    } else {
      weights = w + k * out_stride;
    }
    const SlideTaps<A> s = {tile, plane, channels, taps, tap_count, weights, from_out, from_channel};
    switch (high) {
      case 1: sink.template run<1>(s, k); break;
      case 2: sink.template run<2>(s, k); break;
      case 3: sink.template run<3>(s, k); break;
      case 4: sink.template run<4>(s, k); break;
      case 5: sink.template run<5>(s, k); break;
      default: sink.template run<kOuts>(s, k);
    }
  }
}

// Rounds and stores the sums of `channels` channels: to points at the image's first place, first channel.
// size: of the destination.
template <typename T>
void store_sums(T* to, const Accumulate<T>* sums, int64_t sum_stride, int64_t pitch, int64_t channels,
                int64_t channel_stride, int64_t place_stride, const int64_t* size, const AxisView* view,
                const Band& band) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t columns = band.outs[2], w = view[2].first + band.out[2] * view[2].stride;
  const int64_t step = view[2].stride * place_stride, d = view[0].first + band.out[0] * view[0].stride;
  for (int64_t p = 0; p < band.outs[1]; ++p) {
    const int64_t h = view[1].first + (band.out[1] + p) * view[1].stride;
    T* row = to + ((d * size[1] + h) * size[2] + w) * place_stride;
    if (channel_stride != 1 || place_stride == 1) {
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t q = 0; q < columns; q += kCount) {
          const Vec<A> v = load(sums + k * sum_stride + p * pitch + q);
          T* place = row + k * channel_stride + q * step;
          if (step == 1 && q + kCount <= columns)
            store(place, v);
          else
            store_some(place, v, least(columns - q, kCount), step);
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
          T* place = row + (q + i) * step + k;
          if (k + kCount <= channels)
            store(place, v[i]);
          else
            store_some(place, v[i], channels - k, 1);
        }
      }
  }
}

// What slide_plan cuts into bands; for the gradient of the input, the largest phase.
struct SlideProblem {
  int64_t reduce, outs, groups, most_reduce;
  int64_t count[kMaxSpatial], taps[kMaxSpatial], step[kMaxSpatial], dilation[kMaxSpatial];
  int64_t all_taps;
  bool channels_last, at_once;
};

template <bool kBackward>
SlideProblem slide_problem(const ConvGeometry& g) {
  SlideProblem s = {};
  s.reduce = kBackward ? g.group_outputs() : g.group_inputs();
  s.outs = kBackward ? g.group_inputs() : g.group_outputs();
  s.groups = g.groups;
  s.most_reduce = kBackward ? kMaxScattered : s.reduce;
  s.channels_last = g.layout == Layout::channels_last;
  s.at_once = !kBackward && !s.channels_last;
  for (int a = 0; a < kMaxSpatial; ++a) {
    const int64_t divisor = kBackward ? greatest_divisor(g.stride[a], g.dilation[a]) : 1;
    s.count[a] = kBackward ? ceil_div(g.input[a], g.stride[a]) : g.output[a];
    s.taps[a] = kBackward ? ceil_div(g.kernel[a], g.stride[a] / divisor) : g.kernel[a];
    s.step[a] = kBackward ? 1 : g.stride[a];
    s.dilation[a] = g.dilation[a] / divisor;
  }
  s.all_taps = s.taps[0] * s.taps[1] * s.taps[2];
  return s;
}

// Given rows, columns and taps, fills in the rest of the plan and estimates the time, in multiply-adds of a vector.
// Negative: the band does not fit.
template <typename A>
double plan_band(DirectPlan& plan, const SlideProblem& s) {
  constexpr int64_t kCount = kLanes<A>;
  const int64_t outs[kMaxSpatial] = {1, plan.rows, plan.columns};
  for (int a = 0; a < kMaxSpatial; ++a) plan.axis[a] = axis_layout(s.step[a], s.dilation[a], outs[a], plan.taps[a]);
  plan.plane = tile_plane(plan.axis);
  const int64_t vectors = ceil_div((plan.rows - 1) * plan.axis[2].length + plan.columns, kCount);
  plan.sum_stride = vectors * kCount;
  const int64_t fit = kTileSize<A> / plan.plane, fit_sums = kSumsSize<A> / plan.sum_stride;
  const int64_t tap_count = plan.taps[0] * plan.taps[1] * plan.taps[2], chunks = ceil_div(s.all_taps, tap_count);
  // One tile holds all that is summed over: sums stay in registers.
  plan.at_once = s.at_once && chunks == 1 && fit >= s.reduce && kWeightsSize<A> >= kOuts * tap_count * s.reduce &&
                 plan.columns >= kCount;
  if (fit == 0 || (!plan.at_once && fit_sums < least<int64_t>(s.outs, kOuts))) return -1;

  const int64_t unit = s.channels_last ? greatest<int64_t>(kCount, kOuts) : kOuts;  // channels: best in multiples of it
  int64_t most = plan.at_once ? kMaxChannels : least(kMaxChannels, fit_sums);
  if (most >= unit) most = most / unit * unit;
  plan.channels = least(s.outs, least(most, round_up(ceil_div(s.outs, ceil_div(s.outs, most)), unit)));
  plan.channel_blocks = ceil_div(s.outs, plan.channels);
  most = least(s.most_reduce, least(fit, kWeightsSize<A> / (kOuts * tap_count)));
  if (most >= unit) most = most / unit * unit;
  plan.reduce = least(s.reduce, least(most, round_up(ceil_div(s.reduce, ceil_div(s.reduce, most)), unit)));
  if (plan.at_once) {
    plan.reduce = s.reduce;
    plan.channels = ceil_div(s.outs, ceil_div(s.outs, kMaxChannels));
    plan.channel_blocks = ceil_div(s.outs, plan.channels);
  }
  plan.groups = 1;
  if (plan.reduce == s.reduce && plan.channel_blocks == 1)
    plan.groups =
        clamp(least(fit / s.reduce, (plan.at_once ? kMaxGrouped : least(kMaxGrouped, fit_sums)) / s.outs), 1, s.groups);
  plan.row_bands = ceil_div(s.count[1], plan.rows);
  plan.column_bands = ceil_div(s.count[2], plan.columns);

  // Squares are transposed whole, also where channels are few.
  const int64_t moved = plan.groups * plan.reduce, stored = plan.groups * plan.channels;
  const int64_t square = s.channels_last ? kCount : 1;
  const double fill = double(round_up(moved, square)) / double(moved) * double(s.reduce) * double(plan.plane);
  const double drain = double(round_up(stored, square)) / double(stored) * double(plan.channels * plan.sum_stride);
  const int64_t computed = plan.at_once ? plan.rows * round_up(ceil_div(plan.columns, kCount), kFullWide) : vectors;
  const double sums = double(plan.channels * computed * tap_count * chunks) * double(s.reduce);
  const double waiting =
      plan.at_once
          ? 0
          : 2.0 * double(plan.channels * vectors * chunks * ceil_div(s.reduce, plan.reduce)) + kCopyCost * drain;
  return double(plan.row_bands * plan.column_bands * plan.channel_blocks) *
         (sums + kCopyCost * double(chunks) * fill + waiting + kTaskCost / double(plan.groups));
}

// The band with the least estimated time, of a few widths and heights. One row of one vector always fits: it sees at
// most kMaxTaps vectors.
template <typename T, bool kBackward>
DirectPlan slide_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const SlideProblem s = slide_problem<kBackward>(g);
  DirectPlan best, plan;
  plan_taps(plan, s.taps, kMaxTaps);
  double least_cost = -1;
  const int64_t width = s.count[2];
  int64_t columns = ceil_div(width, ceil_div(width, kMaxVectors * kLanes<A>));
  for (int tries = 0; tries < kWidths || least_cost < 0; ++tries) {
    for (int64_t height = 1; height <= kMaxRows; height += ceil_div(height, 4)) {
      plan.columns = columns;
      plan.rows = ceil_div(s.count[1], ceil_div(s.count[1], least(height, s.count[1])));
      const double cost = plan_band<A>(plan, s);
      if (cost < 0) break;
      if (least_cost < 0 || cost < least_cost) {
        least_cost = cost;
        best = plan;
      }
      if (plan.rows == s.count[1]) break;
    }
    if (columns <= kLanes<A>) break;
    columns = round_up(ceil_div(columns, 2), kLanes<A>);
  }
  for (int a = 0; a < kMaxSpatial && kBackward; ++a) best.phases *= g.stride[a];
  best.depths = s.count[0];
  const int64_t source = s.reduce * (kBackward ? g.output_places() : g.input_places());
  best.prefetch = !s.channels_last && source * int64_t(sizeof(T)) > kFarSource;
  best.tasks = g.batch * ceil_div(g.groups, best.groups) * best.channel_blocks * best.phases * best.depths *
               best.row_bands * best.column_bands;
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

template <typename T, bool kBackward>
void slide_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t column_band = take(task, plan.column_bands), row_band = take(task, plan.row_bands);
  const int64_t depth = take(task, plan.depths);
  int64_t phase = take(task, plan.phases);
  const int64_t block = take(task, plan.channel_blocks),
                group = take(task, ceil_div(g.groups, plan.groups)) * plan.groups;
  const int64_t groups = least(plan.groups, g.groups - group), n = task;

  AxisView view[kMaxSpatial];
  for (int a = kMaxSpatial; a-- > 0;)
    view[a] = kBackward ? backward_view(g, a, take(phase, g.stride[a])) : forward_view(g, a);
  Band band = {{depth, row_band * plan.rows, column_band * plan.columns}, {}, {}, {}};
  band.outs[0] = least<int64_t>(1, view[0].count - depth);
  band.outs[1] = least(plan.rows, view[1].count - band.out[1]);
  band.outs[2] = least(plan.columns, view[2].count - band.out[2]);
  if (band.outs[0] <= 0 || band.outs[1] <= 0 || band.outs[2] <= 0) return;  // this phase has fewer places

  const int64_t reduce = kBackward ? g.group_outputs() : g.group_inputs();
  const int64_t outs = kBackward ? g.group_inputs() : g.group_outputs();
  const int64_t k0 = block * plan.channels, channels = least(plan.channels, outs - k0);
  const int64_t out_stride = (kBackward ? 1 : g.group_inputs()) * g.taps();
  const int64_t channel_stride = (kBackward ? g.group_inputs() : 1) * g.taps();
  const T* source = static_cast<const T*>(kBackward ? args.grad_output : args.input);
  source += kBackward ? g.output_offset(n, group * reduce, 0) : g.input_offset(n, group * reduce, 0);
  const T* w = static_cast<const T*>(args.weight) + group * outs * reduce * g.taps() + k0 * out_stride;
  const bool channels_last = g.layout == Layout::channels_last;
  const int64_t source_plane = channels_last ? 1 : kBackward ? g.output_places() : g.input_places();
  const int64_t source_place = !channels_last ? 1 : kBackward ? g.out_channels : g.in_channels;

  SlideArrays<T> a;
  const int64_t pitch = plan.axis[2].length;
  const int64_t vectors = ceil_div((band.outs[1] - 1) * pitch + band.outs[2], kLanes<A>);
  const T* bias = kBackward ? nullptr : static_cast<const T*>(args.bias);
  for (int64_t k = 0; k < groups * channels; ++k) {
    const A start = bias == nullptr ? A(0) : to_accumulate(bias[group * outs + k0 + k]);
    if (plan.at_once)
      a.sums[k] = start;
    else
      for (int64_t v = 0; v < vectors; ++v) store(a.sums + k * plan.sum_stride + v * kLanes<A>, splat<A>(start));
  }
  T* to = static_cast<T*>(args.output);
  to += kBackward ? g.input_offset(n, group * outs + k0, 0) : g.output_offset(n, group * outs + k0, 0);
  for (int64_t t = 0; t < view[0].taps; t += plan.taps[0])
    for (int64_t r = 0; r < view[1].taps; r += plan.taps[1])
      for (int64_t s = 0; s < view[2].taps; s += plan.taps[2]) {
        const int64_t first[kMaxSpatial] = {t, r, s};
        for (int x = 0; x < kMaxSpatial; ++x) {
          band.tap[x] = first[x];
          band.taps[x] = least(plan.taps[x], view[x].taps - first[x]);
        }
        int64_t offset[kMaxTaps], tap = 0;
        const int64_t count = tap_offsets(plan.axis, band, offset);
        for (int64_t i = t; i < t + band.taps[0]; ++i)
          for (int64_t j = r; j < r + band.taps[1]; ++j)
            for (int64_t l = s; l < s + band.taps[2]; ++l, ++tap) {
              const int64_t at_t = view[0].first_tap + i * view[0].tap_step;
              const int64_t at_r = view[1].first_tap + j * view[1].tap_step;
              const int64_t at_s = view[2].first_tap + l * view[2].tap_step;
              a.taps[tap] = {offset[tap], g.weight_tap((at_t * g.kernel[1] + at_r) * g.kernel[2] + at_s)};
            }
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
  if (plan.at_once) return;
  store_sums(to, a.sums, plan.sum_stride, pitch, groups * channels,
             channels_last ? 1
             : kBackward   ? g.input_places()
                           : g.output_places(),
             !channels_last ? 1
             : kBackward    ? g.in_channels
                            : g.out_channels,
             kBackward ? g.input : g.output, view, band);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
