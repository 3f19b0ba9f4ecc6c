// Maxima over contiguous boxes: see pool_direct_boxes.cpp. Of a column the first greatest and the last NaN take the
// lead, with the number of their row; of the columns of a window the same, in row-major order.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// value[i], number[i]: the greatest of column i over the rows of a box, and which of them it is in. Notes whether there
// was a NaN.
template <int kVectors, typename T>
CONVEXT_INLINE void max_box_columns(const PoolGeometry& g, const T* x, Range ds, Range hs, int64_t n,
                                    Accumulate<T>* value, Index<Accumulate<T>>* number, bool* nan) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> best[kVectors];
  IndexVec<A> winner[kVectors], at = {};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) best[v] = splat<A>(lowest<A>()), winner[v] = at;
  for (int64_t d = ds.first; d < ds.last; ++d) {
    const T* row = x + (d * g.input[1] + hs.first) * g.input[2];
    for (int64_t h = hs.first; h < hs.last; ++h, row += g.input[2], at = at + 1)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec<A> next = v + 1 < kVectors ? load(row + v * kL) : load_first(row + v * kL, n);
        const auto lead = takes_lead<A>(next, best[v]);
        best[v] = choose(lead, next, best[v]);
        winner[v] = choose(lead, at, winner[v]);
      }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    *nan |= any(is_nan(best[v]));
    store(value + v * kL, best[v]);
    store_index<A>(number + v * kL, winner[v]);
  }
}

// The leader of a window so far: none while column < 0.
template <typename A>
struct Leader {
  A value;
  Index<A> row;
  int64_t column;
};

// The leader of columns [first, last), none of them NaN, without a branch on what they hold: their greatest value, and
// of the columns that have it the one in the first row, and of these the first. More than kPoolRow columns there never
// are, so row * kPoolRow + column tells places apart.
template <typename A>
CONVEXT_INLINE Leader<A> lead_columns(const A* value, const Index<A>* number, int64_t first, int64_t last,
                                      int64_t column) {
  constexpr int64_t kL = kLanes<A>;
  constexpr Index<A> kFar = sizeof(A) == 4 ? Index<A>(INT32_MAX) : Index<A>(INT64_MAX);
  A top;
  Index<A> place = kFar;
  if (last - first < kL) {
    top = value[first];
    for (int64_t i = first + 1; i < last; ++i) top = value[i] > top ? value[i] : top;
    for (int64_t i = first; i < last; ++i) {
      const Index<A> here = number[i] * Index<A>(kPoolRow) + Index<A>(i);
      const bool nearer = (value[i] == top) & (here < place);
      place = nearer ? here : place;
    }
  } else {
    Vec<A> best = load(value + first);
    for (int64_t i = first + kL; i < last; i += kL) best = greater_or_first(best, load(value + least(i, last - kL)));
    top = greatest_lane<A>(best);
    const Vec<A> wanted = splat<A>(top);
    IndexVec<A> nearest = splat_index<A>(kFar);
    for (int64_t i = first; i < last; i += kL) {
      const int64_t j = least(i, last - kL);
      const IndexVec<A> here = load_index<A>(number + j) * Index<A>(kPoolRow) + (splat_index<A>(j) + lane_numbers<A>());
      // neither is greater: they are equal
      const IndexVec<A> far = splat_index<A>(kFar), candidate = choose(greater(wanted, load(value + j)), far, here);
      nearest = choose(less(candidate, nearest), candidate, nearest);
    }
    place = least_lane<A>(nearest);
  }
  const int64_t winner = place % kPoolRow;
  return {value[winner], Index<A>(place / kPoolRow), column + winner};
}

// Windows without NaN of `narrow` to twice as many columns: the leader of every `narrow` columns in a row, by doubling,
// and of two such runs, which may overlap, that of a window. Joined are values and places as in lead_columns; `place`
// takes the place of number. Widths up to kDoubled: more and the columns of a window are few beside its steps.
constexpr int64_t kDoubled = 24;
template <typename A>
CONVEXT_INLINE void lead_runs(A* value, Index<A>* place, int64_t count, int64_t narrow) {
  constexpr int64_t kL = kLanes<A>;
  for (int64_t i = 0; i < count; i += kL)
    store_index<A>(place + i, load_index<A>(place + i) * Index<A>(kPoolRow) + (splat_index<A>(i) + lane_numbers<A>()));
  for (int64_t width = 1; width < narrow;) {
    const int64_t step = least(width, narrow - width);
    width += step;
    for (int64_t i = 0; i <= count - width; i += kL) {
      const Vec<A> a = load(value + i), b = load(value + i + step);
      const IndexVec<A> at = load_index<A>(place + i), next = load_index<A>(place + i + step);
      const IndexVec<A> first = choose(less(next, at), next, at);
      // the greater's place; of equal ones the nearer
      store_index<A>(place + i, choose(greater(b, a), next, choose(greater(a, b), at, first)));
      store(value + i, greater_or_first(a, b));
    }
  }
}
template <typename A>
CONVEXT_INLINE Index<A> lead_window(const A* value, const Index<A>* place, int64_t first, int64_t last,
                                    int64_t narrow) {
  const A a = value[first], b = value[last - narrow];
  const Index<A> at = place[first], next = place[last - narrow], nearer = next < at ? next : at;
  return b > a ? next : a > b ? at : nearer;
}

