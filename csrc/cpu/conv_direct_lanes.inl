// Direct convolution, forward, channels_last, where a group has as many input as output channels, a power of two that
// fits a vector: depthwise (one) and narrow groups.
//
//   y[place][c] = bias[c] + sum over taps, i < kGroup of x[place seen][c - c % kGroup + i] * w[tap][i][c]
//
// The register tile is kPlaces output columns of one vector of channels. Per kernel row the weights of up to kMaxRun
// taps sit in registers, and each loaded vector of x serves every output column that sees it (kStep: the stride, 1 or
// 2; 0: any stride and dilation, tap by tap). Where a group is wider than one channel, its i-th is first spread over
// the group's lanes. Places come as pointers, listed per input row once for a task; what shows padding points to zeros,
// so no border is special. Kernel rows that see only zeros are left out.
//
// A task is (image, depth, band of rows, block of channels). Weights are packed [vector of c][tap][i][lane] once per
// call. Tall kernels copy the band to [place][vector of channels] first: far places of a channel block compete for few
// cache sets.
//
// Traffic: the input once from memory, from then on from second-level cache: rows so narrow that all stays in the first
// come in pieces that are too short to be foreseen. 3x3 takes 12 loads and 9 pointers per 21 multiply-adds. Of inputs
// that are far, the place below is asked for while one is computed, and the next tile of y.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kPlaces = 7;  // divides the maps of 224 and what halves them
constexpr int kMaxRun = 7;
constexpr int64_t kMaxListed = 4096;  // places listed by a task
constexpr int64_t kGathered = 128 * 1024 / kVectorBytes;
constexpr int64_t kTall = 9;
constexpr int64_t kLaneChannels = 256;      // channels of a task, at most
constexpr int64_t kFewLanes = 4;            // vectors of them, at least
constexpr int64_t kSeenBytes = 128 * 1024;  // that a row of a task sees: they stay in L2 for the next
constexpr int64_t kFarInput = 4 << 20;      // bytes; of a larger input, what comes next is asked for
constexpr int64_t kFewBands = 16;           // of rows: fewer are rounded up to a power of two
constexpr int64_t kLanesWork = 32 * 1024;   // vector multiply-adds of a task, at least about

// Lane c becomes lane c - c % kGroup + kIndex.
template <typename A, int kGroup, int kIndex, int... kLane>
CONVEXT_INLINE Vec<A> spread(Vec<A> x, std::integer_sequence<int, kLane...>) {
  if constexpr (kGroup == 1) return x;
  return __builtin_shufflevector(x, x, (kLane - kLane % kGroup + kIndex)...);
}

// What the tiles of one output row share.
template <typename T>
struct LanesRow {
  const T* const* at[kMaxTaps];  // per kernel row that is seen: the places of the output row's first column
  const Accumulate<T>* w[kMaxTaps];
  int64_t rows, taps, step, dilation, channels, w_tap, w_vector;  // w_vector: from one vector of channels to the next
  int64_t ahead = 0;  // far inputs: how far behind the last kernel row is what the next output row sees first
  const Finish<Accumulate<T>>* finish = nullptr;
};

// sum[q] += a run of kRun taps, channel kIndex of each group. at: the places that the tile's first column sees.
template <typename T, int kHigh, int kStep, int kRun, int kGroup, bool kPart, int kIndex>
CONVEXT_INLINE void add_run(Vec<Accumulate<T>> (&sum)[kHigh], const T* const* at, int64_t step, int64_t c,
                            const Accumulate<T>* w, int64_t w_tap, int64_t some) {
  using A = Accumulate<T>;
  Vec<A> factor[kRun];
#pragma GCC unroll 8
  for (int s = 0; s < kRun; ++s) factor[s] = load(w + s * w_tap + kIndex * kLanes<A>);
  constexpr int kApart = kStep == 0 ? 1 : kStep, kLoads = (kHigh - 1) * kApart + kRun;
#pragma GCC unroll 32
  for (int j = 0; j < kLoads; ++j) {
    if (kStep > kRun && j % kStep >= kRun) continue;
    const T* from = at[kStep == 0 ? j * step : j] + c;
    Vec<A> x = spread<A, kGroup, kIndex>(kPart ? load_some(from, 0, some) : load(from), LaneSequence<A>());
    keep(x);
#pragma GCC unroll 8
    for (int q = 0; q < kHigh; ++q) {
      const int s = j - q * kApart;
      if (s >= 0 && s < kRun) sum[q] += x * factor[s];
    }
  }
}

