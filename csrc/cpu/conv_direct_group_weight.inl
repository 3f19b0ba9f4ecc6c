// Direct convolution, gradient of the weight for groups of 1, 2 or 4 channels, as many out as in: depthwise and narrow
// groups. Lanes are channels, so several groups share a vector, and every lane works:
//
//   sums[turn][tap][lane] += sum over places of dy[place][lane turned within its group] * x[place at tap][lane]
//
// A task is kTaskVectors vectors of channels and a chunk of taps. Band by band it copies what it needs: of the input a
// padded tile [place][lane], of the output gradient [turn][place][lane]; contiguous planes are transposed on the way.
// Then some taps at a time run over all places of the band (conv_direct_group_weight_tile.inl). Tiles stay in the
// first-level cache, or nearly. Traffic: both operands once per chunk of taps, the input also where bands overlap.
// Limits: a few vectors of channels keep a few threads busy.
#include "conv_direct_group_weight_tile.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kMostTurns = 4;
constexpr int64_t kTaskVectors = CONVEXT_ISA_LEVEL == 3 ? 1 : 2;  // a line of memory
constexpr int64_t kPlacesAhead = 24;                              // channels_last: a place is far from the next
template <typename A>
constexpr int64_t kGroupTile = 64 * 1024 / int64_t(sizeof(A));
template <typename A>
constexpr int64_t kGroupOuts = 96 * 1024 / int64_t(sizeof(A));
template <typename A>
constexpr int64_t kGroupSums = 768 * kLanes<A>;

// `places` places of `channels` <= kLanes channels as vectors, to_step apart. Up to kLanes - 1 more may be written
// behind them: what belongs there must be written later. end: of the tensor.
template <typename T>
void copy_places(const T* from, const T* end, bool channels_last, int64_t step, int64_t channels, int64_t places,
                 Accumulate<T>* to, int64_t to_step) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  if (channels_last) {
    if (channels == kCount)
      for (int64_t m = 0; m < places; ++m, from += step, to += to_step) {
        __builtin_prefetch(from + kPlacesAhead * step);
        store(to, load(from));
      }
    else
      for (int64_t m = 0; m < places; ++m) store(to + m * to_step, load_some(from + m * step, 0, channels));
    return;
  }
  for (int64_t m = 0; m < places; m += kCount)
    if (channels == kCount && end - from >= m + kCount + (kCount - 1) * step)
      turn_square<T>(from + m, step, to + m * to_step, to_step);
    else
      turn_rest<T>(from + m, step, channels, least(places - m, kCount), to + m * to_step, to_step);
}

// Lane l gets lane (l + kTurn) mod kGroup of its group.
template <typename A, int kGroup, int kTurn, int... L>
CONVEXT_INLINE Vec<A> turn_lanes(Vec<A> v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, (L / kGroup * kGroup + (L + kTurn) % kGroup)...);
}

// Behind `places` vectors the same once more for every turn.
template <typename A, int kGroup, int kTurn = 1>
void add_turns(A* outs, int64_t places) {
  if constexpr (kTurn < kGroup && kGroup <= kLanes<A>) {
    A* to = outs + kTurn * places * kLanes<A>;
    for (int64_t i = 0; i < places * kLanes<A>; i += kLanes<A>)
      store(to + i, turn_lanes<A, kGroup, kTurn>(load(outs + i), LaneSequence<A>()));
    add_turns<A, kGroup, kTurn + 1>(outs, places);
  }
}

// Places of a tile of x, at most: where they are loaded less than once for a multiply-add, the second-level cache will
// do.
template <typename A>
int64_t group_places(const ConvGeometry& g) {
  return (slides_over(g) ? kGroupTile<A> : kTileSize<A>) / kLanes<A>;
}