// Columns [first, last) of value, number join a window, the first of them being column `column`.
template <typename A>
CONVEXT_INLINE void join_columns(const A* value, const Index<A>* number, int64_t first, int64_t last, int64_t column,
                                 Leader<A>* leader) {
  Leader<A> best = *leader;
  if (best.column < 0) best = {value[first], number[first], column + first}, ++first;
  for (int64_t i = first; i < last; ++i) {
    const A next = value[i];
    const Index<A> row = number[i];
    const bool nan = next != next, led_by_nan = best.value != best.value;
    if (nan ? !led_by_nan || row >= best.row
            : !led_by_nan && (next > best.value || (next == best.value && row < best.row)))
      best = {next, row, column + i};
  }
  *leader = best;
}

// The columns from x on, `width` of them; whether there was a NaN.
template <typename T>
CONVEXT_INLINE bool reduce_columns(const PoolGeometry& g, const T* x, Range ds, Range hs, int64_t width,
                                   Accumulate<T>* value, Index<Accumulate<T>>* number) {
  constexpr int64_t kL = kLanes<Accumulate<T>>, kBlock = 4 * kL;
  bool nan = false;
  int64_t k = 0;
  for (; k + kBlock <= width; k += kBlock) max_box_columns<4>(g, x + k, ds, hs, kL, value + k, number + k, &nan);
  for (; k < width; k += kL) max_box_columns<1>(g, x + k, ds, hs, width - k, value + k, number + k, &nan);
  return nan;
}

// A row of `count` outputs from element `at` on, whose windows are narrow enough for lead_runs.
template <typename T, typename P>
CONVEXT_INLINE void finish_doubled(const PoolGeometry& g, Accumulate<T>* value, Index<Accumulate<T>>* place, Range all,
                                   int64_t narrow, const Range* columns, int64_t count, int64_t at, Range ds, Range hs,
                                   const T* x, T* y, P* places) {
  const int64_t width = all.last - all.first, heights = hs.last - hs.first;
  const bool flat = ds.last - ds.first == 1;
  lead_runs(value, place, width, narrow);
  const T* rows = x + (ds.first * g.input[1] + hs.first) * g.input[2] + all.first;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = columns[j].first - all.first;
    const int64_t winner = lead_window(value, place, first, columns[j].last - all.first, narrow);
    const int64_t row = winner / kPoolRow, column = winner % kPoolRow;
    const int64_t t = flat ? 0 : row / heights, r = row - t * heights;
    y[at + j] = rows[(t * g.input[1] + r) * g.input[2] + column];
    if (places != nullptr) places[at + j] = P((t * g.kernel[1] + r) * g.kernel[2] + column - first);
  }
}

