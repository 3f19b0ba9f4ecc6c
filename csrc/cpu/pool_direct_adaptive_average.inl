// Average over boxes, and its gradient where they are of unequal sizes: see pool_direct_adaptive.inl.

#include "pool_direct_adaptive.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// kVectors vectors of columns, of which n elements are wanted of the last, summed over the rows of a box.
template <int kVectors, typename T>
CONVEXT_INLINE void sum_box_columns(const BoxRows<T>& rows, int64_t column, int64_t n, Accumulate<T>* to) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t t = 0; t < rows.depths; ++t) {
    const T* row = rows.start + t * rows.depth_step + column;
    for (int64_t r = 0; r < rows.heights; ++r, row += rows.height_step)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] += v + 1 < kVectors ? load(row + v * kL) : load_first(row + v * kL, n);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store(to + v * kL, sum[v]);
}

// `count` elements in a row, by four sums of vectors where there are so many.
template <typename T>
CONVEXT_INLINE Accumulate<T> sum_run(const T* x, int64_t count) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  if (count < kL) {
    A sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += to_accumulate(x[i]);
    return sum;
  }
  Vec<A> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kL <= count; i += 4 * kL)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] += load(x + i + v * kL);
  for (; i + kL <= count; i += kL) sum[0] += load(x + i);
  if (i < count) sum[1] += load_first(x + i, count - i);
  return sum_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// A part of a contiguous plane.
template <typename T>
void avg_forward_boxes(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 4 * kL;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  A row[kPoolRow + kPoolSlack], total[kPoolColumns];
  Cuts cuts;
  for (int64_t chunk = 0; chunk < g.output[2]; chunk += cuts.count) {
    set_cuts(g, chunk, &cuts);
    const bool joined = cuts.count == 1 && cuts.columns[0].first == 0 && cuts.columns[0].last == g.input[2];
    for (int64_t o = part.os.first; o < part.os.last; ++o)
      for (int64_t p = part.ps.first; p < part.ps.last; ++p) {
        const Range ds = window_of(g, 0, o), hs = window_of(g, 1, p);
        const BoxRows<T> rows = box_rows(g, x, ds, hs, joined);
        for (int64_t j = 0; j < cuts.count; ++j) total[j] = 0;
        const int64_t times = joined ? hs.last - hs.first : 1;
        const int64_t begin = cuts.columns[0].first, end = cuts.columns[cuts.count - 1].last * times;
        const bool alone = rows.depths == 1 && rows.heights == 1;
        int64_t from = 0;  // the first output that the piece reaches
        for (int64_t w = begin; w < end && rows.depths > 0 && rows.heights > 0;) {
          const int64_t columns = alone ? end - w : least(kPoolRow, end - w);
          if (!alone) {
            int64_t i = 0;
            for (; i + kBlock <= columns; i += kBlock) sum_box_columns<4>(rows, w + i, kL, row + i);
            for (; i < columns; i += kL) sum_box_columns<1>(rows, w + i, columns - i, row + i);
          }
          for (int64_t j = from; j < cuts.count; ++j) {
            const Range seen = common({cuts.columns[j].first, cuts.columns[j].last * times}, {w, w + columns});
            if (seen.first >= seen.last) {
              if (cuts.columns[j].first >= w + columns) break;
              continue;
            }
            if constexpr (sizeof(T) == sizeof(A)) {
              total[j] += sum_run(alone ? rows.start + seen.first : row + (seen.first - w), seen.last - seen.first);
            } else {
              total[j] += alone ? sum_run(rows.start + seen.first, seen.last - seen.first)
                                : sum_run(row + (seen.first - w), seen.last - seen.first);
            }
          }
          w += columns;
          while (from < cuts.count && cuts.columns[from].last * times <= w) ++from;
        }
        const int64_t factor = row_divisor(g, o, p);
        T* out = y + (o * g.output[1] + p) * g.output[2] + chunk;
        for (int64_t j = 0; j < cuts.count; ++j) {
          const int64_t divisor = g.divisor_override != 0 ? factor : factor * counted_taps(g, 2, chunk + j);
          out[j] = from_accumulate<T>(total[j] / A(divisor));
        }
      }
  }
}

// Of the outputs [first, first + count) of a row, dy / divisor summed over the rows that see an input row.
template <typename T>
CONVEXT_INLINE void sum_shares(const PoolGeometry& g, const T* dy, Range os, Range ps, int64_t first, int64_t count,
                               const Accumulate<T>* columns, Accumulate<T>* row) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t i = 0; i < count; i += kL) {
    Vec<A> sum = {};
    for (int64_t o = os.first; o < os.last; ++o)
      for (int64_t p = ps.first; p < ps.last; ++p) {
        const T* from = dy + (o * g.output[1] + p) * g.output[2] + first + i;
        sum += load_first(from, count - i) / (splat<A>(A(row_divisor(g, o, p))) * load(columns + i));
      }
    store(row + i, sum);
  }
}

// Columns and divisors of the outputs [first, last) of a row, as many as there is room for.
template <typename A>
CONVEXT_INLINE void turn_to_outputs(const PoolGeometry& g, int64_t first, int64_t last, Cuts* cuts, A* divisors) {
  set_cuts(g, first, cuts);
  cuts->count = least(cuts->count, last - first);
  set_column_divisors(g, first, cuts->count, divisors);
}

// A part of a contiguous plane of an adaptive average's gradient.
template <typename T>
void avg_backward_boxes(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first, width = g.input[2];
  const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
  T* dx = static_cast<T*>(args.output) + plane * g.input_places();
  A shares[kPoolColumns + kPoolSlack], divisors[kPoolColumns + kPoolSlack], sum[kPoolRow + kPoolSlack];
  Cuts cuts;
  for (int64_t w = 0; w < width; w += kPoolRow) {
    const int64_t end = least(w + kPoolRow, width);
    const Range qs = outputs_over(g, 2, w, end);
    turn_to_outputs(g, qs.first, qs.last, &cuts, divisors);
    for (int64_t d = part.os.first; d < part.os.last; ++d) {
      const Range os = outputs_over(g, 0, d, d + 1);
      Range before = {-1, -1};
      for (int64_t h = part.ps.first; h < part.ps.last; ++h) {
        const Range ps = outputs_over(g, 1, h, h + 1);
        T* out = dx + (d * g.input[1] + h) * width;
        if (ps.first == before.first && ps.last == before.last) {
          for (int64_t i = w; i < end; i += kL) store_first(out + i, load_first(out + i - width, end - i), end - i);
          continue;
        }
        before = ps;
        for (int64_t i = 0; i < end - w; i += kL) store(sum + i, Vec<A>{});
        for (int64_t q = qs.first; q < qs.last; q += cuts.count) {
          if (cuts.first != q) turn_to_outputs(g, q, qs.last, &cuts, divisors);
          sum_shares(g, dy, os, ps, q, cuts.count, divisors, shares);
          for (int64_t j = 0; j < cuts.count; ++j) {
            const Range seen = common(cuts.columns[j], {w, end});
            for (int64_t i = seen.first; i < seen.last; ++i) sum[i - w] += shares[j];
          }
        }
        for (int64_t i = w; i < end; i += kL) store_first(out + i, load(sum + (i - w)), end - i);
      }
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
