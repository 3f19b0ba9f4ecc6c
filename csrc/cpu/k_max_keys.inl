// What k-max pooling compares: vectors of numbers and their keys, which are integers as wide as the lanes in the order
// of the numbers; masks as bits, and the lanes that they keep brought together.

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

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
