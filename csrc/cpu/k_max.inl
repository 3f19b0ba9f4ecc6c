// The k greatest numbers of a line: see k_max.cpp. Keys and places are integers as wide as the lanes of a vector: 32
// bits, or 64 where the numbers have 64.

#include "masks.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Vectors of numbers of T as they are compared: integers as such, 16-bit floats widened.
template <typename T, bool kInteger = std::is_integral_v<T>>
struct NumbersOf {
  using type = Vec<LineLane<T>>;
};
template <typename T>
struct NumbersOf<T, true> {
  using type = IndexVec<LineLane<T>>;
};
template <typename T>
using Numbers = typename NumbersOf<T>::type;

template <typename T>
CONVEXT_INLINE Numbers<T> load_numbers(const T* p) {
  using A = LineLane<T>;
  if constexpr (!std::is_integral_v<T>)
    return load(p);
  else if constexpr (sizeof(T) >= 4)
    return load_index<A>(p);
  else
    return __builtin_convertvector(*reinterpret_cast<const typename PlacesType<A, T>::type*>(p), IndexVec<A>);
}
template <typename T>
CONVEXT_INLINE Numbers<T> load_first_numbers(const T* p, int64_t count) {
  Numbers<T> v = {};
  if constexpr (std::is_integral_v<T>)
    for (int i = 0; i < int(count); ++i) v[i] = p[i];
  else
    v = load_first(p, count);
  return v;
}

template <typename A>
constexpr Index<A> kLeastKey = sizeof(A) == 4 ? Index<A>(INT32_MIN) : Index<A>(INT64_MIN);
template <typename A>
constexpr Index<A> kGreatestKey = sizeof(A) == 4 ? Index<A>(INT32_MAX) : Index<A>(INT64_MAX);
template <typename A>
constexpr uint32_t kAllLanes = (uint32_t(1) << kLanes<A>)-1;

// Integers in the order of the numbers: zeros of both signs are equal, NaN is above infinity.
template <typename A>
CONVEXT_INLINE IndexVec<A> turned_negatives(IndexVec<A> bits) {
  return choose(less(bits, IndexVec<A>{}), bits ^ splat_index<A>(kGreatestKey<A>), bits);
}
CONVEXT_INLINE IndexVec<float> ordered_keys(IndexVec<float> v) { return v; }
CONVEXT_INLINE IndexVec<double> ordered_keys(IndexVec<double> v) { return v; }
CONVEXT_INLINE IndexVec<float> ordered_keys(Vec<float> v) {
  const IndexVec<float> bits = reinterpret_cast<IndexVec<float>>(v + Vec<float>{});
  return choose(is_nan(v), splat_index<float>(kGreatestKey<float>), turned_negatives<float>(bits));
}
CONVEXT_INLINE IndexVec<double> ordered_keys(Vec<double> v) {
  const IndexVec<double> bits = reinterpret_cast<IndexVec<double>>(v + Vec<double>{});
  return choose(is_nan(v), splat_index<double>(kGreatestKey<double>), turned_negatives<double>(bits));
}
// The number that has this key, in every lane.
template <typename T>
CONVEXT_INLINE Numbers<T> number_of(Index<LineLane<T>> key) {
  const IndexVec<LineLane<T>> keys = splat_index<LineLane<T>>(key);
  if constexpr (std::is_integral_v<T>)
    return keys;
  else
    return reinterpret_cast<Numbers<T>>(turned_negatives<LineLane<T>>(keys));
}
template <typename T>
CONVEXT_INLINE Numbers<T> lowest_number() {
  using A = LineLane<T>;
  if constexpr (std::is_integral_v<T>)
    return splat_index<A>(kLeastKey<A>);
  else
    return splat(lowest<A>());
}
template <typename V>
CONVEXT_INLINE auto below(V v, V bound) {  // not where v is NaN
  if constexpr (std::is_integral_v<std::remove_reference_t<decltype(v[0])>>)
    return less(v, bound);
  else
    return greater(bound, v);
}
CONVEXT_INLINE Vec<float> greater_number(Vec<float> a, Vec<float> b) { return greater_or_first(a, b); }
CONVEXT_INLINE Vec<double> greater_number(Vec<double> a, Vec<double> b) { return greater_or_first(a, b); }
template <typename V>
CONVEXT_INLINE V greater_number(V a, V b) {
  return larger(a, b);
}

