// What the kernels of pool_direct share: vectors of places, the windows over an input place, and the padded row.

#include "masks.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Whether a value takes the lead over the best of those before it.
template <typename A>
CONVEXT_INLINE auto takes_lead(Vec<A> value, Vec<A> best) {
  return greater(value, best) | is_nan(value);
}

// places + i where there are any.
template <bool kPlaces, typename P>
CONVEXT_INLINE P* advance(P* places, int64_t i) {
  return kPlaces ? places + i : nullptr;
}

// Every other lane of a followed by b, and the reverse.
template <typename A, typename V>
CONVEXT_INLINE V even_lanes(V a, V b) {
  return __builtin_shuffle(a, b, 2 * lane_numbers<A>());
}
template <typename A, typename V>
CONVEXT_INLINE V odd_lanes(V a, V b) {
  return __builtin_shuffle(a, b, 2 * lane_numbers<A>() + 1);
}
template <typename A, typename P>
CONVEXT_INLINE IndexVec<A> load_places(const P* p, int64_t n) {
#if CONVEXT_ISA_LEVEL == 3
  if (sizeof(P) == 1) {
    const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16(lane_mask(0, int(least(n, int64_t(kLanes<A>))))), p);
    return reinterpret_cast<IndexVec<A>>(sizeof(A) == 4 ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepu8_epi64(bytes));
  }
#elif CONVEXT_ISA_LEVEL == 2
  if (sizeof(P) == 1 && sizeof(A) == 4 && n >= kLanes<A>)
    return reinterpret_cast<IndexVec<A>>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  if (sizeof(P) == 1 && sizeof(A) == 8 && n >= kLanes<A>)
    return reinterpret_cast<IndexVec<A>>(_mm256_cvtepu8_epi64(_mm_loadu_si32(p)));
#endif
  if (n >= kLanes<A>)
    return __builtin_convertvector(*reinterpret_cast<const typename PlacesType<A, P>::type*>(p), IndexVec<A>);
  IndexVec<A> v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
// A vector of places, as bytes, and what is added where one of them won.
#if CONVEXT_ISA_LEVEL == 3
template <typename A>
struct WonPlaces {
  __m128i bytes;

  CONVEXT_INLINE explicit WonPlaces(__m128i v) : bytes(v) {}
  CONVEXT_INLINE explicit WonPlaces(const uint8_t* p)
      : bytes(sizeof(A) == 4 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                             : _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))) {}
  CONVEXT_INLINE WonPlaces(const uint8_t* p, int first, int last)
      : bytes(_mm_maskz_loadu_epi8(__mmask16(lane_mask(first, last)), p)) {}
  CONVEXT_INLINE WonPlaces(const uint8_t* p, int64_t n) : WonPlaces(p, 0, int(n)) {}
  CONVEXT_INLINE WonPlaces minus(int tap) const { return WonPlaces(_mm_sub_epi8(bytes, _mm_set1_epi8(char(tap)))); }
  CONVEXT_INLINE Vec<A> add_where(int tap, Vec<A> sum, Vec<A> value) const {
    const __mmask16 won = _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(char(tap)));
    if constexpr (sizeof(A) == 4)
      return choose(won, sum + value, sum);
    else
      return choose(__mmask8(won), sum + value, sum);
  }
};
#else
// The bytes [first, last) of as many as there are lanes, in two pieces that may overlap; the others are zero.
CONVEXT_INLINE uint64_t part_of_bytes(const uint8_t* p, int first, int last) {
  const int count = last - first;
  if (count <= 0) return 0;
  p += first;
  uint32_t low, high;
  if (count == 1) return uint64_t(p[0]) << 8 * first;
  if (count >= 4) {
    __builtin_memcpy(&low, p, 4), __builtin_memcpy(&high, p + count - 4, 4);
    return (uint64_t(high) << 8 * (count - 4) | low) << 8 * first;
  }
  low = high = 0;
  __builtin_memcpy(&low, p, 2), __builtin_memcpy(&high, p + count - 2, 2);
  return uint64_t(high << 8 * (count - 2) | low) << 8 * first;
}
template <typename A>
struct WonPlaces {
  IndexVec<A> wide;