template <typename T, int kHigh, int kStep, int kRun, int kGroup, bool kPart, int... kIndex>
CONVEXT_INLINE void add_runs(Vec<Accumulate<T>> (&sum)[kHigh], const LanesRow<T>& row, const T* const* at, int64_t c,
                             const Accumulate<T>* w, int64_t some, std::integer_sequence<int, kIndex...>) {
  (add_run<T, kHigh, kStep, kRun, kGroup, kPart, kIndex>(sum, at, row.step, c, w, row.w_tap, some), ...);
}

// kHigh columns from `first` on, all channels of the task. y: at the first column; y_place: from place to place.
template <typename T, int kHigh, int kStep, int kRun, int kGroup, bool kPart>
void lanes_tile(const LanesRow<T>& row, int64_t first, const Accumulate<T>* start, T* y, int64_t y_place) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t some = row.channels;  // of a vector, kPart
  const int64_t runs = ceil_div(row.taps, kMaxRun), short_run = row.taps / runs, longer = row.taps % runs;
  for (int64_t next = 0; next < row.channels; next += kCount) {
    const int64_t c = greatest<int64_t>(0, least(next, row.channels - kCount));  // the last may repeat some
    Vec<A> sum[kHigh];
#pragma GCC unroll 8
    for (int q = 0; q < kHigh; ++q) sum[q] = load(start + c);
    if constexpr (kHigh > 1 && kStep > 0)
      if (row.ahead != 0 && row.rows > 0 && next % (64 / int64_t(sizeof(T))) == 0) {
        const T* const* at = row.at[row.rows - 1] + first * row.step;
#pragma GCC unroll 16
        for (int j = 0; j < kHigh * kStep; ++j) {
          __builtin_prefetch(at[j] + c + row.ahead);
          if (kStep > 1) __builtin_prefetch(at[j] + c + row.ahead / 2);
        }
#pragma GCC unroll 8
        for (int q = 0; q < kHigh; ++q) __builtin_prefetch(y + (kHigh + q) * y_place + c, 1);
      }
    for (int64_t i = 0; i < row.rows; ++i) {
      const T* const* at = row.at[i] + first * row.step;
      const A* w = row.w[i] + next / kCount * row.w_vector;
      constexpr auto kIndices = std::make_integer_sequence<int, kGroup>();
      if constexpr (kStep == 0) {
        for (int64_t s = 0; s < row.taps; ++s, at += row.dilation, w += row.w_tap)
          add_runs<T, kHigh, 0, 1, kGroup, kPart>(sum, row, at, c, w, some, kIndices);
      } else if constexpr (kRun > 0) {
        add_runs<T, kHigh, kStep, kRun, kGroup, kPart>(sum, row, at, c, w, some, kIndices);
      } else {
        for (int64_t j = 0; j < runs; ++j) {
          const int64_t run = short_run + (j < longer ? 1 : 0);
          switch (run) {
#define CONVEXT_RUN(n) \
  case n: add_runs<T, kHigh, kStep, n, kGroup, kPart>(sum, row, at, c, w, some, kIndices); break
            CONVEXT_RUN(4);
            CONVEXT_RUN(5);
            CONVEXT_RUN(6);
            CONVEXT_RUN(7);
#undef CONVEXT_RUN
          }
          at += run;
          w += run * row.w_tap;
        }
      }
    }
    if constexpr (sizeof(T) == sizeof(A))
      if (row.finish != nullptr) {
        const Ends<A> ends(*row.finish);
        const bool only_clamps = ends.only_clamps();
#pragma GCC unroll 8
        for (int q = 0; only_clamps && q < kHigh; ++q) sum[q] = ends.clamped(sum[q]);
#pragma GCC unroll 8
        for (int q = 0; !only_clamps && q < kHigh; ++q)
          sum[q] = ends(sum[q], y + q * y_place + c, kPart ? some : kCount);
      }
#pragma GCC unroll 8
    for (int q = 0; q < kHigh; ++q) {
      T* to = y + q * y_place + c;
      if (kPart)
        store_rest(to, sum[q], some);
      else
        store(to, sum[q]);
    }
  }
}