// A mask as bits, one per lane, and how many are set.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE uint32_t bits_of(uint32_t mask) { return mask; }
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE uint32_t bits_of(IndexVec<float> mask) {
  return uint32_t(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
}
CONVEXT_INLINE uint32_t bits_of(IndexVec<double> mask) {
  return uint32_t(_mm256_movemask_pd(reinterpret_cast<__m256d>(mask)));
}
#elif defined(__x86_64__)
CONVEXT_INLINE uint32_t bits_of(IndexVec<float> mask) {
  return uint32_t(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
}
CONVEXT_INLINE uint32_t bits_of(IndexVec<double> mask) {
  return uint32_t(_mm_movemask_pd(reinterpret_cast<__m128d>(mask)));
}
#else
template <typename Mask>
CONVEXT_INLINE uint32_t bits_of(Mask mask) {
  uint32_t bits = 0;
  for (int i = 0; i < kVectorBytes / int(sizeof(mask[0])); ++i) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
}
#endif
CONVEXT_INLINE int64_t count_bits(uint32_t bits) {
#if CONVEXT_ISA_LEVEL >= 2
  return __builtin_popcount(bits);
#else
  return (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3 & 1);
#endif
}

template <typename V>
CONVEXT_INLINE uint32_t bits_not_below(V v, V bound) {
#if CONVEXT_ISA_LEVEL == 3
  constexpr int kCount = kVectorBytes / int(sizeof(v[0]));
  return bits_of(below(v, bound)) ^ ((uint32_t(1) << kCount) - 1);
#else
  return bits_of(~below(v, bound));
#endif
}

// The lanes whose bits are set, brought to the front in their order; what is behind them is any.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE IndexVec<float> packed(IndexVec<float> v, uint32_t bits) {
  return reinterpret_cast<IndexVec<float>>(_mm512_maskz_compress_epi32(__mmask16(bits), reinterpret_cast<__m512i>(v)));
}
CONVEXT_INLINE IndexVec<double> packed(IndexVec<double> v, uint32_t bits) {
  return reinterpret_cast<IndexVec<double>>(_mm512_maskz_compress_epi64(__mmask8(bits), reinterpret_cast<__m512i>(v)));
}
#elif CONVEXT_ISA_LEVEL == 2
// For every mask of kCount lanes, the numbers of 32-bit parts that come first: a byte each.
template <int kCount>
struct FirstLanes {
  uint64_t of[1 << kCount];
  constexpr FirstLanes() : of() {
    constexpr int kParts = 8 / kCount;
    for (int bits = 0; bits < 1 << kCount; ++bits) {
      int at = 0;
      for (int part = 0; part < 8; ++part)
        if (bits >> (part / kParts) & 1) of[bits] |= uint64_t(part) << 8 * at++;
    }
  }
};
template <int kCount>
constexpr FirstLanes<kCount> kFirstLanes{};

template <int kCount>
CONVEXT_INLINE __m256i first_parts(uint32_t bits) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kFirstLanes<kCount>.of[bits])));
}
template <int kCount>
CONVEXT_INLINE __m256i packed_parts(__m256i v, uint32_t bits) {
  return _mm256_permutevar8x32_epi32(v, first_parts<kCount>(bits));
}
CONVEXT_INLINE IndexVec<float> packed(IndexVec<float> v, uint32_t bits) {
  return reinterpret_cast<IndexVec<float>>(packed_parts<8>(reinterpret_cast<__m256i>(v), bits));
}
CONVEXT_INLINE IndexVec<double> packed(IndexVec<double> v, uint32_t bits) {
  return reinterpret_cast<IndexVec<double>>(packed_parts<4>(reinterpret_cast<__m256i>(v), bits));
}
#else
template <typename V>
CONVEXT_INLINE V packed(V v, uint32_t bits) {
  V front = v;
  int at = 0;
  for (int i = 0; i < kVectorBytes / int(sizeof(v[0])); ++i) {
    front[at] = v[i];
    at += int(bits >> i & 1);
  }
  return front;
}
#endif

