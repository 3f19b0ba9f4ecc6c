// Sums and maxima over contiguous boxes where no places are asked for: see pool_direct_boxes.cpp. The rows of a row of
// boxes are joined into one, up to kRowVectors vectors of columns at a time, so that memory is read in its order.
// kLanes such rows, of one plane or of several, are turned into columns of lanes, a window is joined column by column,
// and the results are turned back. Turning costs half a cycle per element; windows of more than kTurnedWindow columns
// are reduced one by one instead. A maximum of zeros of both signs, or with a NaN, depends on the order of its places:
// such rows are found afterwards and made again by pool_direct_boxes_max.inl.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// How values are joined, and what changes nothing.
template <typename A>
struct Sums {
  static constexpr bool kMaxima = false;
  static CONVEXT_INLINE A nothing() { return 0; }
  static CONVEXT_INLINE Vec<A> join(Vec<A> a, Vec<A> b) { return a + b; }
  static CONVEXT_INLINE A join(A a, A b) { return a + b; }
};
template <typename A>
struct Maxima {
  static constexpr bool kMaxima = true;
  static CONVEXT_INLINE A nothing() { return lowest<A>(); }
  static CONVEXT_INLINE Vec<A> join(Vec<A> a, Vec<A> b) { return greater_or_first(a, b); }
  static CONVEXT_INLINE A join(A a, A b) { return b > a ? b : a; }
};
constexpr int kRowVectors = 8;

// Boxes of as many planes that lie alike in them, from x on in the first; what is made of each goes to[0 .. pitch).
template <typename T>
struct BoxLanes {
  const T* x;
  Range ds, hs;
  int64_t count, apart;
  Accumulate<T>* to;
  int64_t pitch;
};
// kVectors vectors of columns joined over the rows of a box, the last of them at column `last`; `n` elements are wanted
// of that.
template <typename Op, int kVectors, typename T>
CONVEXT_INLINE void join_row_vectors(const PoolGeometry& g, const BoxLanes<T>& boxes, int64_t column, int64_t last,
                                     int64_t n, NanLanes<Accumulate<T>>* nan) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t pitch = g.input[2], depths = boxes.ds.last - boxes.ds.first, heights = boxes.hs.last - boxes.hs.first;
  const int64_t skipped = (g.input[1] - heights) * pitch;
  const T* x = boxes.x + column + (boxes.ds.first * g.input[1] + boxes.hs.first) * pitch;
  A* to = boxes.to + column;
  NanLanes<A> lost = *nan;
  for (int64_t l = 0; l < boxes.count; ++l, x += boxes.apart, to += boxes.pitch) {
    Vec<A> joined[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) joined[v] = splat<A>(Op::nothing());
    const T* row = x;
    for (int64_t d = 0; d < depths; ++d, row += skipped)
      for (int64_t h = 0; h < heights; ++h, row += pitch) {
        Vec<A> next[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          next[v] = v + 1 < kVectors ? load(row + v * kL) : kVectors > 1 ? load(row + last) : load_first(row, n);
          joined[v] = Op::join(joined[v], next[v]);
          if constexpr (Op::kMaxima)
            if (v % 2 == 1 || v + 1 == kVectors) lost = lost | either_nan(next[v & ~1], next[v]);
        }
      }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(to + (v + 1 < kVectors ? v * kL : kVectors > 1 ? last : 0), joined[v]);
  }
  *nan = lost;
}

