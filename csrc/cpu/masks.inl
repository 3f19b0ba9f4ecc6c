// Vectors of integers as wide as the numbers they belong to, and masks: what comparing lanes needs.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Vectors of integers as wide as the values they belong to (tap numbers, lane numbers), and masks.
template <typename A>
using Index = typename IndexType<A>::element;
template <typename A>
using IndexVec = typename IndexType<A>::type;

// Places in memory: uint8_t or int32_t, as many as there are lanes.
template <typename A, typename P>
struct PlacesType {
  typedef P type __attribute__((vector_size(kLanes<A> * sizeof(P)), aligned(1), may_alias));
};

template <typename A>
CONVEXT_INLINE IndexVec<A> splat_index(int64_t i) {
  return Index<A>(i) - IndexVec<A>{};
}
template <typename A>
CONVEXT_INLINE IndexVec<A> load_index(const Index<A>* p) {
  return *reinterpret_cast<const IndexVec<A>*>(p);
}
template <typename A>
CONVEXT_INLINE void store_index(Index<A>* p, IndexVec<A> v) {
  *reinterpret_cast<IndexVec<A>*>(p) = v;
}

#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE __mmask16 is_nan(Vec<float> v) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(v), _CMP_UNORD_Q);
}
CONVEXT_INLINE __mmask8 is_nan(Vec<double> v) {
  return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(v), reinterpret_cast<__m512d>(v), _CMP_UNORD_Q);
}
CONVEXT_INLINE __mmask16 greater(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
}
CONVEXT_INLINE __mmask8 greater(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), _CMP_GT_OQ);
}
CONVEXT_INLINE __mmask16 equal(IndexVec<float> a, IndexVec<float> b) {
  return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
CONVEXT_INLINE __mmask8 equal(IndexVec<double> a, IndexVec<double> b) {
  return _mm512_cmpeq_epi64_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
CONVEXT_INLINE __mmask16 less(IndexVec<float> a, IndexVec<float> b) {
  return _mm512_cmplt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
CONVEXT_INLINE __mmask8 less(IndexVec<double> a, IndexVec<double> b) {
  return _mm512_cmplt_epi64_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
// Where the mask is set a, else b.
CONVEXT_INLINE Vec<float> choose(__mmask16 m, Vec<float> a, Vec<float> b) {
  return reinterpret_cast<Vec<float>>(
      _mm512_mask_blend_ps(m, reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
}
CONVEXT_INLINE Vec<double> choose(__mmask8 m, Vec<double> a, Vec<double> b) {
  return reinterpret_cast<Vec<double>>(
      _mm512_mask_blend_pd(m, reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(a)));
}
CONVEXT_INLINE IndexVec<float> choose(__mmask16 m, IndexVec<float> a, IndexVec<float> b) {
  return reinterpret_cast<IndexVec<float>>(
      _mm512_mask_blend_epi32(m, reinterpret_cast<__m512i>(b), reinterpret_cast<__m512i>(a)));
}
CONVEXT_INLINE IndexVec<double> choose(__mmask8 m, IndexVec<double> a, IndexVec<double> b) {
  return reinterpret_cast<IndexVec<double>>(
      _mm512_mask_blend_epi64(m, reinterpret_cast<__m512i>(b), reinterpret_cast<__m512i>(a)));
}
#else
CONVEXT_INLINE IndexVec<float> is_nan(Vec<float> v) { return reinterpret_cast<IndexVec<float>>(v != v); }
CONVEXT_INLINE IndexVec<double> is_nan(Vec<double> v) { return reinterpret_cast<IndexVec<double>>(v != v); }
CONVEXT_INLINE IndexVec<float> greater(Vec<float> a, Vec<float> b) { return reinterpret_cast<IndexVec<float>>(a > b); }
CONVEXT_INLINE IndexVec<double> greater(Vec<double> a, Vec<double> b) {
  return reinterpret_cast<IndexVec<double>>(a > b);
}
CONVEXT_INLINE IndexVec<float> equal(IndexVec<float> a, IndexVec<float> b) { return a == b; }
CONVEXT_INLINE IndexVec<double> equal(IndexVec<double> a, IndexVec<double> b) { return a == b; }
CONVEXT_INLINE IndexVec<float> less(IndexVec<float> a, IndexVec<float> b) { return a < b; }
CONVEXT_INLINE IndexVec<double> less(IndexVec<double> a, IndexVec<double> b) { return a < b; }
CONVEXT_INLINE Vec<float> choose(IndexVec<float> m, Vec<float> a, Vec<float> b) { return m ? a : b; }
CONVEXT_INLINE Vec<double> choose(IndexVec<double> m, Vec<double> a, Vec<double> b) { return m ? a : b; }
CONVEXT_INLINE IndexVec<float> choose(IndexVec<float> m, IndexVec<float> a, IndexVec<float> b) { return m ? a : b; }
CONVEXT_INLINE IndexVec<double> choose(IndexVec<double> m, IndexVec<double> a, IndexVec<double> b) { return m ? a : b; }
#endif

// Where a or b is NaN.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE __mmask16 either_nan(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_UNORD_Q);
}
CONVEXT_INLINE __mmask8 either_nan(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), _CMP_UNORD_Q);
}
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE IndexVec<float> either_nan(Vec<float> a, Vec<float> b) {
  return reinterpret_cast<IndexVec<float>>(
      _mm256_cmp_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), _CMP_UNORD_Q));
}
CONVEXT_INLINE IndexVec<double> either_nan(Vec<double> a, Vec<double> b) {
  return reinterpret_cast<IndexVec<double>>(
      _mm256_cmp_pd(reinterpret_cast<__m256d>(a), reinterpret_cast<__m256d>(b), _CMP_UNORD_Q));
}
#else
template <typename V>
CONVEXT_INLINE auto either_nan(V a, V b) {
  return is_nan(a) | is_nan(b);
}
#endif

// a, or b where it is greater. NaN is lost.
CONVEXT_INLINE Vec<float> greater_or_first(Vec<float> a, Vec<float> b) {
#if CONVEXT_ISA_LEVEL == 3
  return reinterpret_cast<Vec<float>>(_mm512_max_ps(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
#elif CONVEXT_ISA_LEVEL == 2
  return reinterpret_cast<Vec<float>>(_mm256_max_ps(reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(a)));
#elif defined(__x86_64__)
  return reinterpret_cast<Vec<float>>(_mm_max_ps(reinterpret_cast<__m128>(b), reinterpret_cast<__m128>(a)));
#else
  return b > a ? b : a;
#endif
}
CONVEXT_INLINE Vec<double> greater_or_first(Vec<double> a, Vec<double> b) {
#if CONVEXT_ISA_LEVEL == 3
  return reinterpret_cast<Vec<double>>(_mm512_max_pd(reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(a)));
#elif CONVEXT_ISA_LEVEL == 2
  return reinterpret_cast<Vec<double>>(_mm256_max_pd(reinterpret_cast<__m256d>(b), reinterpret_cast<__m256d>(a)));
#elif defined(__x86_64__)
  return reinterpret_cast<Vec<double>>(_mm_max_pd(reinterpret_cast<__m128d>(b), reinterpret_cast<__m128d>(a)));
#else
  return b > a ? b : a;
#endif
}

// The greatest, and the least, of all lanes.
template <typename A>
CONVEXT_INLINE A greatest_lane(Vec<A> v) {
#pragma GCC unroll 4
  for (int width = kLanes<A> / 2; width > 0; width /= 2) v = greater_or_first(v, rotated<A>(v, width));
  return v[0];
}
template <typename A>
CONVEXT_INLINE Index<A> greatest_lane(IndexVec<A> v) {
#pragma GCC unroll 4
  for (int width = kLanes<A> / 2; width > 0; width /= 2) v = larger(v, rotated<A>(v, width));
  return v[0];
}
template <typename A>
CONVEXT_INLINE Index<A> least_lane(IndexVec<A> v) {
#pragma GCC unroll 4
  for (int width = kLanes<A> / 2; width > 0; width /= 2) v = smaller(v, rotated<A>(v, width));
  return v[0];
}

// Whether a mask has any lane set.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE bool any(__mmask16 m) { return m != 0; }
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE bool any(IndexVec<float> m) {
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(m), reinterpret_cast<__m256i>(m));
}
CONVEXT_INLINE bool any(IndexVec<double> m) { return any(reinterpret_cast<IndexVec<float>>(m)); }
#else
template <typename Mask>
CONVEXT_INLINE bool any(Mask m) {
  bool set = false;
  for (int i = 0; i < kVectorBytes / int(sizeof(m[0])); ++i) set |= m[i] != 0;
  return set;
}
#endif

template <typename A>
CONVEXT_INLINE A lowest() {
  return -__builtin_inf();
}
// Where v is NaN or -infinity.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE __mmask16 not_above_lowest(Vec<float> v) {
  const __m512 floor = _mm512_set1_ps(lowest<float>());
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), floor, _CMP_NGT_UQ);
}
CONVEXT_INLINE __mmask8 not_above_lowest(Vec<double> v) {
  const __m512d floor = _mm512_set1_pd(lowest<double>());
  return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(v), floor, _CMP_NGT_UQ);
}
#else
CONVEXT_INLINE IndexVec<float> not_above_lowest(Vec<float> v) { return ~greater(v, splat<float>(lowest<float>())); }
CONVEXT_INLINE IndexVec<double> not_above_lowest(Vec<double> v) { return ~greater(v, splat<double>(lowest<double>())); }
#endif

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