// The numbers of those lanes.
template <typename A>
CONVEXT_INLINE IndexVec<A> packed_lanes(uint32_t bits) {
#if CONVEXT_ISA_LEVEL == 2
  if (sizeof(A) == 4) return reinterpret_cast<IndexVec<A>>(first_parts<8>(bits));
#endif
  return packed(lane_numbers<A>(), bits);
}

// Keys of the maxima of kVectors * kLanes pieces, NaN passed over: element i of `vectors` whole vectors belongs to
// piece i modulo that.
template <typename T, int kVectors>
void few_maxima(const T* x, int64_t vectors, Index<LineLane<T>>* keys) {
  using A = LineLane<T>;
  constexpr int kUnroll = kVectors < 4 ? 4 : kVectors;
  Numbers<T> most[kUnroll];
#pragma GCC unroll 8
  for (int u = 0; u < kUnroll; ++u) most[u] = lowest_number<T>();
  int64_t i = 0;
  for (; i + kUnroll <= vectors; i += kUnroll)
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) most[u] = greater_number(most[u], load_numbers(x + (i + u) * kLanes<A>));
#pragma GCC unroll 8
  for (int u = 0; u < kUnroll; ++u)
    if (i + u < vectors) most[u] = greater_number(most[u], load_numbers(x + (i + u) * kLanes<A>));
#pragma GCC unroll 8
  for (int u = kVectors; u < kUnroll; ++u) most[u % kVectors] = greater_number(most[u % kVectors], most[u]);
#pragma GCC unroll 8
  for (int u = 0; u < kVectors; ++u) store_index<A>(keys + u * kLanes<A>, ordered_keys(most[u]));
}
template <typename T>
void many_maxima(const T* x, int64_t vectors, int64_t pieces, Index<LineLane<T>>* keys) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  int64_t first = 0;
  for (; first + 3 * pieces <= vectors; first += 3 * pieces)  // the first time there are as many
    for (int64_t i = 0; i < pieces; ++i) {
      const T* const from = x + (first + i) * kL;
      const Numbers<T> most =
          first == 0 ? lowest_number<T>() : reinterpret_cast<Numbers<T>>(load_index<A>(keys + i * kL));
      const Numbers<T> more =
          greater_number(greater_number(most, load_numbers(from)), load_numbers(from + pieces * kL));
      store_index<A>(keys + i * kL,
                     reinterpret_cast<IndexVec<A>>(greater_number(more, load_numbers(from + 2 * pieces * kL))));
    }
  for (int64_t i = 0; first < vectors; ++first, i = i + 1 < pieces ? i + 1 : 0) {
    const Numbers<T> most = reinterpret_cast<Numbers<T>>(load_index<A>(keys + i * kL));
    store_index<A>(keys + i * kL, reinterpret_cast<IndexVec<A>>(greater_number(most, load_numbers(x + first * kL))));
  }
  for (int64_t i = 0; i < pieces; ++i)
    store_index<A>(keys + i * kL, ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(keys + i * kL))));
}

template <typename A>
CONVEXT_INLINE Index<A> least_lane(IndexVec<A> v) {
#pragma GCC unroll 4
  for (int width = kLanes<A> / 2; width > 0; width /= 2) v = smaller(v, rotated<A>(v, width));
  return v[0];
}
template <typename A>
CONVEXT_INLINE Index<A> greatest_lane(IndexVec<A> v) {
#pragma GCC unroll 4
  for (int width = kLanes<A> / 2; width > 0; width /= 2) v = larger(v, rotated<A>(v, width));
  return v[0];
}

