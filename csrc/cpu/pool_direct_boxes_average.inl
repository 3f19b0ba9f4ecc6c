// Averages over contiguous boxes, and the gradient of adaptive ones: see pool_direct_boxes.cpp.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// kVectors vectors of columns, of which n elements are wanted of the last, summed over depths times heights rows.
template <int kVectors, typename T>
CONVEXT_INLINE void sum_box_columns(const PoolGeometry& g, const T* x, Range ds, Range hs, int64_t n,
                                    Accumulate<T>* to) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t d = ds.first; d < ds.last; ++d) {
    const T* row = x + (d * g.input[1] + hs.first) * g.input[2];
    for (int64_t h = hs.first; h < hs.last; ++h, row += g.input[2])
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] += v + 1 < kVectors ? load(row + v * kL) : load_first(row + v * kL, n);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store(to + v * kL, sum[v]);
}

// `count` elements in a row: one by one where they are few, by four sums of vectors where they are many.
template <typename T>
CONVEXT_INLINE Accumulate<T> sum_run(const T* x, int64_t count) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  if (count < kL) {
    A sum = to_accumulate(x[0]);
    for (int64_t i = 1; i < count; ++i) sum += to_accumulate(x[i]);
    return sum;
  }
  if (count < 2 * kL) return sum_lanes<A>(load(x) + load_first(x + kL, count - kL));
  Vec<A> sum[4] = {load(x), load(x + kL), Vec<A>{}, Vec<A>{}};
  int64_t i = 2 * kL;
  for (; i + 4 * kL <= count; i += 4 * kL)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] += load(x + i + v * kL);
  for (; i + kL <= count; i += kL) sum[2] += load(x + i);
  if (i < count) sum[3] += load_first(x + i, count - i);
  return sum_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Adds to total[j], for the outputs [outs.first, outs.last) of a row, what their columns hold of row[0 .. count), which
// is column `column` and what follows.
template <typename A>
CONVEXT_INLINE void sum_columns(const Range* columns, Range outs, const A* row, int64_t column, int64_t count,
                                A* total) {
  for (int64_t q = outs.first; q < outs.last; ++q) {
    const int64_t first = greatest(columns[q].first - column, int64_t(0)),
                  last = least(columns[q].last - column, count);
    if (first < last) total[q - outs.first] += sum_run(row + first, last - first);
  }
}

// total[j]: what columns[j] holds of row[0 .. ), which is column `column` and what follows: kLanes windows of up to
// 2 kLanes columns at a time, each in two vectors. What lies behind a window is read and masked.
template <typename A>
CONVEXT_INLINE void sum_narrow_columns(const Range* columns, int64_t outs, const A* row, int64_t column, A* total) {
  using Mask = typename IndexType<A>::type;
  constexpr int kL = kLanes<A>;
  static constexpr auto masks = [] {  // from 2 kL - n on: n lanes, and none
    std::array<Index<A>, 4 * kL> all{};
    for (int i = 0; i < 2 * kL; ++i) all[i] = -1;
    return all;
  }();
  const auto masked = [&](const A* from, const Index<A>* mask) {
    return reinterpret_cast<Vec<A>>(reinterpret_cast<Mask>(load(from)) & load_index<A>(mask));
  };
  for (int64_t j = 0; j < outs; j += kL) {
    Vec<A> v[kL];
#pragma GCC unroll 16
    for (int l = 0; l < kL; ++l) {
      const Range span = columns[least(j + l, outs - 1)];
      const A* from = row + (span.first - column);
      const Index<A>* mask = masks.data() + 2 * kL - (span.last - span.first);
      v[l] = masked(from, mask) + masked(from + kL, mask + kL);
    }
    store(total + j, sum_lanes_of_each<A>(v));
  }
}

// A row of outputs: what it sees, and where it goes.
template <typename T>
struct BoxRow {
  const T* x;  // of its plane
  Range ds, hs;
  Accumulate<T> factor;
  T* y;
};

