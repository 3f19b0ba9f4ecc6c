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

// Columns [first, last) of value, number join a window, the first of them being column `column`.
template <bool kNan, typename A>
CONVEXT_INLINE void join_columns(const A* value, const Index<A>* number, int64_t first, int64_t last, int64_t column,
                                 Leader<A>* leader) {
  Leader<A> best = *leader;
  if (best.column < 0) best = {value[first], number[first], column + first}, ++first;
  for (int64_t i = first; i < last; ++i) {
    const A next = value[i];
    const Index<A> row = number[i];
    bool leads = next > best.value || (next == best.value && row < best.row);
    if (kNan) {
      const bool nan = next != next, led_by_nan = best.value != best.value;
      leads = nan ? !led_by_nan || row >= best.row : !led_by_nan && leads;
    }
    if (leads) best = {next, row, column + i};
  }
  *leader = best;
}

// Rows [rows.first, rows.last) of outputs of one plane.
template <typename T, typename P>
CONVEXT_INLINE void max_forward_boxes_of(const PoolGeometry& g, const Boxes& boxes, const T* x, Range rows, T* y,
                                         P* places) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 4 * kL;
  A value[kPoolRow + kPoolSlack];
  Index<A> number[kPoolRow + kPoolSlack];
  const Range* columns = boxes.spans[2];
  Leader<A> leader[kPoolColumns];
  for (int64_t q = 0; q < g.output[2]; q += kPoolColumns) {
    const Range outs = {q, least(q + kPoolColumns, g.output[2])};
    const int64_t begin = columns[outs.first].first, end = columns[outs.last - 1].last;
    for (int64_t i = rows.first; i < rows.last; ++i) {
      const Range ds = boxes.spans[0][i / g.output[1]], hs = boxes.spans[1][i % g.output[1]];
      for (int64_t j = 0; j < outs.last - q; ++j) leader[j].column = -1;
      for (int64_t w = begin; w < end; w += kPoolRow) {
        const int64_t width = least(kPoolRow, end - w);
        bool nan = false;
        int64_t k = 0;
        for (; k + kBlock <= width; k += kBlock)
          max_box_columns<4>(g, x + w + k, ds, hs, kL, value + k, number + k, &nan);
        for (; k < width; k += kL) max_box_columns<1>(g, x + w + k, ds, hs, width - k, value + k, number + k, &nan);
        for (int64_t j = 0; j < outs.last - q; ++j) {
          const int64_t first = greatest(columns[q + j].first - w, int64_t(0));
          const int64_t last = least(columns[q + j].last - w, width);
          if (first >= last) continue;
          if (nan || leader[j].column >= 0)
            join_columns<true>(value, number, first, last, w, leader + j);
          else
            join_columns<false>(value, number, first, last, w, leader + j);
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
  A lane[kL];
  store(lane, greater_or_first(best[0], best[1]));
  A top = lane[0];
  for (int64_t l = 1; l < kL; ++l) top = lane[l] > top ? lane[l] : top;
  i = 0;
  for (const Vec<A> wanted = splat<A>(top); i + kL <= count; i += kL)
    if (any(~greater(wanted, load(x + i)))) break;  // none is greater: one is equal
  while (to_accumulate(x[i]) != top) ++i;
  return i;
}
template <typename T>
void max_forward_global(const T* x, int64_t runs, int64_t count, T* y, void* places) {
  for (int64_t i = 0; i < runs; ++i, x += count) {
    const int64_t winner = greatest_of_run(x, count);
    y[i] = x[winner];
    if (places == nullptr) continue;
    if (count <= 256)
      static_cast<uint8_t*>(places)[i] = uint8_t(winner);
    else
      static_cast<int32_t*>(places)[i] = int32_t(winner);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