// How many of `count` keys, followed by the least key up to a whole vector, are no less than `key`, which is not that.
template <typename A>
CONVEXT_INLINE int64_t count_from(const Index<A>* keys, int64_t count, Index<A> key) {
  constexpr int64_t kL = kLanes<A>;
  const IndexVec<A> under = splat_index<A>(key - 1);
  int64_t found = 0, i = 0;
#if CONVEXT_ISA_LEVEL < 3  // a mask is a vector of -1 and 0
  if (count >= 8 * kL) {
    IndexVec<A> sums[4] = {};
    for (; i + 4 * kL <= count; i += 4 * kL)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sums[u] -= less(under, load_index<A>(keys + i + u * kL));
    IndexVec<A> sum = sums[0] + sums[1] + (sums[2] + sums[3]);
#pragma GCC unroll 4
    for (int width = kLanes<A> / 2; width > 0; width /= 2) sum += rotated<A>(sum, width);
    found = sum[0];
  }
#endif
  for (; i < count; i += kL) found += count_bits(bits_of(less(under, load_index<A>(keys + i))));
  return found;
}

// The mean of two keys, the greater of which it may be.
template <typename K>
CONVEXT_INLINE K middle_of(K less_one, K greater_one) {
  return (less_one & greater_one) + ((less_one ^ greater_one) >> 1) + 1;
}

// A key that `kept` of the keys are no less than: at least k, and where that is more than `enough` it is the k-th
// greatest key itself. Starts from `key` and `kept` of that kind; none is greater than `most`.
template <typename A>
struct Cut {
  Index<A> key, most;
  int64_t kept;

  CONVEXT_INLINE void narrow(const Index<A>* keys, int64_t count, int64_t k, int64_t enough) {
    for (int step = 1; kept > enough && key < most; ++step) {
      if (step % kLineSteps == 0 && !between(keys, count)) break;
      const Index<A> middle = middle_of(key, most);
      const int64_t found = count_from<A>(keys, count, middle);
      const bool up = found >= k;
      most = up ? most : middle - 1;
      key = up ? middle : key;
      kept = up ? found : kept;
    }
  }
  // Moves both ends to keys that are there: where many are equal that ends it. Whether something is left to halve.
  bool between(const Index<A>* keys, int64_t count) {
    const IndexVec<A> first = splat_index<A>(key), last = splat_index<A>(most);
    IndexVec<A> low = last, high = first;
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const IndexVec<A> v = load_index<A>(keys + i);
      low = smaller(low, choose(less(v, first), last, v));
      high = larger(high, choose(less(last, v), first, v));
    }
    key = least_lane<A>(low), most = greatest_lane<A>(high);
    return key < most;
  }
};

// Turns `count` numbers into keys, in place, with the least key behind them up to a whole vector. The cut before all.
template <typename T>
CONVEXT_INLINE Cut<LineLane<T>> key_numbers(Index<LineLane<T>>* keys, int64_t count) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  const IndexVec<A> bottom = splat_index<A>(kLeastKey<A>), top = splat_index<A>(kGreatestKey<A>);
  IndexVec<A> low = top, high = bottom;
  int64_t i = 0;
  for (; i + kL <= count; i += kL) {
    const IndexVec<A> v = ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(keys + i)));
    low = smaller(low, v), high = larger(high, v);
    store_index<A>(keys + i, v);
  }
  if (i < count) {
    const IndexVec<A> v = ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(keys + i)));
    const auto real = less(lane_numbers<A>(), splat_index<A>(count - i));
    low = smaller(low, choose(real, v, top)), high = larger(high, choose(real, v, bottom));
    store_index<A>(keys + i, choose(real, v, bottom));
  }
  return {least_lane<A>(low), greatest_lane<A>(high), count};
}

// The numbers of x[0 .. n) that are not below the bound, and their places; how many. kRare: most vectors have none.
template <typename T>
struct Sieve {
  using A = LineLane<T>;
  Numbers<T> bound;
  Index<A>*numbers, *places;
  int64_t count;