// Rows [rows.first, rows.last) of outputs of every plane, some at a time: what was stored is read when it has arrived.
template <typename T>
void avg_forward_boxes(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows, T* y) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 4 * kL, kTogether = 1024, kRows = 32;
  A row[kPoolRow + kPoolSlack], total[kPoolColumns + kPoolSlack], count[kPoolColumns + kPoolSlack];
  BoxRow<T> of[kRows];
  const Range* columns = boxes.spans[2];
  const int64_t heights = rows.last - rows.first;
  for (int64_t q = 0; q < g.output[2]; q += kPoolColumns) {
    const Range outs = {q, least(q + kPoolColumns, g.output[2])};
    const int64_t begin = columns[outs.first].first, end = columns[outs.last - 1].last;
    const int64_t pitch = ceil_div(end - begin, kL) * kL, out_pitch = ceil_div(outs.last - q, kL) * kL;
    const bool narrow = g.kernel[2] <= 2 * kL && pitch <= kPoolRow;
    const auto as_it_lies = [&](const BoxRow<T>& r) {  // one row, of which no copy is needed
      return sizeof(T) == sizeof(A) && !narrow && r.ds.last - r.ds.first == 1 && r.hs.last - r.hs.first == 1;
    };
    const int64_t together = least(greatest(least(kTogether / pitch, kPoolColumns / out_pitch), int64_t(1)), kRows);
    for (int64_t j = 0; j < outs.last - q; ++j) count[j] = A(boxes.counts[2][q + j]);
    for (int64_t i = 0; i < planes * heights; i += together) {
      const int64_t n = least(together, planes * heights - i);
      for (int64_t r = 0; r < n; ++r) {
        const int64_t plane = (i + r) / heights, at = rows.first + (i + r) % heights;
        const int64_t o = at / g.output[1], p = at % g.output[1];
        of[r] = {x + plane * g.input_places(), boxes.spans[0][o], boxes.spans[1][p],
                 A(boxes.counts[0][o] * boxes.counts[1][p]), y + plane * g.output_places() + at * g.output[2] + q};
      }
      for (int64_t j = 0; j < n * out_pitch; j += kL) store(total + j, Vec<A>{});
      for (int64_t w = begin; w < end; w += kPoolRow) {
        const int64_t width = least(kPoolRow, end - w);
        for (int64_t r = 0; r < n; ++r) {
          if (as_it_lies(of[r])) continue;
          A* to = row + r * pitch;
          int64_t k = 0;
          for (; k + kBlock <= width; k += kBlock)
            sum_box_columns<4>(g, of[r].x + w + k, of[r].ds, of[r].hs, kL, to + k);
          for (; k < width; k += kL) sum_box_columns<1>(g, of[r].x + w + k, of[r].ds, of[r].hs, width - k, to + k);
        }
        for (int64_t r = 0; r < n; ++r) {
          const A* from = row + r * pitch;
          if (narrow) {
            sum_narrow_columns(columns + q, outs.last - q, from, w, total + r * out_pitch);
            continue;
          }
          if (as_it_lies(of[r]))
            from =
                reinterpret_cast<const A*>(of[r].x) + (of[r].ds.first * g.input[1] + of[r].hs.first) * g.input[2] + w;
          sum_columns(columns, outs, from, w, width, total + r * out_pitch);
        }
      }
      for (int64_t r = 0; r < n; ++r)
        for (int64_t j = 0; j < outs.last - q; j += kL)
          store_first(of[r].y + j, load(total + r * out_pitch + j) / (splat<A>(of[r].factor) * load(count + j)),
                      outs.last - q - j);
    }
  }
}

CONVEXT_INLINE bool same(Range a, Range b) { return a.first == b.first && a.last == b.last; }

// Rows of the input's gradient of one plane: rows of dy / divisor that see an input row are summed, and every output's
// share is added to its columns. The next row is often seen by the same outputs, and is a copy.
template <typename T>
void avg_backward_boxes(const PoolGeometry& g, const Boxes& boxes, const T* dy, Range rows, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  A share[kPoolColumns + kPoolSlack], count[kPoolColumns + kPoolSlack], sum[kPoolRow + kPoolSlack];
  for (int64_t w = 0; w < g.input[2]; w += kPoolRow) {
    const int64_t width = least(kPoolRow, g.input[2] - w);
    const Range qs = {boxes.seers[2][w].first, boxes.seers[2][w + width - 1].last};
    for (int64_t i = rows.first; i < rows.last; ++i) {
      const Range os = boxes.seers[0][i / g.input[1]], ps = boxes.seers[1][i % g.input[1]];
      T* out = dx + i * g.input[2] + w;
      if (i > rows.first && same(os, boxes.seers[0][(i - 1) / g.input[1]]) &&
          same(ps, boxes.seers[1][(i - 1) % g.input[1]])) {
        for (int64_t j = 0; j < width; j += kL) store_first(out + j, load(sum + j), width - j);
        continue;
      }
      for (int64_t j = 0; j < width; j += kL) store(sum + j, Vec<A>{});
      for (int64_t q = qs.first; q < qs.last; q += kPoolColumns) {
        const int64_t outs = least(kPoolColumns, qs.last - q);
        for (int64_t j = 0; j < outs; ++j) count[j] = A(boxes.counts[2][q + j]);
        for (int64_t j = 0; j < outs; j += kL) {
          Vec<A> shares = {};
          for (int64_t o = os.first; o < os.last; ++o)
            for (int64_t p = ps.first; p < ps.last; ++p)
              shares += load_first(dy + (o * g.output[1] + p) * g.output[2] + q + j, outs - j) /
                        (splat<A>(A(boxes.counts[0][o] * boxes.counts[1][p])) * load(count + j));
          store(share + j, shares);
        }
        for (int64_t j = 0; j < outs; ++j) {
          const Range seen = common(boxes.spans[2][q + j], {w, w + width});
          for (int64_t k = seen.first; k < seen.last; ++k) sum[k - w] += share[j];
        }
      }
      for (int64_t j = 0; j < width; j += kL) store_first(out + j, load(sum + j), width - j);
    }
  }
}

