// Direct convolution, forward, channels_last, for few output channels: last layers.
//
//   y[place][k] = bias[k] + sum over taps, c of x[place seen][c] * w[tap][k][c]
//
// Vectors run over input channels, as they lie in memory: a register tile is a few places x all kOuts output channels,
// each sum a vector whose lanes are added up at the end: 7 loads per 12 multiply-adds for 3 channels with AVX2; of a
// single channel at stride 1, whose weights stay in registers 8 taps at a time, 23 per 64 with AVX-512. Places
// come as pointers, listed as in conv_direct_lanes.inl: no border is special, nothing is copied.
//
// A task is (image, depth, band of rows). Weights are packed [tap][vector of c][k][lane of c] once per call.
// Traffic: the input from memory once, then from cache once per tap; weights from first-level cache.
// Limits: one group, at most kMaxDotOuts output channels.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kMaxDotOuts = 4;
constexpr int kDotSums = CONVEXT_ISA_LEVEL == 3 ? 24 : 12;
constexpr int kDotTaps = CONVEXT_ISA_LEVEL == 3 ? 8 : 4;  // whose weights stay in registers, of one output channel
constexpr int64_t kShareWork = 12;  // channels per tap of a row, from which on places come faster whole, one by one
constexpr int64_t kDotsAhead = 16;  // places
constexpr int64_t kDotsWork = 64 * 1024;  // vector multiply-adds of a task, about

// Adds up the lanes of each of kCount vectors, halves first: lane i of the result is the sum of v[i]. Two vectors
// become one, whose lanes with bit kBlock belong to the second.
template <typename A, int kBlock = kLanes<A> / 2, int... kLane>
CONVEXT_INLINE Vec<A> add_lanes(Vec<A>* v, std::integer_sequence<int, kLane...> lanes) {
  constexpr int kCount = kLanes<A>;
#pragma GCC unroll 8
  for (int i = 0; i < kBlock; ++i) {
    const Vec<A> a = v[i], b = v[i + kBlock];
    v[i] = __builtin_shufflevector(a, b, (kLane & kBlock ? kLane + kCount : kLane)...) +
           __builtin_shufflevector(a, b, (kLane & kBlock ? kLane - kBlock + kCount : kLane + kBlock)...);
  }
  if constexpr (kBlock > 1)
    return add_lanes<A, kBlock / 2>(v, lanes);
  else
    return v[0];
}

// kPart: `some` channels of the vector.
template <typename T, int kOuts, int kHigh, bool kPart>
CONVEXT_INLINE void add_products(Vec<Accumulate<T>>* sum, const T* const* from, int64_t c, int64_t some,
                                 const Accumulate<T>* w) {
  using A = Accumulate<T>;
  Vec<A> factor[kOuts];
#pragma GCC unroll 4
  for (int k = 0; k < kOuts; ++k) factor[k] = load(w + k * kLanes<A>);
#pragma GCC unroll 8
  for (int j = 0; j < kHigh; ++j) {
    Vec<A> x = kPart ? load_some(from[j] + c, 0, some) : load(from[j] + c);
    keep(x);
#pragma GCC unroll 4
    for (int k = 0; k < kOuts; ++k) sum[j * kOuts + k] += x * factor[k];
  }
}

// One output channel, places side by side: kTaps weights stay in registers, and a place that is loaded serves all of
// them. Each sum is one chain over the taps for each vector of channels.
template <typename T, int kHigh, int kTaps, bool kPart>
CONVEXT_INLINE void add_tap_products(Vec<Accumulate<T>>* sum, const T* const* at, int64_t c, int64_t some,
                                     const Accumulate<T>* w, int64_t w_tap) {
  using A = Accumulate<T>;
  Vec<A> factor[kTaps];
#pragma GCC unroll 8
  for (int s = 0; s < kTaps; ++s) factor[s] = load(w + s * w_tap);
#pragma GCC unroll 16
  for (int p = 0; p < kHigh + kTaps - 1; ++p) {
    Vec<A> x = kPart ? load_some(at[p] + c, 0, some) : load(at[p] + c);
    keep(x);
#pragma GCC unroll 8
    for (int s = 0; s < kTaps; ++s)
      if (p - s >= 0 && p - s < kHigh) sum[p - s] += x * factor[s];
  }
}
template <typename T, int kHigh, int kTaps = kDotTaps>
CONVEXT_INLINE void add_row_of_taps(Vec<Accumulate<T>>* sum, const T* const* at, int64_t taps, int64_t channels,
                                    const Accumulate<T>* w, int64_t w_tap) {
  constexpr int kCount = kLanes<Accumulate<T>>;
  for (; taps >= kTaps; taps -= kTaps, at += kTaps, w += kTaps * w_tap) {
    int64_t c = 0;
    for (; c + kCount <= channels; c += kCount) add_tap_products<T, kHigh, kTaps, false>(sum, at, c, 0, w + c, w_tap);
    if (c < channels) add_tap_products<T, kHigh, kTaps, true>(sum, at, c, channels - c, w + c, w_tap);
  }
  if constexpr (kTaps > 1)
    add_row_of_taps<T, kHigh, (kTaps > 4 ? kTaps / 2 : kTaps - 1)>(sum, at, taps, channels, w, w_tap);
}

