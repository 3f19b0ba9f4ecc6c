// The gradient of a maximum, output by output: each adds its dy to the place it won, one addition whatever the window.
//
// Sums are kept on the stack in the accumulate type: a few rows of a few planes, or of the channels that fill a line of
// the cache, with a margin for what windows show besides. So no output asks whether its place lies inside. Rows
// that no later window shows are written out, the others move up. Neighbouring outputs of a plane often have the same
// winner, whose sum the second has to wait for: meanwhile go the other planes. An output near the edge of a part
// belongs to both sides; what falls outside the part is dropped. Traffic: dy, places and dx once; the buffer stays in
// the nearest caches. Limits: those of scatter_of.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// What is added up: rows [top, top + rows) from column `left` on, of which those of `hs` and `ws` are wanted. An
// element is that of a lane (a plane or a channel): `lane` from one lane to the next, `column` from one column to the
// next.
template <typename A>
struct Sums {
  int64_t top, rows, left, pitch, column, lane, lanes;
  Range hs, ws;
  A sum[kPoolScatter + kPoolPlanes * kPoolSlack];
  int32_t offset[kPoolOffsets];  // of a tap from the window's first

  CONVEXT_INLINE A* at(int64_t h, int64_t w) { return sum + (h - top) * pitch + (w - left) * column; }

  // What will be wanted of the rows [first, last); the margin may hold anything.
  CONVEXT_INLINE void clear(int64_t first, int64_t last) {
    const int64_t count = (ws.last - ws.first) * column, n = least(count, int64_t(kLanes<A>));
    for (int64_t l = 0; l < (column == 1 ? lanes : 1); ++l)
      for (int64_t h = greatest(first, hs.first); h < least(last, hs.last); ++h) {
        A* to = at(h, ws.first) + l * lane;
        for (int64_t j = 0; j < count; j += kLanes<A>) store_first(to + least(j, count - n), Vec<A>{}, n);
      }
  }
  // Makes `start` the first row.
  CONVEXT_INLINE void move_up(int64_t start) {
    const int64_t count = (ws.last - ws.first) * column, end = top + rows, distance = (start - top) * pitch;
    for (int64_t l = 0; l < (column == 1 ? lanes : 1); ++l)
      for (int64_t h = greatest(start, hs.first); h < least(end, hs.last); ++h) {
        A* from = at(h, ws.first) + l * lane;
        for (int64_t j = 0; j < count; j += kLanes<A>)
          store_first(from - distance + j, load_first(from + j, count - j), count - j);
      }
    top = start;
    clear(greatest(end, start), top + rows);
  }
};

// `count` outputs of a row, of kCount lanes. kDepth: only those that won through the taps [first, first + taps).
template <int kCount, bool kInner, bool kDepth, typename A, typename P>
CONVEXT_INLINE void scatter_row(const A* dy, int64_t dy_lane, int64_t dy_step, const P* places, int64_t places_lane,
                                int64_t step, int64_t count, int64_t first, int64_t taps, int64_t stride,
                                const int32_t* offset, int64_t lane, A* sum) {
  for (int64_t q = 0; q < count; ++q, dy += dy_step, places += step, sum += stride)
#pragma GCC unroll 16
    for (int l = 0; l < kCount; ++l) {
      const int64_t tap = places[kInner ? l : l * places_lane] - (kDepth ? first : 0);
      if ((kDepth || sizeof(P) > 1) && uint64_t(tap) >= uint64_t(taps)) continue;
      sum[offset[tap] + (kInner ? l : l * lane)] += dy[kInner ? l : l * dy_lane];
    }
}
// Of as many lanes as there are; dy of halves is widened on the way.
template <int kCount, bool kInner, bool kDepth, typename T, typename P>
CONVEXT_INLINE void scatter_lanes(const T* dy, const P* places, int64_t pitch, int64_t step, int64_t count,
                                  int64_t first, int64_t taps, int64_t stride, Sums<Accumulate<T>>* sums,
                                  Accumulate<T>* sum) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kRun = kInner ? 1 : 64;
  if constexpr (sizeof(T) == sizeof(A)) {
    scatter_row<kCount, kInner, kDepth>(dy, pitch, step, places, pitch, step, count, first, taps, stride, sums->offset,
                                        sums->lane, sum);
  } else {
    A wide[kInner ? kCount + kL : kCount * kRun];
    for (int64_t q = 0; q < count; q += kRun) {
      const int64_t n = least(count - q, kRun);
      if (kInner)
        for (int64_t l = 0; l < kCount; l += kL) store(wide + l, load_first(dy + q * step + l, kCount - l));
      else
        for (int64_t l = 0; l < kCount; ++l)
          for (int64_t i = 0; i < n; i += kL) store(wide + l * kRun + i, load_first(dy + l * pitch + q + i, n - i));
      scatter_row<kCount, kInner, kDepth>(wide, kRun, 1, places + q * step, pitch, step, n, first, taps, stride,
                                          sums->offset, sums->lane, sum + q * stride);
    }
  }
}
template <int kMost, bool kInner, typename T, typename P>
CONVEXT_INLINE void scatter(const PoolGeometry& g, const T* dy, const P* places, int64_t count, int64_t first,
                            Sums<Accumulate<T>>* sums, Accumulate<T>* sum) {
  const int64_t taps = g.kernel[1] * g.kernel[2], stride = g.stride[2] * sums->column;
  const int64_t pitch = kInner ? 1 : g.output_places(), step = kInner ? g.channels : 1;
  const bool depth = g.kernel[0] > 1;
  int64_t l = 0;
  for (; l + kMost <= sums->lanes; l += kMost) {
    if (depth)
      scatter_lanes<kMost, kInner, true>(dy + l * pitch, places + l * pitch, pitch, step, count, first, taps, stride,
                                         sums, sum + l * sums->lane);
    else
      scatter_lanes<kMost, kInner, false>(dy + l * pitch, places + l * pitch, pitch, step, count, first, taps, stride,
                                          sums, sum + l * sums->lane);
  }
  for (; l < sums->lanes; ++l)
    scatter_lanes<1, kInner, true>(dy + l * pitch, places + l * pitch, pitch, step, count, first, taps, stride, sums,
                                   sum + l * sums->lane);
}