// columns, rows: of a band; taps: of a chunk; plane: the places of one depth of the tile.
template <typename T>
DirectPlan group_weight_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t turns = g.group_inputs(), places = group_places<A>(g);
  const int64_t outs =
      (slides_over(g) ? kGroupOuts<A> / turns : least(kWeightsSize<A>, kGroupOuts<A> / 2 / turns)) / kCount;
  DirectPlan plan;
  plan_taps(plan, g.kernel, least(kMaxTaps, kGroupSums<A> / kCount / kTaskVectors / turns));
  plan.taps[0] = 1;
  plan.tap_blocks[0] = g.kernel[0];
  plan.columns = least(g.output[2], outs);
  while (plan.columns > 1 && seen(g, 2, plan.columns, plan.taps[2]) > places) plan.columns = ceil_div(plan.columns, 2);
  const int64_t wide = seen(g, 2, plan.columns, plan.taps[2]);
  while (plan.taps[1] > 1 && wide * seen(g, 1, 1, plan.taps[1]) * 2 > places) plan.taps[1] = ceil_div(plan.taps[1], 2);
  plan.channels = kTaskVectors * kCount;
  plan.channel_blocks = ceil_div(g.in_channels, plan.channels);
  const int64_t others = plan.channel_blocks * plan.tap_blocks[0] * plan.tap_blocks[2];
  while (plan.taps[1] > kMostSlideRows && others * ceil_div(g.kernel[1], plan.taps[1]) < max_threads())
    plan.taps[1] = ceil_div(plan.taps[1], 2);
  plan.tap_blocks[1] = ceil_div(g.kernel[1], plan.taps[1]);
  plan.rows = 1;
  while (plan.rows < g.output[1] && (plan.rows + 1) * plan.columns <= outs &&
         wide * seen(g, 1, plan.rows + 1, plan.taps[1]) <= places)
    ++plan.rows;
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  plan.columns = ceil_div(g.output[2], plan.column_bands);
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.rows = ceil_div(g.output[1], plan.row_bands);
  plan.depths = g.output[0];
  plan.tasks = plan.channel_blocks * plan.tap_blocks[0] * plan.tap_blocks[1] * plan.tap_blocks[2];
  return plan;
}

template <typename T>
bool suits_group_weight(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const int64_t size = g.group_inputs();
  if (g.group_outputs() != size || size > kMostTurns || size == 3 || size > kLanes<A>) return false;
  if (g.groups == 1 || g.in_channels * 2 <= kLanes<A>) return false;
  const DirectPlan plan = group_weight_plan<T>(g);
  return seen(g, 2, plan.columns, plan.taps[2]) * seen(g, 1, plan.rows, plan.taps[1]) <= group_places<A>(g);
}

// One row of the tile: columns that outputs q .. q + columns see, in zero or other padding, of `channels` channels.
template <typename T>
void fill_group_row(Accumulate<T>* to, const T* row, const T* end, bool channels_last, int64_t step, int64_t place_step,
                    int64_t channels, const AxisView& view, int64_t place, int64_t n) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t before = clamp(-place, 0, n), after = clamp(view.size - place, before, n);
  for (int64_t j = 0; j < n; ++j) {
    if (j == before) {
      copy_places(row + (place + j) * place_step, end, channels_last, step, channels, after - before, to + j * kCount,
                  kCount);
      j = after;
      if (j == n) break;
    }
    const int64_t source = view.source(place + j);
    A lane[kCount] = {};
    if (source >= 0)
      for (int64_t c = 0; c < channels; ++c)
        lane[c] = to_accumulate(row[source * place_step + c * (channels_last ? 1 : step)]);
    store(to + j * kCount, load(lane));
  }
}

