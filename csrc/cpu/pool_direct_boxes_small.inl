// Sums and maxima over boxes of planes so small that all of one vector's lanes of them are turned at once (see
// pool_direct_boxes.cpp): a window is then read place by place in row-major order, whatever its size, and the outputs
// are turned back. Each plane is turned once, though several rows of windows show a row of it. Maxima are exact but for
// a NaN: planes turned with one are looked at again with care.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kTurnedPlane = 4096;  // elements of such planes, and of their outputs

template <typename A>
CONVEXT_INLINE bool turned_whole(const PoolGeometry& g) {
  return greatest(g.input_places(), g.output_places()) * kLanes<A> <= kTurnedPlane;
}

// What is joined of each window, of kLanes planes. kNan: as where there is a NaN.
template <typename Op, bool kNan, typename A>
CONVEXT_INLINE void join_windows(const PoolGeometry& g, const Boxes& boxes, const A* turned, A* results) {
  constexpr int64_t kL = kLanes<A>;
  for (int64_t o = 0; o < g.output[0]; ++o)
    for (int64_t p = 0; p < g.output[1]; ++p) {
      const Range ds = boxes.spans[0][o], hs = boxes.spans[1][p];
      for (int64_t q = 0; q < g.output[2]; ++q, results += kL) {
        const int64_t first = boxes.spans[2][q].first, width = boxes.spans[2][q].last - first;
        Vec<A> joined = splat<A>(Op::nothing());
        for (int64_t d = ds.first; d < ds.last; ++d)
          for (int64_t h = hs.first; h < hs.last; ++h) {
            const A* at = turned + ((d * g.input[1] + h) * g.input[2] + first) * kL;
            for (int64_t s = 0; s < width; ++s, at += kL) {
              const Vec<A> value = load(at);
              if constexpr (kNan)
                joined = choose(takes_lead<A>(value, joined), value, joined);
              else
                joined = Op::join(joined, value);
            }
          }
        if constexpr (!Op::kMaxima)
          joined = joined / splat<A>(A(boxes.counts[0][o] * boxes.counts[1][p]) * A(boxes.counts[2][q]));
        store(results, joined);
      }
    }
}

template <typename Op, typename T>
void reduce_small(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, T* y) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  A turned[kTurnedPlane + kL * kL], results[kTurnedPlane + kL * kL];
  const int64_t inputs = g.input_places(), outputs = g.output_places();
  for (int64_t first = 0; first < planes; first += kL, x += kL * inputs, y += kL * outputs) {
    const int64_t left = planes - first, lanes = least(left, kL);
    const T* in[kL];
    for (int64_t l = 0; l < kL; ++l) in[l] = x + least(l, lanes - 1) * inputs;
    NanLanes<A> nan = is_nan(Vec<A>{});
    turn_in<Op::kMaxima>(in, inputs, (left - lanes + 1) * inputs, turned, &nan);
    if (Op::kMaxima && any(nan))
      join_windows<Op, true>(g, boxes, turned, results);
    else
      join_windows<Op, false>(g, boxes, turned, results);
    turn_out(results, lanes, outputs, y, outputs, outputs, lanes * outputs);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