// Writes the wanted rows before `until` and drops them.
template <bool kInner, typename T>
CONVEXT_INLINE void write_rows(const PoolGeometry& g, int64_t until, Sums<Accumulate<T>>* sums, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const Range hs = sums->hs, ws = sums->ws;
  while (sums->top < until) {
    const int64_t end = least(until, sums->top + sums->rows);
    for (int64_t h = greatest(sums->top, hs.first); h < least(end, hs.last); ++h) {
      const A* from = sums->at(h, ws.first);
      if (kInner) {
        T* to = dx + (h * g.input[2] + ws.first) * g.channels;
        for (int64_t w = ws.first; w < ws.last; ++w, from += sums->column, to += g.channels)
          for (int64_t l = 0; l < sums->lanes; l += kL)
            store_first(to + l, load_first(from + l, sums->lanes - l), sums->lanes - l);
      } else {
        const int64_t count = ws.last - ws.first, n = least(count, kL);
        for (int64_t l = 0; l < sums->lanes; ++l) {
          T* to = dx + l * g.input_places() + h * g.input[2] + ws.first;
          for (int64_t j = 0; j < count; j += kL) {
            const int64_t i = least(j, count - n);
            store_first(to + i, load_first(from + l * sums->lane + i, n), n);
          }
        }
      }
    }
    if (end >= hs.last) return;
    sums->move_up(end);
  }
}

// A part of the input of some planes, or of some channels.
template <bool kInner, typename T, typename P>
void max_backward_scatter(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int kLanesAtOnce = kInner ? 64 / int(sizeof(A)) : int(kPoolPlanes);
  const PoolGeometry& g = args.geometry;
  const ScatterShape shape = scatter_of(g, kLanesAtOnce);
  const int64_t places_in = g.input_places(), places_out = g.output_places(), step = kInner ? g.channels : 1;
  const int64_t first = part.channels.first, plane = part.image * g.channels;
  const int64_t out = kInner ? plane * places_out + first : (plane + first) * places_out;
  const T* dy = static_cast<const T*>(args.grad_output) + out;
  const P* places = static_cast<const P*>(args.places) + out;
  T* dx = static_cast<T*>(args.output) + (kInner ? plane * places_in + first : (plane + first) * places_in);
  const int64_t taps = g.kernel[1] * g.kernel[2];
  Sums<A> sums;
  sums.rows = shape.rows;
  sums.column = kInner ? kLanesAtOnce : 1;
  sums.pitch = shape.width * sums.column;
  sums.lane = kInner ? 1 : shape.rows * shape.width + kPoolSlack;
  sums.lanes = part.channels.last - first;
  for (int64_t r = 0, tap = 0; r < g.kernel[1]; ++r)
    for (int64_t s = 0; s < g.kernel[2]; ++s, ++tap)
      sums.offset[tap] = int32_t((r * g.dilation[1] * shape.width + s * g.dilation[2]) * sums.column);
  for (int64_t tap = taps; tap < 256; ++tap) sums.offset[tap] = 0;  // no such place: never read out of bounds

  const int64_t reach = (g.kernel[1] - 1) * g.dilation[1];
  const Range ps = outputs_over(g, 1, part.ps.first, part.ps.last);
  sums.hs = part.ps;
  for (int64_t d = part.os.first; d < part.os.last; ++d) {
    const Seers os = seers_of(g, 0, d);
    for (int64_t w = 0; w < g.input[2]; w += shape.columns) {
      sums.ws = {w, least(w + shape.columns, g.input[2])};
      const Range qs = outputs_over(g, 2, sums.ws.first, sums.ws.last);
      T* to = dx + d * g.input[1] * g.input[2] * step;
      sums.left = least(sums.ws.first, g.place(2, qs.first, 0));
      sums.top = least(sums.hs.first, g.place(1, ps.first, 0));
      sums.clear(sums.top, sums.top + sums.rows);
      for (int64_t p = ps.first; p < ps.last; ++p) {
        const int64_t start = g.place(1, p, 0);
        if (start + reach >= sums.top + sums.rows) write_rows<kInner>(g, start, &sums, to);
        for (int64_t i = 0; i < os.count; ++i) {
          const int64_t o = os.out + i * os.step, tap = (os.tap - i * os.tap_step) * taps;
          const int64_t at = ((o * g.output[1] + p) * g.output[2] + qs.first) * step;
          scatter<kLanesAtOnce, kInner>(g, dy + at, places + at, qs.last - qs.first, tap, &sums,
                                        sums.at(start, g.place(2, qs.first, 0)));
        }
      }
      write_rows<kInner>(g, sums.hs.last, &sums, to);
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