  CONVEXT_INLINE void take(Numbers<T> v, IndexVec<A> place, uint32_t lanes) {
    const uint32_t bits = lanes & bits_not_below(v, bound);
    store_index<A>(numbers + count, packed(reinterpret_cast<IndexVec<A>>(v), bits));
    store_index<A>(places + count, packed_lanes<A>(bits) + place);
    count += count_bits(bits);
  }
};
template <typename T, bool kRare>
CONVEXT_INLINE int64_t sift(const T* x, int64_t n, Numbers<T> bound, Index<LineLane<T>>* numbers,
                            Index<LineLane<T>>* places) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  Sieve<T> sieve = {bound, numbers, places, 0};
  int64_t i = 0;
  if (kRare)
    for (; i + 4 * kL <= n; i += 4 * kL) {
      const Numbers<T> a = load_numbers(x + i), b = load_numbers(x + i + kL);
      const Numbers<T> c = load_numbers(x + i + 2 * kL), d = load_numbers(x + i + 3 * kL);
      if (bits_of(below(a, bound) & below(b, bound) & below(c, bound) & below(d, bound)) == kAllLanes<A>) continue;
      for (int64_t j = i; j < i + 4 * kL; j += kL) sieve.take(load_numbers(x + j), splat_index<A>(j), kAllLanes<A>);
    }
  IndexVec<A> place = splat_index<A>(i);
  for (; i + kL <= n; i += kL, place += splat_index<A>(kL)) sieve.take(load_numbers(x + i), place, kAllLanes<A>);
  if (i < n) sieve.take(load_first_numbers(x + i, n - i), place, (uint32_t(1) << (n - i)) - 1);
  return sieve.count;
}
template <typename T>
CONVEXT_INLINE void take_all(const T* x, int64_t n, Index<LineLane<T>>* numbers, Index<LineLane<T>>* places) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t i = 0; i < n; i += kL) {
    const Numbers<T> v = i + kL <= n ? load_numbers(x + i) : load_first_numbers(x + i, n - i);
    store_index<A>(numbers + i, reinterpret_cast<IndexVec<A>>(v));
    store_index<A>(places + i, lane_numbers<A>() + splat_index<A>(i));
  }
}

// Of `count` places, in place, the k whose keys are greater than the cut or, the first of them, equal.
template <typename A>
CONVEXT_INLINE void keep_places(const Index<A>* keys, int64_t count, int64_t k, const Cut<A>& cut, Index<A>* places) {
  const IndexVec<A> key = splat_index<A>(cut.key);
  const int64_t above = cut.kept == k || cut.key == kGreatestKey<A> ? 0 : count_from<A>(keys, count, cut.key + 1);
  int64_t equals = k - above, found = 0;  // where k are kept there are no more equal ones than that
  for (int64_t i = 0; found < k; i += kLanes<A>) {
    const IndexVec<A> v = load_index<A>(keys + i);
    uint32_t same = bits_of(equal(v, key));
    while (count_bits(same) > equals) same &= ~(uint32_t(1) << (31 - __builtin_clz(same)));
    equals -= count_bits(same);
    const uint32_t bits = same | bits_of(less(key, v));
    store_index<A>(places + found, packed(load_index<A>(places + i), bits));
    found += count_bits(bits);
  }
}

// Of the numbers that were collected, in `keys` and `places`, to y and indices: the k greatest, in order. step: from
// place to place of x.
template <typename T>
CONVEXT_INLINE void choose_collected(const T* x, int64_t step, int64_t count, int64_t k, Index<LineLane<T>>* keys,
                                     Index<LineLane<T>>* places, T* y, int64_t* indices) {
  using A = LineLane<T>;
  Cut<A> cut = key_numbers<T>(keys, count);
  cut.narrow(keys, count, k, k);
  keep_places<A>(keys, count, k, cut, places);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t place = places[j];
    indices[j] = place;
    y[j] = x[place * step];
  }
}