// kVectors vectors of channels, of which n elements are wanted of the last, of one place.
template <int kVectors, typename T>
CONVEXT_INLINE void sum_box_shares(const PoolGeometry& g, const Boxes& boxes, const T* dy, Range os, Range ps, Range qs,
                                   int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t o = os.first; o < os.last; ++o)
    for (int64_t p = ps.first; p < ps.last; ++p) {
      const T* from = dy + ((o * g.output[1] + p) * g.output[2] + qs.first) * g.channels;
      const double rows = boxes.counts[0][o] * boxes.counts[1][p];
      for (int64_t q = qs.first; q < qs.last; ++q, from += g.channels) {
        const double count = rows * boxes.counts[2][q];
        const Vec<A> divisor = splat<A>(A(count));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Vec<A> value = v + 1 < kVectors ? load(from + v * kL) : load_first(from + v * kL, n);
          sum[v] += count == 1 ? value : value / divisor;
        }
      }
    }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store_first(dx + v * kL, sum[v], v + 1 < kVectors ? kL : n);
}

// Rows of the input's gradient of a channels_last image: every place sums dy / divisor of the outputs that see it. A
// place that the same see as the one before is its copy, and so is a row.
template <typename T>
void avg_backward_boxes_channels(const PoolGeometry& g, const Boxes& boxes, const T* dy, Range rows, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t channels = g.channels, pitch = g.input[2] * channels;
  for (int64_t i = rows.first; i < rows.last; ++i) {
    const Range os = boxes.seers[0][i / g.input[1]], ps = boxes.seers[1][i % g.input[1]];
    T* row = dx + i * pitch;
    if (i > rows.first && same(os, boxes.seers[0][(i - 1) / g.input[1]]) &&
        same(ps, boxes.seers[1][(i - 1) % g.input[1]])) {
      for (int64_t j = 0; j < pitch; j += kL) store_first(row + j, load_first(row + j - pitch, pitch - j), pitch - j);
      continue;
    }
    for (int64_t w = 0; w < g.input[2]; ++w, row += channels) {
      const Range qs = boxes.seers[2][w];
      if (w > 0 && same(qs, boxes.seers[2][w - 1])) {
        for (int64_t c = 0; c < channels; c += kL)
          store_first(row + c, load_first(row + c - channels, channels - c), channels - c);
        continue;
      }
      int64_t c = 0;
      for (; c + 4 * kL <= channels; c += 4 * kL) sum_box_shares<4>(g, boxes, dy + c, os, ps, qs, kL, row + c);
      for (; c < channels; c += kL) sum_box_shares<1>(g, boxes, dy + c, os, ps, qs, channels - c, row + c);
    }
  }
}

// The mean of `count` elements in a row, `runs` times.
template <typename T>
void avg_forward_global(const T* x, int64_t runs, int64_t count, int64_t divisor, T* y) {
  for (int64_t i = 0; i < runs; ++i) y[i] = from_accumulate<T>(sum_run(x + i * count, count) / Accumulate<T>(divisor));
}
template <typename T>
void avg_backward_global(const T* dy, int64_t runs, int64_t count, int64_t divisor, T* dx) {
  using A = Accumulate<T>;
  for (int64_t i = 0; i < runs; ++i) {
    const Vec<A> share = splat<A>(to_accumulate(dy[i]) / A(divisor));
    for (int64_t j = 0; j < count; j += kLanes<A>) store_first(dx + i * count + j, share, count - j);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