// `width` columns joined over the rows of boxes, up to whole vectors where there is room for that: `room` elements in
// memory from the first column of the last row of all on.
template <typename Op, typename T>
CONVEXT_INLINE void join_rows(const PoolGeometry& g, const BoxLanes<T>& boxes, int64_t width, int64_t room,
                              NanLanes<Accumulate<T>>* nan) {
  constexpr int64_t kL = kLanes<Accumulate<T>>, kBlock = kRowVectors * kL;
  const int64_t vectors = ceil_div(width, kL);
  if (room >= vectors * kL) width = vectors * kL;
  int64_t w = 0;
  for (; width - w > kBlock + kL; w += kBlock) join_row_vectors<Op, kRowVectors>(g, boxes, w, kBlock - kL, kL, nan);
  const int64_t last = width - w - kL;
  switch (ceil_div(width - w, kL)) {
    case 1: return join_row_vectors<Op, 1>(g, boxes, 0, 0, width, nan);
    case 2: return join_row_vectors<Op, 2>(g, boxes, w, last, kL, nan);
    case 3: return join_row_vectors<Op, 3>(g, boxes, w, last, kL, nan);
    case 4: return join_row_vectors<Op, 4>(g, boxes, w, last, kL, nan);
    case 5: return join_row_vectors<Op, 5>(g, boxes, w, last, kL, nan);
    case 6: return join_row_vectors<Op, 6>(g, boxes, w, last, kL, nan);
    case 7: return join_row_vectors<Op, 7>(g, boxes, w, last, kL, nan);
    case 8: return join_row_vectors<Op, 8>(g, boxes, w, last, kL, nan);
    default:
      join_row_vectors<Op, 4>(g, boxes, w, 3 * kL, kL, nan);
      return join_row_vectors<Op, 5>(g, boxes, w + 4 * kL, last - 4 * kL, kL, nan);
  }
}

// `count` elements in a row: one by one where they are few, by four vectors where they are many.
template <typename Op, typename T>
CONVEXT_INLINE Accumulate<T> join_run(const T* x, int64_t count) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  if (count < kL) {
    A joined = to_accumulate(x[0]);
    for (int64_t i = 1; i < count; ++i) joined = Op::join(joined, to_accumulate(x[i]));
    return joined;
  }
  Vec<A> joined[4] = {load(x), splat<A>(Op::nothing()), splat<A>(Op::nothing()), splat<A>(Op::nothing())};
  int64_t i = kL;
  for (; i + 4 * kL <= count; i += 4 * kL)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) joined[v] = Op::join(joined[v], load(x + i + v * kL));
  for (; i + kL <= count; i += kL) joined[1] = Op::join(joined[1], load(x + i));
  if (i < count) joined[2] = Op::join(joined[2], Op::kMaxima ? load(x + count - kL) : load_first(x + i, count - i));
  Vec<A> all = Op::join(Op::join(joined[0], joined[1]), Op::join(joined[2], joined[3]));
#pragma GCC unroll 4
  for (int width = kL / 2; width > 0; width /= 2) all = Op::join(all, rotated<A>(all, width));
  return all[0];
}

// Joins to total[j], for the outputs [outs.first, outs.last) of a row, what their columns hold of row[0 .. count),
// which is column `column` and what follows.
template <typename Op, typename A>
CONVEXT_INLINE void join_columns(const Range* columns, Range outs, const A* row, int64_t column, int64_t count,
                                 A* total) {
  for (int64_t q = outs.first; q < outs.last; ++q) {
    const int64_t first = greatest(columns[q].first - column, int64_t(0)),
                  last = least(columns[q].last - column, count);
    A* to = total + (q - outs.first);
    if (first < last) *to = Op::join(*to, join_run<Op>(row + first, last - first));
  }
}

template <typename A>
CONVEXT_INLINE Vec<A> magnitude(Vec<A> v) {
  return reinterpret_cast<Vec<A>>(reinterpret_cast<IndexVec<A>>(v) & ~reinterpret_cast<IndexVec<A>>(-Vec<A>{}));
}
// Whether any lane of magnitudes is zero.
template <typename A>
CONVEXT_INLINE bool any_zero(Vec<A> size) {
  return any(equal(reinterpret_cast<IndexVec<A>>(size), IndexVec<A>{}));
}
// Whether there is a negative zero in `width` columns of the rows of a box.
template <typename T>
CONVEXT_INLINE bool any_negative_zero(const PoolGeometry& g, const T* x, Range ds, Range hs, int64_t width) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const IndexVec<A> wanted = reinterpret_cast<IndexVec<A>>(-Vec<A>{});
  auto found = is_nan(Vec<A>{});
  for (int64_t d = ds.first; d < ds.last; ++d)
    for (int64_t h = hs.first; h < hs.last; ++h) {
      const T* row = x + (d * g.input[1] + h) * g.input[2];
      for (int64_t k = 0; k < width; k += kL)
        found = found | equal(reinterpret_cast<IndexVec<A>>(load_first(row + k, width - k)), wanted);
    }
  return any(found);
}