// y and indices: the k greatest of x[0 .. n) and their places, in order. keys, places: of n numbers and a vector more.
template <typename T>
void line_greatest(const T* x, int64_t n, int64_t k, Index<LineLane<T>>* keys, Index<LineLane<T>>* places, T* y,
                   int64_t* indices) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t vectors = n / kL;
  int64_t pieces = ceil_div(k + k / 2, kL), count = n;  // vectors of pieces
  if (pieces == 3) pieces = 4;
  if (pieces > 4 && pieces < 8) pieces = 8;
  static_assert(kLinePiece >= 3);  // what many_maxima counts on
  if (pieces * kLinePiece <= vectors) {
    if (pieces == 1)
      few_maxima<T, 1>(x, vectors, keys);
    else if (pieces == 2)
      few_maxima<T, 2>(x, vectors, keys);
    else if (pieces == 4)
      few_maxima<T, 4>(x, vectors, keys);
    else if (pieces == 8)
      few_maxima<T, 8>(x, vectors, keys);
    else
      many_maxima(x, vectors, pieces, keys);
    IndexVec<A> low = load_index<A>(keys), high = low;
    for (int64_t i = kL; i < pieces * kL; i += kL) {
      const IndexVec<A> v = load_index<A>(keys + i);
      low = smaller(low, v), high = larger(high, v);
    }
    Cut<A> bound = {least_lane<A>(low), greatest_lane<A>(high), pieces * kL};
    bound.narrow(keys, pieces * kL, k, k + k / 4);
    const bool rare = k * kLineRare <= vectors;
    const Numbers<T> number = number_of<T>(bound.key);
    count = rare ? sift<T, true>(x, n, number, keys, places) : sift<T, false>(x, n, number, keys, places);
  } else {
    take_all(x, n, keys, places);
  }
  choose_collected(x, 1, count, k, keys, places, y, indices);
}