// The newest places are in use: those to come are asked for.
template <typename T>
CONVEXT_INLINE void ask_for_places(const T* const* at, int high, int64_t channels) {
  for (int j = 0; j < high; ++j)
    for (int64_t c = 0; c < channels; c += 64 / int64_t(sizeof(T)))
      __builtin_prefetch(at[j] + kDotsAhead * channels + c);
}

// kHigh places from column `first` on; vectors that end before `end` are stored whole. start: the bias, repeated.
template <typename T, int kOuts, int kHigh>
void dots_tile(const LanesRow<T>& row, int64_t first, const Accumulate<T>* start, T* y, const T* end) {
  using A = Accumulate<T>;
  constexpr int kCount = kLanes<A>, kSums = kHigh * kOuts, kVectors = (kSums + kCount - 1) / kCount;
  Vec<A> sum[kVectors * kCount];  // [place][k]
#pragma GCC unroll 32
  for (int i = 0; i < kVectors * kCount; ++i) sum[i] = Vec<A>{};
  for (int64_t i = 0; i < row.rows; ++i) {
    if constexpr (kOuts == 1)
      if (row.step == 1 && row.dilation == 1 && row.taps * kShareWork >= row.channels) {
        const T* const* at = row.at[i] + first;
        if (i + 1 == row.rows) ask_for_places(at + row.taps - 1, kHigh, row.channels);
        add_row_of_taps<T, kHigh>(sum, at, row.taps, row.channels, row.w[i], row.w_tap);
        continue;
      }
    for (int64_t s = 0; s < row.taps; ++s) {
      const T* const* at = row.at[i] + first * row.step + s * row.dilation;
      const A* w = row.w[i] + s * row.w_tap;
      const T* from[kHigh];
#pragma GCC unroll 8
      for (int j = 0; j < kHigh; ++j) from[j] = at[j * row.step];
      if (i + 1 == row.rows && s + 1 == row.taps) ask_for_places(from, kHigh, row.channels);
      int64_t c = 0;
      for (; c + kCount <= row.channels; c += kCount, w += kOuts * kCount)
        add_products<T, kOuts, kHigh, false>(sum, from, c, 0, w);
      if (c < row.channels) add_products<T, kOuts, kHigh, true>(sum, from, c, row.channels - c, w);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i, y += kCount) {
    const Vec<A> v = add_lanes<A>(sum + i * kCount, LaneSequence<A>()) + load(start + i * kCount);
    if (y + kCount <= end)
      store(y, v);
    else
      store_rest(y, v, least(kSums - i * kCount, kCount));
  }
}

template <typename T>
using DotsTile = void (*)(const LanesRow<T>&, int64_t, const Accumulate<T>*, T*, const T*);

template <int kOuts>
constexpr int kDotPlaces = kDotSums / kOuts < 8 ? kDotSums / kOuts : 8;

int64_t dot_places(int64_t outs) { return least<int64_t>(8, kDotSums / outs); }

template <typename T, int kOuts>
DotsTile<T> dots_tile_of(bool wide) {
  return wide ? dots_tile<T, kOuts, kDotPlaces<kOuts>> : dots_tile<T, kOuts, 1>;
}

template <typename T>
bool suits_dots(const ConvGeometry& g) {
  return g.layout == Layout::channels_last && g.groups == 1 && g.out_channels <= kMaxDotOuts &&
         g.in_channels >= kLanes<Accumulate<T>> && g.kernel[0] * g.kernel[1] <= kMaxTaps &&
         listed_places(g, 1, least<int64_t>(8, g.output[2])) <= kMaxListed;
}

template <typename A>
int64_t dots_tap(const ConvGeometry& g) {  // packed weights per tap
  return round_up(g.in_channels, kLanes<A>) * g.out_channels;
}

template <typename T>
int64_t dots_workspace(const ConvGeometry& g) {
  using A = Accumulate<T>;
  return (g.taps() * dots_tap<A>(g) + round_up(g.in_channels, kLanes<A>)) * int64_t(sizeof(A));
}

template <typename T>
DirectPlan dots_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  DirectPlan plan;
  plan.columns = g.output[2];
  while (plan.columns > 8 && listed_places(g, 1, plan.columns) > kMaxListed)
    plan.columns = round_up(ceil_div(plan.columns, 2), dot_places(g.out_channels));
  const int64_t row_work = g.output[2] * g.taps() * g.out_channels * ceil_div(g.in_channels, kLanes<A>);
  plan.rows = clamp(ceil_div(kDotsWork, row_work), 1, g.output[1]);
  while (plan.rows > 1 && listed_places(g, plan.rows, plan.columns) > kMaxListed) --plan.rows;
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.depths = g.output[0];
  plan.tasks = g.batch * plan.depths * plan.row_bands;
  plan.packs = 1;
  return plan;
}