template <typename T>
void group_weight_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t s0 = take(task, plan.tap_blocks[2]) * plan.taps[2], r0 = take(task, plan.tap_blocks[1]) * plan.taps[1];
  const int64_t t = take(task, plan.tap_blocks[0]), c0 = task * plan.channels;
  const int64_t wide = least(plan.taps[2], g.kernel[2] - s0), high = least(plan.taps[1], g.kernel[1] - r0);
  const int64_t taps = high * wide, turns = g.group_inputs(),
                vectors = ceil_div(least(plan.channels, g.in_channels - c0), kCount);
  const bool channels_last = g.layout == Layout::channels_last;
  const int64_t x_step = channels_last ? g.in_channels : g.input_places(), x_place = channels_last ? g.in_channels : 1;
  const int64_t dy_step = channels_last ? g.in_channels : g.output_places(), dy_place = x_place;
  const int64_t pitch = seen(g, 2, plan.columns, plan.taps[2]) * kCount;
  AxisView view[kMaxSpatial];
  for (int a = 0; a < kMaxSpatial; ++a) view[a] = forward_view(g, a);

  const T* x_end = static_cast<const T*>(args.input) + g.input_elements();
  const T* dy_end = static_cast<const T*>(args.grad_output) + g.output_elements();

  constexpr int64_t kSpill = kCount * kCount;
  alignas(64) A tile[kGroupTile<A> + kSpill], sums[kGroupSums<A>], outs[kGroupOuts<A> + kSpill];
  int64_t offset[kMaxTaps];
  for (int64_t r = 0, i = 0; r < high; ++r)
    for (int64_t s = 0; s < wide; ++s) offset[i++] = r * g.dilation[1] * pitch + s * g.dilation[2] * kCount;
  for (int64_t i = 0; i < vectors * turns * taps * kCount; ++i) sums[i] = 0;
  const GroupTaps group = {high, wide, slides_over(g) && wide >= kLeastSlide, g.dilation[1] * pitch, offset};

  for (int64_t n = 0; n < g.batch; ++n)
    for (int64_t o = 0; o < g.output[0]; ++o) {
      const int64_t d = g.source(0, o, t);
      if (d < 0) continue;
      for (int64_t p = 0; p < g.output[1]; p += plan.rows)
        for (int64_t q = 0; q < g.output[2]; q += plan.columns) {
          const int64_t rows = least(plan.rows, g.output[1] - p), columns = least(plan.columns, g.output[2] - q);
          const int64_t h0 = g.padded_place(1, p, r0), w0 = g.padded_place(2, q, s0);
          const int64_t seen_rows = seen(g, 1, rows, high), seen_columns = seen(g, 2, columns, wide);
          for (int64_t v = 0; v < vectors; ++v) {
            const int64_t c = c0 + v * kCount, channels = least(kCount, g.in_channels - c);
            const T* x = static_cast<const T*>(args.input) + g.input_offset(n, c, d * g.input[1] * g.input[2]);
            for (int64_t j = 0; j < seen_rows; ++j) {
              const int64_t h = view[1].source(h0 + j);
              if (h < 0)
                for (int64_t i = 0; i < seen_columns; ++i) store(tile + j * pitch + i * kCount, Vec<A>{});
              else
                fill_group_row(tile + j * pitch, x + h * g.input[2] * x_place, x_end, channels_last, x_step, x_place,
                               channels, view[2], w0, seen_columns);
            }
            const T* dy = static_cast<const T*>(args.grad_output) +
                          g.output_offset(n, c, (o * g.output[1] + p) * g.output[2] + q);
            const A* out = outs;
            int64_t out_step = kCount;
            bool in_place = false;  // read once, where it lies
            if constexpr (sizeof(T) == sizeof(A))
              if (channels_last && turns == 1 && group.passes() == 1 && channels == kCount && columns == g.output[2]) {
                in_place = true;
                out = dy;
                out_step = dy_step;
              }
            const int64_t run = columns == g.output[2] ? rows * columns : columns;
            for (int64_t j = 0; j < (in_place ? 0 : rows * columns); j += run)
              copy_places(dy + j / columns * g.output[2] * dy_place, dy_end, channels_last, dy_step, channels, run,
                          outs + j * kCount, kCount);
            if (turns == 2)
              add_turns<A, 2>(outs, rows * columns);
            else if (turns == 4)
              add_turns<A, 4>(outs, rows * columns);
            for (int64_t turn = 0; turn < turns; ++turn)
              add_taps(group, sums + (v * turns + turn) * taps * kCount, tile, g.stride[2] * kCount,
                       g.stride[1] * pitch, out + turn * rows * columns * kCount, out_step, rows, columns);
          }
        }
    }
  T* dw = static_cast<T*>(args.output);
  for (int64_t v = 0; v < vectors; ++v)
    for (int64_t turn = 0; turn < turns; ++turn)
      for (int64_t l = 0; l < least(kCount, g.in_channels - c0 - v * kCount); ++l) {
        const int64_t c = c0 + v * kCount + l, k = c / turns * turns + (c + turn) % turns;
        const auto at = args.gradient_taps(k, c % turns);
        const A* sum = sums + (v * turns + turn) * taps * kCount + l;
        for (int64_t r = 0; r < high; ++r)
          for (int64_t s = 0; s < wide; ++s, sum += kCount)
            dw[at.first + ((t * g.kernel[1] + r0 + r) * g.kernel[2] + s0 + s) * at.step] = from_accumulate<T>(*sum);
      }
}

// Without functions where it does not suit.
template <typename T>
DirectKernel direct_group_weight_kernel(const ConvGeometry& g) {
  if (suits_plane_weight<T>(g)) return {plane_weight_plan<T>, plane_weight_task<T>};
  if (suits_place_weight<T>(g)) return {place_weight_plan<T>, place_weight_task<T>};
  if (!suits_group_weight<T>(g)) return {};
  return {group_weight_plan<T>, group_weight_task<T>};
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