  CONVEXT_INLINE explicit WonPlaces(IndexVec<A> v) : wide(v) {}
  CONVEXT_INLINE explicit WonPlaces(const uint8_t* p) : wide(load_places<A>(p, kLanes<A>)) {}
  CONVEXT_INLINE WonPlaces(const uint8_t* p, int first, int last) {
    uint8_t bytes[8];
    const uint64_t bits = part_of_bytes(p, first, last);
    __builtin_memcpy(bytes, &bits, 8);
#if CONVEXT_ISA_LEVEL == 2
    const __m128i narrow = _mm_cvtsi64_si128(int64_t(bits));
    wide = reinterpret_cast<IndexVec<A>>(sizeof(A) == 4 ? _mm256_cvtepu8_epi32(narrow) : _mm256_cvtepu8_epi64(narrow));
#else
    wide = load_places<A>(bytes, kLanes<A>);
#endif
  }
  CONVEXT_INLINE WonPlaces(const uint8_t* p, int64_t n)
      : WonPlaces(n >= kLanes<A> ? WonPlaces(p) : WonPlaces(p, 0, int(n))) {}
  CONVEXT_INLINE WonPlaces minus(int tap) const { return WonPlaces(wide - splat_index<A>(tap)); }
  CONVEXT_INLINE Vec<A> add_where(int tap, Vec<A> sum, Vec<A> value) const {
    return sum + choose(equal(wide, splat_index<A>(tap)), value, Vec<A>{});
  }
};
#endif
template <typename A, typename P>
CONVEXT_INLINE void store_places(P* p, IndexVec<A> v, int64_t n) {
#if CONVEXT_ISA_LEVEL == 3
  if (sizeof(P) == 1) {
    const __m512i wide = reinterpret_cast<__m512i>(v);
    const __m128i bytes = sizeof(A) == 4 ? _mm512_cvtepi32_epi8(wide) : _mm512_cvtepi64_epi8(wide);
    _mm_mask_storeu_epi8(p, __mmask16(lane_mask(0, int(least(n, int64_t(kLanes<A>))))), bytes);
    return;
  }
#elif CONVEXT_ISA_LEVEL == 2
  if (sizeof(P) == 1 && sizeof(A) == 4 && n >= kLanes<A>) {  // the low byte of each element to the front of its half
    const __m256i front = _mm256_set1_epi32(0x0c080400);
    const __m256i halves = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(v), front);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
    return;
  }
#endif
  using Stored = typename PlacesType<A, P>::type;
  if (n >= kLanes<A>)
    *reinterpret_cast<Stored*>(p) = __builtin_convertvector(v, Stored);
  else
    for (int i = 0; i < n; ++i) p[i] = P(v[i]);
}

// The taps of output `out` inside the input, along one axis: PoolGeometry's, without its divisions where all are.
CONVEXT_INLINE bool window_inside(const PoolGeometry& g, int axis, int64_t out) {
  if (g.adaptive) return false;
  const int64_t start = g.place(axis, out, 0);
  return start >= 0 && start + (g.kernel[axis] - 1) * g.dilation[axis] < g.input[axis];
}
CONVEXT_INLINE Range taps_inside(const PoolGeometry& g, int axis, int64_t out) {
  if (window_inside(g, axis, out)) return {0, g.kernel[axis]};
  return {g.first_tap(axis, out), g.last_tap(axis, out)};
}
// Those that see the places [first, last).
CONVEXT_INLINE Range taps_between(const PoolGeometry& g, int axis, int64_t out, int64_t first, int64_t last) {
  if (g.place(axis, out, 0) >= first && g.place(axis, out, g.kernel[axis] - 1) < last) return {0, g.kernel[axis]};
  return {g.taps_below(axis, out, first), g.taps_below(axis, out, last)};
}
CONVEXT_INLINE int64_t counted_taps(const PoolGeometry& g, int axis, int64_t out) {
  return window_inside(g, axis, out) ? g.kernel[axis] : g.counted_taps(axis, out);
}

// One factor of the divisor per output column [first, first + count), one for all of a row; their product is
// g.divisor(o, p, q).
template <typename A>
CONVEXT_INLINE void set_column_divisors(const PoolGeometry& g, int64_t first, int64_t count, A* divisor) {
  for (int64_t j = 0; j < count + kLanes<A>; ++j)
    divisor[j] = j < count && g.divisor_override == 0 ? A(counted_taps(g, 2, first + j)) : A(1);
}
CONVEXT_INLINE int64_t row_divisor(const PoolGeometry& g, int64_t o, int64_t p) {
  return g.divisor_override != 0 ? g.divisor_override : counted_taps(g, 0, o) * counted_taps(g, 1, p);
}

