// Turning rows into lanes and back, and maxima with places of small boxes, planes as lanes: see pool_direct_boxes.cpp.
// For each row of outputs the input rows of its windows are turned, as many planes at a time as a vector has lanes,
// into places of lanes; a window is then read like one of channels_last, tap by tap in row-major order, and a row of
// results is turned back.

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename A>
using NanLanes = decltype(is_nan(Vec<A>{}));

template <typename T>
int box_lanes() {
  return kLanes<Accumulate<T>>;
}

// kLanes rows become kLanes columns: log2 of that steps, each a perfect shuffle of two halves.
template <typename A>
CONVEXT_INLINE void turn(Vec<A>* v) {
  constexpr int kL = kLanes<A>;
#pragma GCC unroll 4
  for (int width = 1; width < kL; width *= 2) {
    Vec<A> w[kL];
#pragma GCC unroll 8
    for (int i = 0; i < kL / 2; ++i) {
      w[2 * i] = interleave_low<A>(v[i], v[i + kL / 2]);
      w[2 * i + 1] = interleave_high<A>(v[i], v[i + kL / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kL; ++i) v[i] = w[i];
  }
}
#if CONVEXT_ISA_LEVEL == 2
// The same in 24 shuffles, of which 8 cross the halves of a register.
template <>
CONVEXT_INLINE void turn<float>(Vec<float>* v) {
  __m256 r[8], s[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 a = reinterpret_cast<__m256>(v[2 * i]), b = reinterpret_cast<__m256>(v[2 * i + 1]);
    r[2 * i] = _mm256_unpacklo_ps(a, b), r[2 * i + 1] = _mm256_unpackhi_ps(a, b);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    s[4 * i] = _mm256_shuffle_ps(r[4 * i], r[4 * i + 2], 0x44);
    s[4 * i + 1] = _mm256_shuffle_ps(r[4 * i], r[4 * i + 2], 0xee);
    s[4 * i + 2] = _mm256_shuffle_ps(r[4 * i + 1], r[4 * i + 3], 0x44);
    s[4 * i + 3] = _mm256_shuffle_ps(r[4 * i + 1], r[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = reinterpret_cast<Vec<float>>(_mm256_permute2f128_ps(s[i], s[i + 4], 0x20));
    v[i + 4] = reinterpret_cast<Vec<float>>(_mm256_permute2f128_ps(s[i], s[i + 4], 0x31));
  }
}
#endif

// `count` elements of kLanes rows into places of lanes; `room` elements of each may be read. Notes, if asked to, where
// there was a NaN.
template <bool kNan, typename T>
CONVEXT_INLINE void turn_in(const T* const* from, int64_t count, int64_t room, Accumulate<T>* to,
                            NanLanes<Accumulate<T>>* nan) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t i = 0; i < count; i += kL) {
    Vec<A> v[kL];
    if (i + kL <= room) {
#pragma GCC unroll 16
      for (int64_t l = 0; l < kL; ++l) v[l] = load(from[l] + i);
    } else {
#pragma GCC unroll 16
      for (int64_t l = 0; l < kL; ++l) v[l] = load_first(from[l] + i, count - i);
    }
    if constexpr (kNan)
#pragma GCC unroll 8
      for (int64_t l = 0; l < kL; l += 2) *nan = *nan | either_nan(v[l], v[l + 1]);
    turn<A>(v);
#pragma GCC unroll 16
    for (int64_t l = 0; l < kL; ++l) store(to + (i + l) * kL, v[l]);  // past the last place into the slack
  }
}
// And back: `count` elements of each of the first `rows` lanes, to rows that lie `pitch` apart. Vectors may be written
// past the end of a row, from the last to the first, where what follows is written later: as long as they end below
// `limit`, which row l is `step` * l nearer to.
template <typename T>
CONVEXT_INLINE void turn_out(const Accumulate<T>* from, int64_t rows, int64_t count, T* y, int64_t pitch, int64_t step,
                             int64_t limit) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t i = (count - 1) / kL * kL; i >= 0; i -= kL) {
    Vec<A> v[kL];
#pragma GCC unroll 16
    for (int64_t l = 0; l < kL; ++l) v[l] = load(from + (i + l) * kL);
    turn<A>(v);
    for (int64_t l = 0; l < rows; ++l) {
      if (l * step + i + kL <= limit)
        store(y + l * pitch + i, v[l]);
      else
        store_first(y + l * pitch + i, v[l], count - i);
    }
  }
}