// A row of outputs: what it sees, what its divisors have in common, and which it is.
template <typename T>
struct BoxRow {
  const T* x;  // of its plane
  T* y;
  Range ds, hs;
  Accumulate<T> factor;
  int64_t row;
};
// The rows of outputs of some planes, or of every `step`th, in turn.
template <typename T>
struct BoxRows {
  const PoolGeometry& g;
  const Boxes& boxes;
  const Range rows;
  const T* x;
  T* y;
  const int64_t step;
  int64_t row = rows.first, o = row / g.output[1], p = row % g.output[1];

  // Into *of, part by part: what is stored as one is not soon read as two.
  template <typename Op>
  CONVEXT_INLINE void next(BoxRow<T>* of) {
    of->x = x, of->y = y, of->row = row, of->factor = 1;
    of->ds.first = boxes.spans[0][o].first, of->ds.last = boxes.spans[0][o].last;
    of->hs.first = boxes.spans[1][p].first, of->hs.last = boxes.spans[1][p].last;
    if constexpr (!Op::kMaxima) of->factor = Accumulate<T>(boxes.counts[0][o] * boxes.counts[1][p]);
    if (++p == g.output[1]) p = 0, ++o;
    if (++row == rows.last)
      row = rows.first, o = row / g.output[1], p = row % g.output[1], x += step * g.input_places(),
      y += step * g.output_places();
  }
};

// Of the maxima of n rows of outputs those that depend on the order of their places are made again: rows that saw a
// NaN, and rows with a zero that saw a negative one. size: the least magnitude of each row.
template <typename T>
CONVEXT_INLINE void mend_maxima(const PoolGeometry& g, const Boxes& boxes, const BoxRow<T>* of, int64_t n, bool nan,
                                Vec<Accumulate<T>> size, int64_t begin, int64_t width) {
  for (int64_t r = 0; r < n; ++r)
    if (nan || (size[r] == 0 && any_negative_zero(g, of[r].x + begin, of[r].ds, of[r].hs, width)))
      max_forward_boxes<T>(g, boxes, of[r].x, {of[r].row, of[r].row + 1}, of[r].y, nullptr);
}

// What a row of boxes reads and writes: outputs [outs.first, outs.last), and the columns that their windows show.
struct BoxColumns {
  Range outs;
  int64_t begin, width;
};
CONVEXT_INLINE BoxColumns columns_of(const PoolGeometry& g, const Range* columns, Range outs) {
  // windows of an average may lie outside the input
  const int64_t begin = greatest(least(columns[outs.first].first, g.input[2] - 1), int64_t(0));
  return {outs, begin, greatest(least(columns[outs.last - 1].last, g.input[2]) - begin, int64_t(1))};
}

constexpr int64_t kTurnedWindow = 24;  // columns of a window, up to which rows are turned
constexpr int64_t kTurned = 2048;      // elements of turned rows
static_assert(kTurned >= kTurnedWindow * kWidestVector);

// As many outputs of a row, from q on, as kTurned elements hold the columns of, kLanes rows of them.
CONVEXT_INLINE Range outputs_at_once(const PoolGeometry& g, const Range* columns, int64_t q, int64_t lanes) {
  const int64_t room = kTurned / lanes, begin = columns[q].first;
  int64_t last = q + 1;
  while (last < g.output[2] && last - q < room && columns[last].last - begin <= room) ++last;
  return {q, last};
}

// What is joined of the columns of each window of a row, kLanes rows at a time.
template <typename Op, typename A>
CONVEXT_INLINE void join_turned(const Range* columns, const BoxColumns& some, int64_t narrowest, const A* turned,
                                const double* counts, const A* factor, A* results, Vec<A>* size) {
  constexpr int64_t kL = kLanes<A>;
  A nothing[kL];
  store(nothing, splat<A>(Op::nothing()));
  const Vec<A> rows = load(factor);
  Vec<A> smallest = *size;
  for (int64_t q = some.outs.first; q < some.outs.last; ++q, results += kL) {
    const A* at = turned + (columns[q].first - some.begin) * kL;
    const A* const end = at + (columns[q].last - columns[q].first) * kL;
    Vec<A> joined = splat<A>(Op::nothing()), odd = joined;
    int64_t s = 0;
    for (; s + 2 <= narrowest; s += 2, at += 2 * kL)
      joined = Op::join(joined, load(at)), odd = Op::join(odd, load(at + kL));
    if (s < narrowest) joined = Op::join(joined, load(at)), at += kL;
    // Adaptive windows have one column more or not, which nobody foresees: no branch.
    joined = Op::join(joined, Op::join(odd, load(at < end ? at : nothing)));
    for (at += kL; at < end; at += kL) joined = Op::join(joined, load(at));
    if constexpr (Op::kMaxima)
      smallest = smaller(smallest, magnitude<A>(joined));
    else
      joined = joined / (rows * splat<A>(A(counts[q])));
    store(results, joined);
  }
  *size = smallest;
}