// Where tap (t, r, s) of a channels_last window that starts at `start` lies in its image.
CONVEXT_INLINE int64_t first_of_row(const PoolGeometry& g, const int64_t* start, int64_t t, int64_t r, int64_t s) {
  const int64_t d = start[0] + t * g.dilation[0], h = start[1] + r * g.dilation[1], w = start[2] + s * g.dilation[2];
  return ((d * g.input[1] + h) * g.input[2] + w) * g.channels;
}

// The outputs whose windows span any of the input places [first, last) of one axis.
CONVEXT_INLINE Range outputs_over(const PoolGeometry& g, int axis, int64_t first, int64_t last) {
  const int64_t stride = g.stride[axis], begin = first + g.pad_before[axis] - (g.kernel[axis] - 1) * g.dilation[axis];
  const int64_t end = last - 1 + g.pad_before[axis];
  if (stride == 1) return {greatest(begin, int64_t(0)), least(g.output[axis], end + 1)};
  if (stride == 2) return {begin <= 0 ? 0 : (begin + 1) >> 1, least(g.output[axis], (end >> 1) + 1)};
  return {begin <= 0 ? 0 : ceil_div(begin, stride), least(g.output[axis], end / stride + 1)};
}
// All outputs of one axis that see input place i: out, out + step, ..., `count` of them, the first through `tap`, the
// next through tap - tap_step, ...
struct Seers {
  int64_t out, tap, count, step, tap_step;
};
CONVEXT_INLINE Seers seers_of(const PoolGeometry& g, int axis, int64_t i) {
  const Range outs = outputs_over(g, axis, i, i + 1);
  const int64_t stride = g.stride[axis], dilation = g.dilation[axis];
  const int64_t reach = i + g.pad_before[axis] - outs.first * stride;
  if (dilation == 1) return {outs.first, reach, greatest(outs.last - outs.first, int64_t(0)), 1, stride};
  Seers seers = {0, 0, 0, dilation, stride};
  for (int64_t out = outs.first, a = reach; out < outs.last; ++out, a -= stride) {
    if (a % dilation != 0) continue;
    if (seers.count == 0) seers.out = out, seers.tap = a / dilation;
    if (++seers.count == 2) seers.step = out - seers.out, seers.tap_step = seers.tap - a / dilation;
  }
  return seers;
}
// The input places that the windows of outputs [first, last) of one axis span, and what two ranges have in common.
CONVEXT_INLINE Range places_seen(const PoolGeometry& g, int axis, Range outs) {
  return {greatest(g.place(axis, outs.first, 0), int64_t(0)),
          least(g.place(axis, outs.last - 1, g.kernel[axis] - 1) + 1, g.input[axis])};
}
CONVEXT_INLINE Range common(Range a, Range b) { return {greatest(a.first, b.first), least(a.last, b.last)}; }
// A chunk of output columns of the contiguous layout, and the padded row it looks at. The row is stored by phase of the
// stride, so that every tap of neighbouring outputs reads neighbours: padded column origin + i lies at
// (i % stride) * pitch + i / stride, and tap s of the chunk's column j at offset[s] + j.
struct Columns {
  int64_t first, count, origin, stride, needed, pitch;
  int32_t offset[kPoolRow];
};

template <typename A>
CONVEXT_INLINE void set_columns(const PoolGeometry& g, int64_t first, Columns* columns) {
  const int64_t stride = g.stride[2], reach = (g.kernel[2] - 1) * g.dilation[2];
  columns->first = first;
  columns->count = least(pool_row_columns(g), g.output[2] - first);
  columns->origin = g.place(2, first, 0);
  columns->stride = stride;
  columns->needed = (columns->count - 1) * stride + reach + 1;
  columns->pitch = columns->count + reach / stride;
  if (stride <= 2) columns->pitch = ceil_div(columns->pitch, kLanes<A>) * kLanes<A>;
  int64_t phase = 0, at = 0;
  const int64_t dilation = g.dilation[2];
  for (int64_t s = 0; s < g.kernel[2]; ++s) {
    columns->offset[s] = int32_t(phase * columns->pitch + at);
    for (phase += dilation; phase >= stride; phase -= stride) ++at;
  }
}

// depths * heights rows of the input, to be summed into one; a maximum takes them one by one.
template <typename T>
struct Rows {
  const T* start;
  int64_t depths, depth_step, heights, height_step;
};