template <typename T>
using LanesTile = void (*)(const LanesRow<T>&, int64_t, const Accumulate<T>*, T*, int64_t);

// Tiles of kPlaces columns, or of one where a row is narrower. Groups are unrolled for 3 taps only.
template <typename T, int kGroup, bool kPart>
LanesTile<T> lanes_tile_of(bool wide, int64_t step, int64_t dilation, int64_t taps) {
  if (!wide) return lanes_tile<T, 1, 0, 1, kGroup, kPart>;
  if (dilation == 1 && taps == 3) {
    if (step == 1) return lanes_tile<T, kPlaces, 1, 3, kGroup, kPart>;
    if (step == 2) return lanes_tile<T, kPlaces, 2, 3, kGroup, kPart>;
  }
  if constexpr (kGroup == 1)
    if (dilation == 1 && taps > 3) {
      if (step == 1 && taps == 5) return lanes_tile<T, kPlaces, 1, 5, 1, kPart>;
      if (step == 1) return lanes_tile<T, kPlaces, 1, 0, 1, kPart>;
      if (step == 2) return lanes_tile<T, kPlaces, 2, 0, 1, kPart>;
    }
  return lanes_tile<T, kPlaces, 0, 1, kGroup, kPart>;
}
template <typename T, bool kPart>
LanesTile<T> lanes_tile_of(int64_t group, bool wide, int64_t step, int64_t dilation, int64_t taps) {
  return group == 1   ? lanes_tile_of<T, 1, kPart>(wide, step, dilation, taps)
         : group == 2 ? lanes_tile_of<T, 2, kPart>(wide, step, dilation, taps)
                      : lanes_tile_of<T, 4, kPart>(wide, step, dilation, taps);
}

// Places listed for a band.
int64_t listed_places(const ConvGeometry& g, int64_t rows, int64_t columns) {
  return g.kernel[0] * seen(g, kHeight, rows) * seen(g, kWidth, columns);
}

// Lists the places that output (o, p, q) and those behind it see, [t][row][column]; x: the image's first place.
template <typename T>
void list_places(const T** listed, const T* zeros, const T* x, const ConvGeometry& g, int64_t o, int64_t p,
                 int64_t seen_rows, int64_t q, int64_t seen_columns) {
  const AxisView view_h = forward_view(g, 1), view_w = forward_view(g, 2);
  const int64_t first = q * g.stride[2] - g.pad_before[2];
  const int64_t begin = clamp(-first, 0, seen_columns),
                end = clamp(view_w.size - first, begin, seen_columns);  // inside
  for (int64_t t = 0; t < g.kernel[0]; ++t) {
    const int64_t d = g.source(0, o, t);
    for (int64_t i = 0; i < seen_rows; ++i, listed += seen_columns) {
      const int64_t h = view_h.source(p * g.stride[1] - g.pad_before[1] + i);
      const bool inside = d >= 0 && h >= 0;
      const T* row = x + (inside ? (d * g.input[1] + h) * g.input[2] * g.in_channels : 0);
      const int64_t step = inside ? g.in_channels : 0;
      const T* place = inside ? row + (first + begin) * step : zeros;
      for (int64_t j = begin; j < end; ++j, place += step) listed[j] = place;
      for (int64_t j = 0; j < seen_columns; ++j) {
        if (j == begin) j = end;
        if (j >= seen_columns) break;
        const int64_t w = view_w.source(first + j);
        listed[j] = !inside || w < 0 ? zeros : row + w * g.in_channels;
      }
    }
  }
}

// The kernel rows that output row (o, p + i) sees, from places listed for p on; w: of the first, w_row: from row to
// row.
template <typename T>
void list_rows(LanesRow<T>& row, const T* const* listed, const ConvGeometry& g, int64_t o, int64_t p, int64_t i,
               int64_t seen_rows, int64_t seen_columns, const Accumulate<T>* w, int64_t w_row) {
  row.rows = 0;
  for (int64_t t = 0; t < g.kernel[0]; ++t)
    for (int64_t r = 0; r < g.kernel[1]; ++r, w += w_row) {
      if (g.source(0, o, t) < 0 || g.source(1, p + i, r) < 0) continue;
      row.at[row.rows] = listed + (t * seen_rows + i * g.stride[1] + r * g.dilation[1]) * seen_columns;
      row.w[row.rows++] = w;
    }
}