// Rows [rows.first, rows.last) of outputs of one plane.
template <typename T, typename P>
CONVEXT_INLINE void max_forward_boxes_of(const PoolGeometry& g, const Boxes& boxes, const T* x, Range rows, T* y,
                                         P* places) {
  using A = Accumulate<T>;
  A value[kPoolRow + kPoolSlack];
  Index<A> number[kPoolRow + kPoolSlack];
  const Range* columns = boxes.spans[2];
  Leader<A> leader[kPoolColumns];
  int64_t narrow = columns[0].last - columns[0].first, wide = narrow;
  for (int64_t q = 1; q < g.output[2]; ++q) {
    narrow = least(narrow, columns[q].last - columns[q].first);
    wide = greatest(wide, columns[q].last - columns[q].first);
  }
  for (int64_t q = 0; q < g.output[2]; q += kPoolColumns) {
    const Range outs = {q, least(q + kPoolColumns, g.output[2])};
    const int64_t begin = columns[outs.first].first, end = columns[outs.last - 1].last;
    const bool doubles = end - begin <= kPoolRow && wide <= 2 * narrow && wide <= kDoubled;
    for (int64_t i = rows.first; i < rows.last; ++i) {
      const Range ds = boxes.spans[0][i / g.output[1]], hs = boxes.spans[1][i % g.output[1]];
      const bool too_tall = sizeof(A) == 4 && (ds.last - ds.first) * (hs.last - hs.first) >= INT32_MAX / kPoolRow;
      if (doubles && !too_tall && !reduce_columns(g, x + begin, ds, hs, end - begin, value, number)) {
        finish_doubled<T, P>(g, value, number, {begin, end}, narrow, columns + q, outs.last - q, i * g.output[2] + q,
                             ds, hs, x, y, places);
        continue;
      }
      for (int64_t j = 0; j < outs.last - q; ++j) leader[j].column = -1;
      for (int64_t w = begin; w < end; w += kPoolRow) {
        const int64_t width = least(kPoolRow, end - w);
        const bool nan = reduce_columns(g, x + w, ds, hs, width, value, number);
        for (int64_t j = 0; j < outs.last - q; ++j) {
          const int64_t first = greatest(columns[q + j].first - w, int64_t(0));
          const int64_t last = least(columns[q + j].last - w, width);
          if (first >= last) continue;
          if (nan || too_tall || leader[j].column >= 0)
            join_columns(value, number, first, last, w, leader + j);
          else
            leader[j] = lead_columns(value, number, first, last, w);
        }
      }
      const int64_t at = i * g.output[2] + q, heights = hs.last - hs.first;
      for (int64_t j = 0; j < outs.last - q; ++j) {
        y[at + j] = from_accumulate<T>(leader[j].value);
        if (places == nullptr) continue;
        const int64_t t = ds.last - ds.first == 1 ? 0 : leader[j].row / heights, r = leader[j].row - t * heights;
        places[at + j] = P((t * g.kernel[1] + r) * g.kernel[2] + leader[j].column - columns[q + j].first);
      }
    }
  }
}
template <typename T>
void max_forward_boxes(const PoolGeometry& g, const Boxes& boxes, const T* x, Range rows, T* y, void* places) {
  if (g.byte_places())
    max_forward_boxes_of(g, boxes, x, rows, y, static_cast<uint8_t*>(places));
  else
    max_forward_boxes_of(g, boxes, x, rows, y, static_cast<int32_t*>(places));
}

// The place of the greatest of `count` elements in a row: the first, or that of the last NaN. Found by its value.
template <typename T>
CONVEXT_INLINE int64_t greatest_of_run(const T* x, int64_t count) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const Vec<A> bottom = splat<A>(lowest<A>());
  Vec<A> best[2] = {bottom, bottom};
  auto nan = is_nan(bottom);
  int64_t i = 0;
  for (; i + 2 * kL <= count; i += 2 * kL) {
    const Vec<A> a = load(x + i), b = load(x + i + kL);
    nan = nan | is_nan(a) | is_nan(b);
    best[0] = greater_or_first(best[0], a), best[1] = greater_or_first(best[1], b);
  }
  for (; i < count; i += kL) {
    Vec<A> a = load_first(x + i, count - i);
    if (count - i < kL) a = choose(less(lane_numbers<A>(), splat_index<A>(count - i)), a, bottom);
    nan = nan | is_nan(a);
    best[0] = greater_or_first(best[0], a);
  }
  if (any(nan)) {
    int64_t last = count - 1;
    while (to_accumulate(x[last]) == to_accumulate(x[last])) --last;
    return last;
  }
  const A top = greatest_lane<A>(greater_or_first(best[0], best[1]));
  i = 0;
  for (const Vec<A> wanted = splat<A>(top); i + kL <= count; i += kL)
    if (any(~greater(wanted, load(x + i)))) break;  // none is greater: one is equal
  while (to_accumulate(x[i]) != top) ++i;
  return i;
}
// Its value alone: of zeros, and with a NaN, its place tells which.
template <typename T>
CONVEXT_INLINE T greatest_value_of_run(const T* x, int64_t count) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  if (count < kL) return x[greatest_of_run(x, count)];
  Vec<A> best[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) best[v] = load(x + least(v * kL, count - kL));
  auto nan = either_nan(best[0], best[1]) | either_nan(best[2], best[3]);
  int64_t i = 4 * kL;
  for (; i + 4 * kL <= count; i += 4 * kL) {
    Vec<A> next[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) next[v] = load(x + i + v * kL), best[v] = greater_or_first(best[v], next[v]);
    nan = nan | either_nan(next[0], next[1]) | either_nan(next[2], next[3]);
  }
  for (; i < count; i += 2 * kL) {
    const Vec<A> a = load(x + least(i, count - kL)), b = load(x + least(i + kL, count - kL));
    best[0] = greater_or_first(best[0], a), best[1] = greater_or_first(best[1], b);
    nan = nan | either_nan(a, b);
  }
  const A top =
      greatest_lane<A>(greater_or_first(greater_or_first(best[0], best[1]), greater_or_first(best[2], best[3])));
  return top == 0 || any(nan) ? x[greatest_of_run(x, count)] : from_accumulate<T>(top);
}
template <typename T>
void max_forward_global(const T* x, int64_t runs, int64_t count, T* y, void* places) {
  for (int64_t i = 0; places == nullptr && i < runs; ++i) y[i] = greatest_value_of_run(x + i * count, count);
  for (int64_t i = 0; places != nullptr && i < runs; ++i, x += count) {
    const int64_t winner = greatest_of_run(x, count);
    y[i] = x[winner];
    if (count <= 256)
      static_cast<uint8_t*>(places)[i] = uint8_t(winner);
    else
      static_cast<int32_t*>(places)[i] = int32_t(winner);
  }
}

