// The gradient of averages over boxes, and the average of all: see pool_direct_boxes.cpp.

namespace convext::cpu::CONVEXT_ISA {
namespace {

CONVEXT_INLINE bool same(Range a, Range b) { return a.first == b.first && a.last == b.last; }

// to[0 .. outs): what outputs from q on, in the rows (os, ps) of one plane, give to each place they see. count: what
// they count along a row.
template <typename T>
CONVEXT_INLINE void sum_shares(const PoolGeometry& g, const Boxes& boxes, const T* dy, Range os, Range ps, int64_t q,
                               int64_t outs, const Accumulate<T>* count, Accumulate<T>* to) {
  using A = Accumulate<T>;
  for (int64_t j = 0; j < outs; j += kLanes<A>) {
    const Vec<A> counted = load(count + j);
    Vec<A> shares = {};
    for (int64_t o = os.first; o < os.last; ++o)
      for (int64_t p = ps.first; p < ps.last; ++p)
        shares += load_first(dy + (o * g.output[1] + p) * g.output[2] + q + j, outs - j) /
                  (splat<A>(A(boxes.counts[0][o] * boxes.counts[1][p])) * counted);
    store(to + j, shares);
  }
}

// Rows of the input's gradient of every plane, kLanes planes at a time: rows of dy / divisor that see an input row are
// summed and turned, a column adds up the outputs that see it, and the sums are turned back. The next rows are often
// seen by the same outputs, and are copies.
template <typename T>
void avg_backward_boxes(const PoolGeometry& g, const Boxes& boxes, const T* dy, int64_t planes, Range rows, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kRoom = kTurned / kL, kNothing = kTurned + kL * kL;
  A shares[kTurned + kL * kL], turned[kNothing + kL], sums[kTurned + kL * kL], count[kRoom + kL];
  struct {
    int32_t first, second;
  } pair[kRoom];
  store(turned + kNothing, Vec<A>{});
  const Range* seers = boxes.seers[2];
  for (int64_t w = 0; w < g.input[2]; w += kRoom) {
    const int64_t width = least(kRoom, g.input[2] - w), pitch = ceil_div(width, kL) * kL;
    const Range qs = {seers[w].first, seers[w + width - 1].last};
    for (int64_t j = 0, q = qs.first; j < least(kRoom, qs.last - q); ++j) count[j] = A(boxes.counts[2][q + j]);
    // A column is mostly seen by one output or two, which nobody foresees: without a branch. Nothing lies behind the
    // rest.
    bool pairs = qs.last - qs.first <= kRoom;
    for (int64_t k = 0; k < width; ++k) {
      const Range seen = seers[w + k];
      const int64_t count = seen.last - seen.first, at = (seen.first - qs.first) * kL;
      pairs = pairs && count <= 2;
      pair[k] = {int32_t(count > 0 ? at : kNothing), int32_t(count > 1 ? at + kL : kNothing)};
    }
    for (int64_t first = 0; first < planes; first += kL) {
      const int64_t lanes = least(kL, planes - first);
      const T* from = dy + first * g.output_places();
      int64_t d = rows.first / g.input[1], h = rows.first % g.input[1];  // of row `end`
      for (int64_t i = rows.first, end = i; i < rows.last; i = end) {
        const Range os = boxes.seers[0][d], ps = boxes.seers[1][h];
        do {
          if (++h == g.input[1]) h = 0, ++d;
        } while (++end < rows.last && same(os, boxes.seers[0][d]) && same(ps, boxes.seers[1][h]));
        for (int64_t q = qs.first; q < qs.last; q += kRoom) {
          const int64_t outs = least(kRoom, qs.last - q), out_pitch = ceil_div(outs, kL) * kL;
          for (int64_t j = 0; qs.last - qs.first > kRoom && j < outs; ++j) count[j] = A(boxes.counts[2][q + j]);
          const A* share[kL];
          for (int64_t l = 0; l < lanes; ++l)
            sum_shares(g, boxes, from + l * g.output_places(), os, ps, q, outs, count, shares + l * out_pitch);
          for (int64_t l = 0; l < kL; ++l) share[l] = shares + least(l, lanes - 1) * out_pitch;
          turn_in<false>(share, outs, out_pitch, turned, nullptr);
          if (pairs) {
            for (int64_t k = 0; k < width; ++k)
              store(sums + k * kL, load(turned + pair[k].first) + load(turned + pair[k].second));
            continue;
          }
          for (int64_t k = 0; k < width; ++k) {
            Vec<A> sum = q > qs.first ? load(sums + k * kL) : Vec<A>{};
            const Range seen = common(seers[w + k], {q, q + outs});
            for (int64_t at = seen.first - q; at < seen.last - q; ++at) sum += load(turned + at * kL);
            store(sums + k * kL, sum);
          }
        }
        if (end == i + 1) {
          turn_out(sums, lanes, width, dx + first * g.input_places() + i * g.input[2] + w, g.input_places(), 0,
                   width == g.input[2] ? (rows.last - i) * width : 0);
          continue;
        }
        turn_out(sums, lanes, width, turned, pitch, 0, kTurned);
        // Vectors may be written past the end of a row, from the last to the first, where rows follow it.
        const int64_t spare = width == g.input[2] ? ceil_div(pitch, width) : rows.last + 1;
        const int64_t whole = least(end, greatest(rows.last - spare + 1, i));
        for (int64_t l = 0; l < lanes; ++l)
          for (int64_t j = pitch - kL; j >= 0; j -= kL) {
            const Vec<A> sum = load(turned + l * pitch + j);
            T* to = dx + (first + l) * g.input_places() + i * g.input[2] + w + j;
            int64_t r = i;
            for (; r < whole; ++r, to += g.input[2]) store(to, sum);
            for (; r < end; ++r, to += g.input[2]) store_first(to, sum, width - j);
          }
      }
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
  for (int64_t i = 0; i < runs; ++i)
    y[i] = from_accumulate<T>(join_run<Sums<Accumulate<T>>>(x + i * count, count) / Accumulate<T>(divisor));
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