template <typename T>
bool suits_lanes(const ConvGeometry& g) {
  const int64_t group = g.group_inputs();
  return g.layout == Layout::channels_last && group == g.group_outputs() && (group == 1 || group == 2 || group == 4) &&
         g.groups > 1 && g.kernel[0] * g.kernel[1] <= kMaxTaps && group <= kLanes<Accumulate<T>> &&
         listed_places(g, 1, least<int64_t>(kPlaces, g.output[2])) <= kMaxListed;
}

// Tall kernels gather the places of a vector of channels first: far apart they would compete for few cache sets.
bool gathers(const ConvGeometry& g) { return g.kernel[1] >= kTall; }

template <typename T>
int64_t lanes_workspace(const ConvGeometry& g) {
  using A = Accumulate<T>;
  return round_up(g.out_channels, kLanes<A>) * g.group_inputs() * g.taps() * int64_t(sizeof(A));
}

// Channels of a block, where there are so many blocks.
template <typename T>
int64_t lane_block(const ConvGeometry& g, int64_t blocks) {
  return round_up(ceil_div(g.out_channels, blocks), kLanes<Accumulate<T>>);
}

// Whether what a row of a task sees is still in second-level cache for the next row.
template <typename T>
bool stays_near(const ConvGeometry& g, const DirectPlan& plan) {
  return seen(g, kWidth, plan.columns) * g.kernel[1] * plan.channels * int64_t(sizeof(T)) <= kSeenBytes;
}

template <typename T>
DirectPlan lanes_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  DirectPlan plan;
  plan.columns = g.output[2];
  while (plan.columns > kPlaces && listed_places(g, 1, plan.columns) > kMaxListed)
    plan.columns = round_up(ceil_div(plan.columns, 2), kPlaces);
  plan.channels = lane_block<T>(g, ceil_div(g.out_channels, kLaneChannels));
  if (gathers(g)) {
    plan.channels = kLanes<A>;
  } else {
    while (!stays_near<T>(g, plan) && plan.columns > 2 * kPlaces)
      plan.columns = round_up(ceil_div(plan.columns, 2), kPlaces);
    for (int64_t i = 2; !stays_near<T>(g, plan) && plan.channels > kFewLanes * kLanes<A>; ++i)
      plan.channels = lane_block<T>(g, i);
  }
  plan.channel_blocks = greatest<int64_t>(1, g.out_channels / plan.channels);  // the last takes what is left
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  const int64_t row_work = g.output[2] * g.taps() * g.group_inputs() * ceil_div(plan.channels, kLanes<A>);
  plan.rows = clamp(ceil_div(gathers(g) ? 24 * kLanesWork : kLanesWork, row_work), 1, g.output[1]);
  while (plan.rows > 1 && listed_places(g, plan.rows, plan.columns) > kMaxListed) --plan.rows;
  // Few bands are a power of two of them: threads, which are mostly one, too, get as many each.
  int64_t bands = ceil_div(g.output[1], plan.rows), even = 1;
  while (even < bands) even *= 2;
  if (bands < kFewBands) bands = even;
  plan.rows = ceil_div(g.output[1], bands);
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.depths = g.output[0];
  plan.tasks = g.batch * plan.depths * plan.row_bands * plan.channel_blocks;
  plan.packs = ceil_div(g.out_channels, kLanes<A>);
  return plan;
}

// The weights of one vector of channels to [tap][i][lane]. The last vector starts early rather than end late, if it
// can.
template <typename T>
void lanes_pack(const ConvArguments& args, const DirectPlan&, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t c = greatest<int64_t>(0, least(task * kCount, g.out_channels - kCount));
  const int64_t taps = g.taps(), group = g.group_inputs(), pairs = group * taps;
  const T* w = static_cast<const T*>(args.weight) + c * pairs;
  A* to = static_cast<A*>(args.workspace) + task * kCount * pairs;
  for (int64_t j = 0; j < pairs; j += kCount) {
    const int64_t wide = least(kCount, pairs - j);
    Vec<A> v[kCount];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kCount; ++i)
      v[i] = c + i >= g.out_channels ? Vec<A>{}
             : wide == kCount        ? load(w + i * pairs + j)
                                     : load_some(w + i * pairs + j, 0, wide);
    transpose_lanes<A>(v);
    for (int64_t i = 0; i < wide; ++i)
      store(to + (g.weight_tap((j + i) % taps) * group + (j + i) / taps) * kCount, v[i]);
  }
}