// The outputs that see a place.
struct BoxSeers {
  Range os, ps, qs;
};
// kVectors vectors of channels, of which n elements are wanted of the last, of the place at (d, h, w).
template <int kVectors, typename T, typename P>
CONVEXT_INLINE void sum_box_winners(const PoolGeometry& g, const Boxes& boxes, const T* dy, const P* places,
                                    const int64_t* at, const BoxSeers& seers, int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t o = seers.os.first; o < seers.os.last; ++o)
    for (int64_t p = seers.ps.first; p < seers.ps.last; ++p) {
      const int64_t t = at[0] - boxes.spans[0][o].first, r = at[1] - boxes.spans[1][p].first;
      const int64_t taps = (t * g.kernel[1] + r) * g.kernel[2] + at[2];
      int64_t from = ((o * g.output[1] + p) * g.output[2] + seers.qs.first) * g.channels;
      for (int64_t q = seers.qs.first; q < seers.qs.last; ++q, from += g.channels) {
        const IndexVec<A> tap = splat_index<A>(taps - boxes.spans[2][q].first);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const int64_t count = v + 1 < kVectors ? kL : n;
          sum[v] += choose(equal(load_places<A>(places + from + v * kL, count), tap),
                           load_first(dy + from + v * kL, count), Vec<A>{});
        }
      }
    }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store_first(dx + v * kL, sum[v], v + 1 < kVectors ? kL : n);
}

// Rows of the input's gradient of a channels_last image: every place sums dy of the outputs that it won.
template <typename T, typename P>
CONVEXT_INLINE void max_backward_boxes_channels_of(const PoolGeometry& g, const Boxes& boxes, const T* dy,
                                                   const P* places, Range rows, T* dx) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  const int64_t channels = g.channels;
  T* to = dx + rows.first * g.input[2] * channels;
  for (int64_t i = rows.first; i < rows.last; ++i) {
    int64_t at[] = {i / g.input[1], i % g.input[1], 0};
    BoxSeers seers = {boxes.seers[0][at[0]], boxes.seers[1][at[1]], {}};
    for (; at[2] < g.input[2]; ++at[2], to += channels) {
      seers.qs = boxes.seers[2][at[2]];
      int64_t c = 0;
      for (; c + 8 * kL <= channels; c += 8 * kL)
        sum_box_winners<8>(g, boxes, dy + c, places + c, at, seers, kL, to + c);
      for (; c + 2 * kL <= channels; c += 2 * kL)
        sum_box_winners<2>(g, boxes, dy + c, places + c, at, seers, kL, to + c);
      for (; c < channels; c += kL) sum_box_winners<1>(g, boxes, dy + c, places + c, at, seers, channels - c, to + c);
    }
  }
}
template <typename T>
void max_backward_boxes_channels(const PoolGeometry& g, const Boxes& boxes, const T* dy, const void* places,
                                 int64_t first, Range rows, T* dx) {
  if (g.byte_places())
    max_backward_boxes_channels_of(g, boxes, dy, static_cast<const uint8_t*>(places) + first, rows, dx);
  else
    max_backward_boxes_channels_of(g, boxes, dy, static_cast<const int32_t*>(places) + first, rows, dx);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
