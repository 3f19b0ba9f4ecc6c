// Direct convolution, forward, channels_last, for few input channels: first layers.
//
//   y[place][k] = bias[k] + sum over i = (t r s c) of x[place stride + offset(i)] * w[i][k]
//
// Vectors run over output channels, as they lie in memory: a register tile is kOutPlaces places x kOutVectors vectors
// (kLonePlaces x 1 where one vector is all there is), an outer product of broadcast inputs with packed weights: 8 loads
// per 12 multiply-adds with AVX2, 10 per 24 with AVX-512. Places are numbered through the rows of a band, so no width
// is special.
//
// A task is (image, group, depth, band of rows and columns). It copies what the band sees into a tile
// [t][row][column][c] with its padding, then runs through its places once per block of vectors, the last block first: a
// vector that reaches past the last channel writes to the next place, which is written again. Weights are packed
// [block][i][k] once per call.
//
// Traffic: the input once per band, the output once, weights from first-level cache.
// Limits: what is summed over has at most kMaxSummed terms, and a few columns of it fit the tile.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kOutPlaces = 6, kLonePlaces = 8;
constexpr int kOutVectors = CONVEXT_ISA_LEVEL == 3 ? 4 : 2;
constexpr int64_t kMaxSummed = 1024;
constexpr int64_t kMaxPlaces = 2048;       // of a band
constexpr int64_t kOutsWork = 128 * 1024;  // vector multiply-adds of a task, about

// Where a tile's sums go: `count` places from y on, `place` elements apart; `channels` are left of its vectors. Vectors
// that end before `end` are stored whole.
template <typename T>
struct OutsTo {
  T* y;
  int64_t place, channels;
  const T* end;
  const Finish<Accumulate<T>>* finish;
};

template <typename T, int kHigh, int kVectors>
void outs_tile(const Accumulate<T>* tile, const int64_t* place, const int64_t* offset, int64_t summed,
               const Accumulate<T>* w, const Accumulate<T>* start, const OutsTo<T>& to) {
  using A = Accumulate<T>;
  constexpr int kCount = kLanes<A>;
  Vec<A> sum[kHigh][kVectors];
  const A* from[kHigh];
#pragma GCC unroll 8
  for (int i = 0; i < kHigh; ++i) {
    from[i] = tile + place[i];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = load(start + v * kCount);
  }
  for (int64_t j = 0; j < summed; ++j, w += kVectors * kCount) {
    const int64_t at = offset[j];
    Vec<A> factor[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) factor[v] = load(w + v * kCount);
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i) {
      const Vec<A> value = splat<A>(from[i][at]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] += value * factor[v];
    }
  }
  if constexpr (sizeof(T) == sizeof(A))
    if (to.finish != nullptr) {
      const Ends<A> ends(*to.finish);
      const bool only_clamps = ends.only_clamps();
#pragma GCC unroll 8
      for (int i = 0; only_clamps && i < kHigh; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[i][v] = ends.clamped(sum[i][v]);
#pragma GCC unroll 8
      for (int i = 0; !only_clamps && i < kHigh; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const T* y = to.y + i * to.place + v * kCount;
          const bool whole = (v + 1) * kCount <= to.channels || y + kCount <= to.end;
          sum[i][v] = ends(sum[i][v], y, whole ? kCount : clamp(to.channels - v * kCount, 0, kCount));
        }
    }
#pragma GCC unroll 8
  for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* y = to.y + i * to.place + v * kCount;
      if ((v + 1) * kCount <= to.channels || y + kCount <= to.end)
        store(y, sum[i][v]);
      else
        store_rest(y, sum[i][v], clamp(to.channels - v * kCount, 0, kCount));
    }
}

template <typename T>
using OutsTile = void (*)(const Accumulate<T>*, const int64_t*, const int64_t*, int64_t, const Accumulate<T>*,
                          const Accumulate<T>*, const OutsTo<T>&);

template <typename T, int kHigh, int kVectors = kOutVectors>
OutsTile<T> outs_tile_of(int64_t vectors) {
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return outs_tile_of<T, kHigh, kVectors - 1>(vectors);
  return outs_tile<T, kHigh, kVectors>;
}

int64_t outs_tile_elements(const ConvGeometry& g, int64_t rows, int64_t columns) {
  return g.kernel[0] * seen(g, kHeight, rows) * seen(g, kWidth, columns) * g.group_inputs();
}