// The same for channels side by side, `step` from place to place, which are lanes here: maxima of 2 k pieces of the
// places, a bound per channel, and lists of what is not below it. Not done where one grows past its `room`: then false.
// keys, places: of channels and a vector more, times `room`; maxima: of as many, times 2 k; counts: as many.
template <typename T>
CONVEXT_INLINE Numbers<T> load_channels(const T* x, int64_t count) {
  return count >= kLanes<LineLane<T>> ? load_numbers(x) : load_first_numbers(x, count);
}
template <typename A>
CONVEXT_INLINE IndexVec<A> lane_bounds(const Index<A>* maxima, int64_t pieces, int64_t pitch, int64_t k) {
  const IndexVec<A> one = splat_index<A>(1), zero = {}, enough = splat_index<A>(k + k / 4), wanted = splat_index<A>(k);
  IndexVec<A> low = load_index<A>(maxima), high = low, kept = splat_index<A>(pieces);
  for (int64_t i = 1; i < pieces; ++i) {
    const IndexVec<A> v = load_index<A>(maxima + i * pitch);
    low = smaller(low, v), high = larger(high, v);
  }
  for (int step = 0; step < 2 * kLineSteps; ++step) {
    const IndexVec<A> open = choose(less(enough, kept), choose(less(low, high), one, zero), zero);
    if (bits_of(less(zero, open)) == 0) break;
    const IndexVec<A> middle = middle_of(low, high);
    IndexVec<A> found = {};
    for (int64_t i = 0; i < pieces; ++i) found += choose(less(load_index<A>(maxima + i * pitch), middle), zero, one);
    const IndexVec<A> up = choose(less(found, wanted), zero, open), down = open - up;
    low = choose(less(zero, up), middle, low), kept = choose(less(zero, up), found, kept);
    high = choose(less(zero, down), middle - 1, high);
  }
  return low;
}
// The maxima so far, over three places of so many channels.
template <typename T>
CONVEXT_INLINE void raise_maxima(const T* a, const T* b, const T* c, int64_t channels, Index<LineLane<T>>* maxima) {
  using A = LineLane<T>;
  for (int64_t i = 0; i < channels; i += kLanes<A>) {
    const int64_t count = channels - i;
    const Numbers<T> most = reinterpret_cast<Numbers<T>>(load_index<A>(maxima + i));
    const Numbers<T> two =
        greater_number(greater_number(most, load_channels(a + i, count)), load_channels(b + i, count));
    store_index<A>(maxima + i, reinterpret_cast<IndexVec<A>>(greater_number(two, load_channels(c + i, count))));
  }
}
template <typename T>
CONVEXT_INLINE Numbers<T> number_at(const Index<LineLane<T>>* p) {
  return reinterpret_cast<Numbers<T>>(load_index<LineLane<T>>(p));
}
// To each channel's list what is not below its bound. Whether there was room.
template <typename T>
CONVEXT_INLINE bool collect(const T* x, int64_t channels, Numbers<T> bound, int64_t place, int64_t room,
                            Index<LineLane<T>>* keys, Index<LineLane<T>>* places, Index<LineLane<T>>* counts) {
  using A = LineLane<T>;
  const Numbers<T> v = load_channels(x, channels);
  uint32_t bits = bits_not_below(v, bound);
  if (channels < kLanes<A>) bits &= (uint32_t(1) << channels) - 1;
  for (; bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    const int64_t count = counts[lane];
    if (count == room - kLanes<A>) return false;
    keys[lane * room + count] = reinterpret_cast<IndexVec<A>>(v)[lane];
    places[lane * room + count] = Index<A>(place);
    counts[lane] = Index<A>(count + 1);
  }
  return true;
}
template <typename T>
bool channels_greatest(const T* x, int64_t step, int64_t n, int64_t channels, int64_t k, int64_t room,
                       Index<LineLane<T>>* keys, Index<LineLane<T>>* places, Index<LineLane<T>>* maxima,
                       Index<LineLane<T>>* counts, T* y, int64_t* indices) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t pieces = 2 * k, pitch = ceil_div(channels, kL) * kL, round = pieces * step;
  for (int64_t i = 0; i < pieces * pitch; i += kL)
    store_index<A>(maxima + i, reinterpret_cast<IndexVec<A>>(lowest_number<T>()));
  int64_t first = 0;
  for (; first + 3 * pieces <= n; first += 3 * pieces)
    for (int64_t i = 0; i < pieces; ++i) {
      const T* const from = x + (first + i) * step;
      raise_maxima(from, from + round, from + 2 * round, channels, maxima + i * pitch);
    }
  for (int64_t i = 0; first < n; ++first, i = i + 1 < pieces ? i + 1 : 0) {
    const T* const from = x + first * step;
    raise_maxima(from, from, from, channels, maxima + i * pitch);
  }
  for (int64_t i = 0; i < pieces * pitch; i += kL)
    store_index<A>(maxima + i, ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(maxima + i))));
  Index<A>* const bounds = maxima;  // in place of the first piece's
  for (int64_t c = 0; c < pitch; c += kL) {
    IndexVec<A> bound = lane_bounds<A>(maxima + c, pieces, pitch, k);
    if constexpr (!std::is_integral_v<T>) bound = turned_negatives<A>(bound);
    store_index<A>(bounds + c, bound);
    store_index<A>(counts + c, IndexVec<A>{});
  }
  for (int64_t place = 0; place < n; ++place) {
    const T* const from = x + place * step;
    for (int64_t c = 0; c < channels; c += 4 * kL) {
      const int64_t end = least(c + 4 * kL, channels);
      if (end == c + 4 * kL) {
        const uint32_t bits = bits_not_below(load_numbers(from + c), number_at<T>(bounds + c)) |
                              bits_not_below(load_numbers(from + c + kL), number_at<T>(bounds + c + kL)) |
                              bits_not_below(load_numbers(from + c + 2 * kL), number_at<T>(bounds + c + 2 * kL)) |
                              bits_not_below(load_numbers(from + c + 3 * kL), number_at<T>(bounds + c + 3 * kL));
        if (bits == 0) continue;
      }
      for (int64_t i = c; i < end; i += kL)
        if (!collect(from + i, end - i, number_at<T>(bounds + i), place, room, keys + i * room, places + i * room,
                     counts + i))
          return false;
    }
  }
  for (int64_t c = 0; c < channels; ++c)
    choose_collected(x + c, step, counts[c], k, keys + c * room, places + c * room, y + c * k, indices + c * k);
  return true;
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