// Columns w .. w + lanes of the row: the sum of `rows`, or just the first, inside [0, size), else `outside`.
template <typename T, bool kSum>
CONVEXT_INLINE Vec<Accumulate<T>> load_columns(const Rows<T>& rows, int64_t w, int64_t size,
                                               Vec<Accumulate<T>> outside) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const int first = int(least(greatest(-w, int64_t(0)), kL)), last = int(greatest(least(size - w, kL), int64_t(0)));
  const bool whole = first == 0 && last == kL;
  if (last <= first) return outside;
  if (!kSum) {
    if (whole) return load(rows.start + w);
    const IndexVec<A> lane = lane_numbers<A>();
    const Vec<A> part = choose(less(lane, splat_index<A>(last)), load_part(rows.start + w, first, last), outside);
    return choose(less(lane, splat_index<A>(first)), outside, part);
  }
  Vec<A> sum = {};
  for (int64_t t = 0; t < rows.depths; ++t)
    for (int64_t r = 0; r < rows.heights; ++r) {
      const T* row = rows.start + t * rows.depth_step + r * rows.height_step + w;
      sum += whole ? load(row) : load_part(row, first, last);
    }
  return sum;
}

// Asks for memory that the next step reads; rows are too short for the processor to foresee it.
template <typename T>
CONVEXT_INLINE void prefetch_rows(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + i);
}

// Writes the padded row; `row` has kPoolRow elements and kPoolSlack beyond.
template <typename T, bool kSum>
CONVEXT_INLINE void pack_row(const Rows<T>& rows, int64_t size, const Columns& columns, Accumulate<T> outside,
                             Accumulate<T>* row) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const Vec<A> fill = splat<A>(outside);
  const int64_t w = columns.origin;
  if (columns.stride == 1 || columns.pitch == 1) {
    for (int64_t i = 0; i < columns.needed; i += kL) store(row + i, load_columns<T, kSum>(rows, w + i, size, fill));
  } else if (columns.stride == 2) {
    for (int64_t i = 0; i < columns.pitch; i += kL) {
      const Vec<A> a = load_columns<T, kSum>(rows, w + 2 * i, size, fill);
      const Vec<A> b = load_columns<T, kSum>(rows, w + 2 * i + kL, size, fill);
      store(row + i, even_lanes<A>(a, b));
      store(row + columns.pitch + i, odd_lanes<A>(a, b));
    }
  } else {
    int64_t phase = 0;
    for (int64_t i = 0; i < columns.needed; i += kL) {
      A lane[kL];
      store(lane, load_columns<T, kSum>(rows, w + i, size, fill));
      for (int64_t k = 0; k < least(kL, columns.needed - i); ++k) {
        *row = lane[k];
        row += columns.pitch;
        if (++phase == columns.stride) phase = 0, row += 1 - columns.stride * columns.pitch;
      }
    }
  }
}

// The gradient of kVectors vectors of n channels of one channels_last input place: the sum of the shares it takes from
// the outputs that see it, in order. dy (in `share`) and dx begin at channel c.
template <int kVectors, typename T, typename Share>
CONVEXT_INLINE void gather_place(const PoolGeometry& g, Share share, int64_t image, const Seers* seers, int64_t c,
                                 int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t i = 0; i < seers[0].count; ++i)
    for (int64_t j = 0; j < seers[1].count; ++j) {
      const int64_t o = seers[0].out + i * seers[0].step, p = seers[1].out + j * seers[1].step;
      const int64_t t = seers[0].tap - i * seers[0].tap_step, r = seers[1].tap - j * seers[1].tap_step;
      int64_t q = seers[2].out, tap = (t * g.kernel[1] + r) * g.kernel[2] + seers[2].tap;
      int64_t at = (((image * g.output[0] + o) * g.output[1] + p) * g.output[2] + q) * g.channels + c;
      for (int64_t k = 0; k < seers[2].count; ++k) {
        share.turn_to(g, o, p, q, tap);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[v] += share.take(at + v * kL, n);
        q += seers[2].step, tap -= seers[2].tap_step, at += seers[2].step * g.channels;
      }
    }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store_first(dx + c + v * kL, share.finish(sum[v]), n);
}

// One place, by as many vectors at once as there are.
template <typename T, typename Share>
CONVEXT_INLINE void gather_channels(const PoolGeometry& g, const Share& share, int64_t image, const Seers* seers,
                                    T* dx) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  int64_t c = 0;
  for (; c + 8 * kL <= g.channels; c += 8 * kL) gather_place<8>(g, share, image, seers, c, kL, dx);
  for (; c + 2 * kL <= g.channels; c += 2 * kL) gather_place<2>(g, share, image, seers, c, kL, dx);
  for (; c < g.channels; c += kL) gather_place<1>(g, share, image, seers, c, least(kL, g.channels - c), dx);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