template <typename T>
bool suits_outs(const ConvGeometry& g) {
  using A = Accumulate<T>;
  return g.layout == Layout::channels_last && g.group_outputs() * 2 > kLanes<A> &&
         g.group_inputs() * g.taps() <= kMaxSummed &&
         outs_tile_elements(g, 1, least<int64_t>(g.output[2], 4 * kOutPlaces)) <= kTileSize<A>;
}

template <typename A>
int64_t outs_vectors(const ConvGeometry& g) {
  return ceil_div(g.group_outputs(), kLanes<A>);
}

template <typename T>
int64_t outs_workspace(const ConvGeometry& g) {
  using A = Accumulate<T>;
  return g.groups * outs_vectors<A>(g) * kLanes<A> * (g.group_inputs() * g.taps() + 1) * int64_t(sizeof(A));
}

template <typename T>
DirectPlan outs_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  DirectPlan plan;
  plan.columns = g.output[2];
  while (outs_tile_elements(g, 1, plan.columns) > kTileSize<A> || plan.columns > kMaxPlaces)
    plan.columns = round_up(ceil_div(plan.columns, 2), kOutPlaces);
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  const int64_t summed = g.group_inputs() * g.taps();
  plan.rows = clamp(ceil_div(kOutsWork, plan.columns * summed * outs_vectors<A>(g)), 1, g.output[1]);
  if (plan.column_bands > 1) plan.rows = 1;
  plan.rows = least(plan.rows, kMaxPlaces / plan.columns);
  while (plan.rows > 1 && outs_tile_elements(g, plan.rows, plan.columns) > kTileSize<A>) --plan.rows;
  plan.rows = ceil_div(g.output[1], ceil_div(g.output[1], plan.rows));
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.depths = g.output[0];
  plan.tasks = g.batch * g.groups * plan.depths * plan.row_bands * plan.column_bands;
  plan.packs = g.groups * ceil_div(outs_vectors<A>(g), kOutVectors);
  return plan;
}

// One block of a group: [i][k] for i = (t r s c), behind it the bias; channels from the last on zero.
template <typename T>
void outs_pack(const ConvArguments& args, const DirectPlan&, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t vectors = outs_vectors<A>(g), inputs = g.group_inputs(), taps = g.taps(), summed = inputs * taps;
  const int64_t v = take(task, ceil_div(vectors, kOutVectors)) * kOutVectors, group = task;
  const int64_t lanes = least<int64_t>(kOutVectors, vectors - v) * kCount;
  const int64_t k0 = group * g.group_outputs() + v * kCount, outs = least(lanes, g.group_outputs() - v * kCount);
  A* to = static_cast<A*>(args.workspace) + (group * vectors + v) * kCount * (summed + 1);
  const T* bias = static_cast<const T*>(args.bias);
  for (int64_t k = 0; k < lanes; ++k) {
    const T* w = static_cast<const T*>(args.weight) + (k0 + k) * summed;
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t tap = 0; tap < taps; ++tap)
        to[(g.weight_tap(tap) * inputs + c) * lanes + k] = k < outs ? to_accumulate(w[c * taps + tap]) : A(0);
    to[summed * lanes + k] = k < outs && bias != nullptr ? to_accumulate(bias[k0 + k]) : A(0);
  }
}

// `places` places of `channels` channels each, `from_place` elements apart, to a run of accumulators.
template <typename T>
CONVEXT_INLINE void copy_places(Accumulate<T>* to, const T* from, int64_t places, int64_t channels,
                                int64_t from_place) {
  using A = Accumulate<T>;
  if (channels != from_place) {
    for (int64_t j = 0; j < places; ++j, from += from_place)
      for (int64_t c = 0; c < channels; ++c) *to++ = to_accumulate(from[c]);
    return;
  }
  const int64_t count = places * channels;
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_accumulate(from[i]);
}