// Copies listed places together, one vector of channels each, as far as there is room.
template <typename T>
void gather_places(const T** listed, int64_t count, const T* zeros, T* gathered) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  for (int64_t i = 0, used = 0; i < count && used < kGathered; ++i) {
    if (listed[i] == zeros) continue;
    T* to = gathered + used++ * kCount;
    store(to, load(listed[i]));
    listed[i] = to;
  }
}

template <typename T>
void lanes_band(const ConvArguments& args, const DirectPlan& plan, int64_t task, T* gathered) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t p0 = take(task, plan.row_bands) * plan.rows, o = take(task, plan.depths);
  const int64_t c0 = take(task, plan.channel_blocks) * plan.channels, n = task, group = g.group_inputs();
  const int64_t rows = least(plan.rows, g.output[1] - p0);
  const int64_t channels = c0 + 2 * plan.channels > g.out_channels ? g.out_channels - c0 : plan.channels;
  const T* x = static_cast<const T*>(args.input) + g.input_offset(n, c0, 0);
  T* y = static_cast<T*>(args.output) + g.output_offset(n, c0, (o * g.output[1] + p0) * g.output[2]);
  const A* w = static_cast<const A*>(args.workspace) + c0 * group * g.taps();

  const T* listed[kMaxListed];
  const T zeros[2 * kLaneChannels] = {};
  alignas(64) A start[2 * kLaneChannels] = {};
  if (args.bias != nullptr)
    for (int64_t c = 0; c < channels; ++c) start[c] = to_accumulate(static_cast<const T*>(args.bias)[c0 + c]);
  const bool part = channels < kLanes<A>, gather = gathers(g) && !part;
  LanesRow<T> row;
  row.taps = g.kernel[2];
  row.step = g.stride[2];
  row.dilation = g.dilation[2];
  row.channels = gather ? kLanes<A> : channels;
  row.w_tap = group * kLanes<A>;
  row.w_vector = row.w_tap * g.taps();
  const int64_t seen_rows = seen(g, kHeight, rows);
  if (!gather && g.batch * g.in_channels * g.input_places() * int64_t(sizeof(T)) > kFarInput)
    row.ahead = g.stride[1] * g.input[2] * g.in_channels;
  Finish<A> finish;
  if (finish_in_registers<T>(args, &finish)) row.finish = &finish;

  for (int64_t q0 = 0; q0 < g.output[2]; q0 += plan.columns) {
    const int64_t columns = least(plan.columns, g.output[2] - q0);
    const int64_t seen_columns = seen(g, kWidth, columns);
    const bool wide = columns >= kPlaces;
    auto* tile =
        (part ? lanes_tile_of<T, true> : lanes_tile_of<T, false>)(group, wide, row.step, row.dilation, row.taps);
    for (int64_t next = 0; next < channels; next += row.channels) {
      const int64_t c = least(next, channels - row.channels);  // the last may repeat some
      list_places(listed, zeros, x + c, g, o, p0, seen_rows, q0, seen_columns);
      if (gather) gather_places<T>(listed, g.kernel[0] * seen_rows * seen_columns, zeros, gathered);
      for (int64_t p = 0; p < rows; ++p) {
        list_rows(row, listed, g, o, p0, p, seen_rows, seen_columns, w + next / kLanes<A> * row.w_vector,
                  row.taps * row.w_tap);
        T* to = y + (p * g.output[2] + q0) * g.out_channels + c;
        for (int64_t j = 0; j < columns; j += wide ? kPlaces : 1) {
          const int64_t q = wide ? least(j, columns - kPlaces) : j;
          tile(row, q, start + c, to + q * g.out_channels, g.out_channels);
        }
      }
    }
  }
  if (row.finish == nullptr)
    finish_block(args, {n, c0, channels, (o * g.output[1] + p0) * g.output[2], g.output[2], rows});
}

template <typename T>
void lanes_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  if (gathers(args.geometry)) {
    alignas(64) T gathered[kGathered * kLanes<Accumulate<T>>];
    lanes_band(args, plan, task, gathered);
  } else {
    lanes_band<T>(args, plan, task, nullptr);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