// Rows [rows.first, rows.last) of outputs of every plane, kLanes at a time: the same row of as many planes (kPlanes),
// or rows as they follow each other.
template <typename Op, bool kPlanes, typename T>
CONVEXT_INLINE void reduce_turned(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows,
                                  T* y) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  A row[kTurned + kL * kL], turned[kTurned + kL * kL], results[kTurned + kL * kL], factor[kL];
  BoxRow<T> of[kL];
  const Range* columns = boxes.spans[2];
  const T* const end_of_x = x + planes * g.input_places();
  const bool flat = g.kernel[0] * g.kernel[1] == 1 && (g.adaptive || inside_input(g));
  const int64_t heights = rows.last - rows.first,
                groups = kPlanes ? ceil_div(planes, kL) * heights : ceil_div(planes * heights, kL);
  int64_t narrowest = kTurnedWindow;
  for (int64_t q = 0; q < g.output[2]; ++q) narrowest = least(narrowest, columns[q].last - columns[q].first);
  for (Range outs = {0, 0}; outs.last < g.output[2];) {
    outs = outputs_at_once(g, columns, outs.last, kL);
    const BoxColumns some = columns_of(g, columns, outs);
    const int64_t count = outs.last - outs.first, pitch = ceil_div(some.width, kL) * kL;
    const bool whole = count == g.output[2];
    BoxRows<T> left = {g, boxes, rows, x, y, kPlanes ? kL : 1};
    for (int64_t i = 0, lanes = 0, done = 0; i < groups; ++i, done += lanes) {
      if (kPlanes) {
        if (left.row == rows.first) {
          lanes = least(kL, (end_of_x - left.x) / g.input_places());
          for (int64_t l = 1; l < lanes; ++l)
            of[l].x = left.x + l * g.input_places(), of[l].y = left.y + l * g.output_places();
        }
        left.template next<Op>(of);
        store(factor, splat<A>(of[0].factor));
      } else {
        lanes = least(kL, planes * heights - done);
        for (int64_t l = 0; l < lanes; ++l) left.template next<Op>(of + l), factor[l] = of[l].factor;
      }
      NanLanes<A> nan = is_nan(Vec<A>{});
      if (flat) {
        const T* in[kL];
        for (int64_t l = 0; l < kL; ++l) {
          const BoxRow<T>& seen = of[kPlanes ? 0 : least(l, lanes - 1)];
          const int64_t at = (seen.ds.first * g.input[1] + seen.hs.first) * g.input[2] + some.begin;
          in[l] = of[least(l, lanes - 1)].x + at;
        }
        turn_in<Op::kMaxima>(in, some.width, end_of_x - in[lanes - 1], turned, &nan);
      } else {
        for (int64_t l = 0; l < (kPlanes ? 1 : lanes); ++l) {
          const int64_t last = ((of[l].ds.last - 1) * g.input[1] + of[l].hs.last - 1) * g.input[2] + some.begin;
          const BoxLanes<T> alike = {of[l].x + some.begin, of[l].ds,        of[l].hs, kPlanes ? lanes : 1,
                                     g.input_places(),     row + l * pitch, pitch};
          join_rows<Op>(g, alike, some.width, end_of_x - of[kPlanes ? lanes - 1 : l].x - last, &nan);
        }
        const A* joined[kL];
        for (int64_t l = 0; l < kL; ++l) joined[l] = row + least(l, lanes - 1) * pitch;
        turn_in<false>(joined, some.width, pitch, turned, &nan);
      }
      Vec<A> size = splat<A>(1);
      join_turned<Op>(columns, some, narrowest, turned, boxes.counts[2], factor, results, &size);
      T* to = of[0].y + of[0].row * g.output[2] + outs.first;
      if (kPlanes)
        turn_out(results, lanes, count, to, g.output_places(), 0, whole ? (rows.last - of[0].row) * count : 0);
      else
        turn_out(results, lanes, count, to, g.output[2], g.output[2], whole ? lanes * count : 0);
      if constexpr (Op::kMaxima) {
        if (!any(nan) && !any_zero<A>(size)) continue;
        for (int64_t l = 1; kPlanes && l < lanes; ++l) of[l].ds = of[0].ds, of[l].hs = of[0].hs, of[l].row = of[0].row;
        mend_maxima(g, boxes, of, lanes, any(nan), size, some.begin, some.width);
      }
    }
  }
}