// What the outputs from (o, p, q) on see: [t][row][column][c]. x: the image's first place, first channel of the group.
template <typename T>
void fill_outs_tile(Accumulate<T>* tile, const ConvGeometry& g, const T* x, int64_t o, int64_t p, int64_t q,
                    int64_t rows, int64_t columns) {
  using A = Accumulate<T>;
  const AxisView view_h = forward_view(g, 1), view_w = forward_view(g, 2);
  const int64_t channels = g.group_inputs(), place = g.in_channels;
  const int64_t first = q * g.stride[2] - g.pad_before[2], shown = seen(g, kWidth, columns);
  const int64_t begin = clamp(-first, 0, shown), end = clamp(view_w.size - first, begin, shown);  // inside
  for (int64_t t = 0; t < g.kernel[0]; ++t) {
    const int64_t d = g.source(0, o, t);
    for (int64_t i = 0; i < seen(g, kHeight, rows); ++i, tile += shown * channels) {
      const int64_t h = view_h.source(p * g.stride[1] - g.pad_before[1] + i);
      const bool inside = d >= 0 && h >= 0;
      const T* row = x + (inside ? (d * g.input[1] + h) * g.input[2] * place : 0);
      if (inside) copy_places(tile + begin * channels, row + (first + begin) * place, end - begin, channels, place);
      for (int64_t j = 0; j < shown; ++j) {
        if (inside && j == begin) j = end;
        if (j >= shown) break;
        const int64_t w = inside ? view_w.source(first + j) : -1;
        for (int64_t c = 0; c < channels; ++c)
          tile[j * channels + c] = w < 0 ? A(0) : to_accumulate(row[w * place + c]);
      }
    }
  }
}

template <typename T>
void outs_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t q = take(task, plan.column_bands) * plan.columns, p = take(task, plan.row_bands) * plan.rows;
  const int64_t o = take(task, plan.depths), group = take(task, g.groups), n = task;
  const int64_t columns = least(plan.columns, g.output[2] - q), rows = least(plan.rows, g.output[1] - p);
  const int64_t inputs = g.group_inputs(), outs = g.group_outputs(), summed = inputs * g.taps();

  alignas(64) A tile[kTileSize<A>];
  fill_outs_tile(tile, g, static_cast<const T*>(args.input) + g.input_offset(n, group * inputs, 0), o, p, q, rows,
                 columns);
  int64_t offset[kMaxSummed];
  const int64_t pitch = seen(g, kWidth, columns) * inputs, plane = seen(g, kHeight, rows) * pitch;
  int64_t count = 0;
  for (int64_t t = 0; t < g.kernel[0]; ++t)
    for (int64_t r = 0; r < g.kernel[1]; ++r)
      for (int64_t s = 0; s < g.kernel[2]; ++s)
        for (int64_t c = 0; c < inputs; ++c)
          offset[count++] = t * plane + r * g.dilation[1] * pitch + s * g.dilation[2] * inputs + c;

  const int64_t places = rows * columns;
  int64_t place[kMaxPlaces];  // where in the tile each place of the band begins
  for (int64_t i = 0, j = 0; i < rows; ++i)
    for (int64_t l = 0; l < columns; ++l) place[j++] = i * g.stride[1] * pitch + l * g.stride[2] * inputs;
  const int64_t at = (o * g.output[1] + p) * g.output[2] + q;
  T* y = static_cast<T*>(args.output) + g.output_offset(n, group * outs, at);
  const T* end = g.groups == 1 ? y + places * g.out_channels : y;
  const int64_t vectors = outs_vectors<A>(g);
  Finish<A> finish;
  const bool in_registers = finish_in_registers<T>(args, &finish);
  const A* packed = static_cast<const A*>(args.workspace) + group * vectors * kCount * (summed + 1);
  for (int64_t v = (vectors - 1) / kOutVectors * kOutVectors; v >= 0; v -= kOutVectors) {
    const int64_t wide = least<int64_t>(kOutVectors, vectors - v);
    const A *w = packed + v * kCount * (summed + 1), *start = w + summed * wide * kCount;
    const int64_t wished = wide == 1 ? kLonePlaces : kOutPlaces, high = places < wished ? 1 : wished;
    auto* run = high == 1   ? outs_tile_of<T, 1>(wide)
                : wide == 1 ? outs_tile<T, kLonePlaces, 1>
                            : outs_tile_of<T, kOutPlaces>(wide);
    for (int64_t next = 0; next < places; next += high) {
      const int64_t i = least(next, places - high);  // the last tile may repeat some
      run(tile, place + i, offset, summed, w, start,
          {y + i * g.out_channels + v * kCount, g.out_channels, outs - v * kCount, end,
           in_registers ? &finish : nullptr});
    }
  }
  if (!in_registers) finish_block(args, {n, group * outs, outs, at, columns, rows});
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