// [tap][vector of c][k][lane]; lanes past the last channel are zero; behind them zeros for what shows padding.
template <typename T>
void dots_pack(const ConvArguments& args, const DirectPlan&, int64_t) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  A* to = static_cast<A*>(args.workspace);
  const T* w = static_cast<const T*>(args.weight);
  for (int64_t tap = 0; tap < g.taps(); ++tap)
    for (int64_t c = 0; c < g.in_channels; c += kCount)
      for (int64_t k = 0; k < g.out_channels; ++k)
        for (int64_t i = 0; i < kCount; ++i)
          *to++ = c + i < g.in_channels ? to_accumulate(w[g.weight_offset(k, c + i, tap)]) : A(0);
  for (int64_t c = 0; c < round_up(g.in_channels, kCount); ++c) *to++ = A(0);
}

template <typename T>
void dots_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t p0 = take(task, plan.row_bands) * plan.rows, o = take(task, plan.depths), n = task;
  const int64_t rows = least(plan.rows, g.output[1] - p0), outs = g.out_channels;
  const T* x = static_cast<const T*>(args.input) + g.input_offset(n, 0, 0);
  T* y = static_cast<T*>(args.output) + g.output_offset(n, 0, (o * g.output[1] + p0) * g.output[2]);
  const A* w = static_cast<const A*>(args.workspace);
  const T* zeros = reinterpret_cast<const T*>(w + g.taps() * dots_tap<A>(g));

  const T* listed[kMaxListed];
  A start[kDotSums + 2 * kCount] = {};
  if (args.bias != nullptr)
    for (int64_t i = 0; i < kDotSums; ++i) start[i] = to_accumulate(static_cast<const T*>(args.bias)[i % outs]);
  LanesRow<T> row;
  row.taps = g.kernel[2];
  row.step = g.stride[2];
  row.dilation = g.dilation[2];
  row.channels = g.in_channels;
  row.w_tap = dots_tap<A>(g);
  const int64_t seen_rows = seen(g, kHeight, rows);
  for (int64_t q0 = 0; q0 < g.output[2]; q0 += plan.columns) {
    const int64_t columns = least(plan.columns, g.output[2] - q0);
    const int64_t seen_columns = seen(g, kWidth, columns);
    list_places(listed, zeros, x, g, o, p0, seen_rows, q0, seen_columns);
    const bool wide = columns >= dot_places(outs);
    auto* tile = (outs == 1   ? dots_tile_of<T, 1>
                  : outs == 2 ? dots_tile_of<T, 2>
                  : outs == 3 ? dots_tile_of<T, 3>
                              : dots_tile_of<T, 4>)(wide);
    for (int64_t p = 0; p < rows; ++p) {
      list_rows(row, listed, g, o, p0, p, seen_rows, seen_columns, w, row.taps * row.w_tap);
      T* to = y + (p * g.output[2] + q0) * outs;
      const int64_t high = wide ? dot_places(outs) : 1;
      for (int64_t next = 0; next < columns; next += high) {
        const int64_t q = least(next, columns - high);  // the last may repeat some
        tile(row, q, start, to + q * outs, to + columns * outs);
      }
    }
  }
  finish_block(args, {n, 0, outs, (o * g.output[1] + p0) * g.output[2], g.output[2], rows});
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