// The same where windows are wide, a row of outputs at a time.
template <typename Op, typename T>
CONVEXT_INLINE void reduce_wide(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows,
                                T* y) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  A row[kPoolRow + kPoolSlack], total[kPoolColumns + kPoolSlack], count[kPoolColumns + kPoolSlack];
  const T* const end_of_x = x + planes * g.input_places();
  for (int64_t q = 0; q < g.output[2]; q += kPoolColumns) {
    const Range outs = {q, least(q + kPoolColumns, g.output[2])};
    const BoxColumns some = columns_of(g, boxes.spans[2], outs);
    for (int64_t j = 0; !Op::kMaxima && j < outs.last - q; ++j) count[j] = A(boxes.counts[2][q + j]);
    BoxRows<T> left = {g, boxes, rows, x, y, 1};
    for (int64_t i = planes * (rows.last - rows.first); i > 0; --i) {
      BoxRow<T> of;
      left.template next<Op>(&of);
      const bool flat =
          std::is_same_v<T, A> && !Op::kMaxima && of.ds.last - of.ds.first == 1 && of.hs.last - of.hs.first == 1;
      const int64_t last = ((of.ds.last - 1) * g.input[1] + of.hs.last - 1) * g.input[2];
      NanLanes<A> nan = is_nan(Vec<A>{});
      Vec<A> size = splat<A>(1);
      for (int64_t j = 0; j < outs.last - q; j += kL) store(total + j, splat<A>(Op::nothing()));
      for (int64_t w = some.begin; w < some.begin + some.width; w += kPoolRow) {
        const int64_t width = least(kPoolRow, some.begin + some.width - w);
        const A* joined = row;
        if (flat)
          joined = reinterpret_cast<const A*>(of.x + last + w);
        else
          join_rows<Op>(g, BoxLanes<T>{of.x + w, of.ds, of.hs, 1, 0, row, 0}, width, end_of_x - of.x - last - w, &nan);
        join_columns<Op>(boxes.spans[2], outs, joined, w, width, total);
      }
      T* to = of.y + of.row * g.output[2] + q;
      for (int64_t j = 0; j < outs.last - q; j += kL) {
        Vec<A> joined = load(total + j);
        if constexpr (Op::kMaxima)
          size = smaller(size, magnitude<A>(joined));
        else
          joined = joined / (splat<A>(of.factor) * load(count + j));
        store_first(to + j, joined, outs.last - q - j);
      }
      if constexpr (Op::kMaxima) {
        for (int64_t l = 1; l < kL; ++l) size[0] = least(size[0], size[l]);
        mend_maxima(g, boxes, &of, 1, any(nan), size, some.begin, some.width);
      }
    }
  }
}

template <typename Op, typename T>
CONVEXT_INLINE void reduce_boxes(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows,
                                 T* y) {
  if (turned_whole<Accumulate<T>>(g))
    reduce_small<Op>(g, boxes, x, planes, y);
  else if (g.kernel[2] > kTurnedWindow)
    reduce_wide<Op>(g, boxes, x, planes, rows, y);
  else if (planes >= kLanes<Accumulate<T>>)
    reduce_turned<Op, true>(g, boxes, x, planes, rows, y);
  else
    reduce_turned<Op, false>(g, boxes, x, planes, rows, y);
}
template <typename T>
void max_values_boxes(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows, T* y) {
  reduce_boxes<Maxima<Accumulate<T>>>(g, boxes, x, planes, rows, y);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