// The rows of the windows of a row of outputs, turned: places[(row * columns + column) * kLanes]. Columns [first, first
// + columns) of the input. Lanes from `planes` on repeat the last plane.
template <typename T>
CONVEXT_INLINE void turn_rows(const PoolGeometry& g, const T* x, int64_t planes, Range ds, Range hs, int64_t first,
                              int64_t columns, Accumulate<T>* places) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  const bool together = columns == g.input[2];  // rows follow each other in memory
  const int64_t rows = together ? 1 : hs.last - hs.first, count = together ? (hs.last - hs.first) * columns : columns;
  for (int64_t d = ds.first; d < ds.last; ++d)
    for (int64_t h = hs.first; h < hs.first + rows; ++h, places += count * kL) {
      const T* from[kL];
      for (int64_t l = 0; l < kL; ++l)
        from[l] = x + least(l, planes - 1) * g.input_places() + (d * g.input[1] + h) * g.input[2] + first;
      turn_in<false, T>(from, count, count, places, nullptr);
    }
}

// As many outputs of a row, from q on, as kPoolTurned elements hold the columns of, `rows` rows of them; kLanes of them
// at least where they fit, as lanes_fit has seen to.
CONVEXT_INLINE Range outputs_turned(const PoolGeometry& g, const Boxes& boxes, int64_t q, int64_t rows, int64_t lanes) {
  const int64_t room = kPoolTurned / (rows * lanes), begin = boxes.spans[2][q].first;
  int64_t last = q + 1;
  while (last < g.output[2] && last - q < kPoolColumns / lanes && boxes.spans[2][last].last - begin <= room) ++last;
  return {q, last};
}

// Rows [rows.first, rows.last) of outputs of `planes` planes from x on.
template <typename T, typename P>
CONVEXT_INLINE void max_forward_lanes_of(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes,
                                         Range rows, T* y, P* places) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  A turned[kPoolTurned + kL * kL], results[kPoolColumns + kL * kL];
  for (int64_t i = rows.first; i < rows.last; ++i) {
    const Range ds = boxes.spans[0][i / g.output[1]], hs = boxes.spans[1][i % g.output[1]];
    const int64_t rows_high = hs.last - hs.first, heights = (ds.last - ds.first) * rows_high;
    for (int64_t q = 0; q < g.output[2];) {
      const Range outs = outputs_turned(g, boxes, q, heights, kL);
      const int64_t first = boxes.spans[2][outs.first].first, columns = boxes.spans[2][outs.last - 1].last - first;
      turn_rows(g, x, planes, ds, hs, first, columns, turned);
      for (; q < outs.last; ++q) {
        const Range seen = boxes.spans[2][q];
        Vec<A> best = splat<A>(lowest<A>());
        IndexVec<A> winner = {};
        const A* row = turned + (seen.first - first) * kL;
        for (int64_t t = 0, r = 0; t < ds.last - ds.first; ++t)
          for (int64_t in = 0; in < rows_high; ++in, ++r) {
            const A* at = row + r * columns * kL;
            IndexVec<A> tap = splat_index<A>((t * g.kernel[1] + in) * g.kernel[2]);
            for (int64_t s = seen.first; s < seen.last; ++s, at += kL, tap = tap + 1) {
              const Vec<A> value = load(at);
              const auto lead = takes_lead<A>(value, best);
              best = choose(lead, value, best);
              winner = choose(lead, tap, winner);
            }
          }
        store(results + (q - outs.first) * kL, best);
        Index<A> taps[kL];
        store_index<A>(taps, winner);
        for (int64_t l = 0; l < planes; ++l) places[l * g.output_places() + i * g.output[2] + q] = P(taps[l]);
      }
      turn_out(results, planes, outs.last - outs.first, y + i * g.output[2] + outs.first, g.output_places(), 0, 0);
    }
  }
}
template <typename T>
void max_forward_lanes(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows, T* y,
                       void* places) {
  const int64_t together = kLanes<Accumulate<T>>, inputs = g.input_places(), outputs = g.output_places();
  for (int64_t first = 0; first < planes; first += together) {
    const int64_t count = least(together, planes - first);
    if (g.byte_places())
      max_forward_lanes_of(g, boxes, x + first * inputs, count, rows, y + first * outputs,
                           static_cast<uint8_t*>(places) + first * outputs);
    else
      max_forward_lanes_of(g, boxes, x + first * inputs, count, rows, y + first * outputs,
                           static_cast<int32_t*>(places) + first * outputs);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
