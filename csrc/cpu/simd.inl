// Vectors of the active instruction set, as compiler vector types: + - * and comparisons are theirs, and a*b+c becomes
// an FMA. Vec<float> and Vec<double> compute; Half and BFloat16 are widened to Vec<float> on load and narrowed (round
// to nearest even) on store. Elements need no alignment. "part" loads and stores touch lanes [first, last) only,
// memory outside is neither read nor written, other lanes load as zero.
namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kVectorBytes = CONVEXT_VECTOR_BYTES;
template <typename A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));

template <typename A>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <typename A>
using Vec = typename VecType<A>::type;

typedef uint32_t U32Vec __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef uint16_t U16Half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

using cpu::to_accumulate;
#if CONVEXT_ISA_LEVEL >= 2
CONVEXT_INLINE float to_accumulate(Half x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits))); }
#endif

template <typename A>
CONVEXT_INLINE Vec<A> splat(A x) {
  return x - Vec<A>{};
}

// Loads: full vector.
CONVEXT_INLINE Vec<float> load(const float* p) { return *reinterpret_cast<const Vec<float>*>(p); }
CONVEXT_INLINE Vec<double> load(const double* p) { return *reinterpret_cast<const Vec<double>*>(p); }
CONVEXT_INLINE Vec<float> load(const BFloat16* p) {
#if CONVEXT_ISA_LEVEL == 3
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(wide, 16));
#elif CONVEXT_ISA_LEVEL == 2
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<Vec<float>>(_mm256_slli_epi32(wide, 16));
#else
  const U32Vec wide = __builtin_convertvector(*reinterpret_cast<const U16Half*>(p), U32Vec) << 16;
  return reinterpret_cast<Vec<float>>(wide);
#endif
}
CONVEXT_INLINE Vec<float> load(const Half* p) {
#if CONVEXT_ISA_LEVEL == 3
  return reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif CONVEXT_ISA_LEVEL == 2
  return reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// What was loaded stays in its register: compilers like to load it again for each of its uses, which vectors across
// cache lines make dear.
template <typename V>
CONVEXT_INLINE void keep(V& v) {
#if defined(CONVEXT_EMULATE_AVX512)  // a vector is two registers
#elif CONVEXT_ISA_LEVEL == 3
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#endif
}

// Stores: full vector.
CONVEXT_INLINE void store(float* p, Vec<float> v) { *reinterpret_cast<Vec<float>*>(p) = v; }
CONVEXT_INLINE void store(double* p, Vec<double> v) { *reinterpret_cast<Vec<double>*>(p) = v; }
CONVEXT_INLINE U32Vec rounded_bits(Vec<float> v) {  // to bfloat16, as the upper half of each lane
  const U32Vec bits = reinterpret_cast<U32Vec>(v);
  return bits + 0x7fff + (bits >> 16 & 1);
}
// What is stored of v, lane by lane.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE __m256i narrowed(Vec<float> v, BFloat16) {
  const __mmask16 nan = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(v), _CMP_UNORD_Q);
  const U32Vec rounded = rounded_bits(v), quiet = U32Vec{} + 0x7fc00000;
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(
      _mm512_mask_blend_epi32(nan, reinterpret_cast<__m512i>(rounded), reinterpret_cast<__m512i>(quiet)), 16));
}
CONVEXT_INLINE __m256i narrowed(Vec<float> v, Half) {
  return _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE __m128i upper_halves(__m256i v) {
  const __m256i upper = _mm256_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1, 2, 3, 6, 7, 10, 11,
                                         14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, upper), 0x08));
}
CONVEXT_INLINE __m128i narrowed(Vec<float> v, BFloat16) {
  const __m256 nan = _mm256_cmp_ps(reinterpret_cast<__m256>(v), reinterpret_cast<__m256>(v), _CMP_UNORD_Q);
  const U32Vec rounded = rounded_bits(v), quiet = U32Vec{} + 0x7fc00000;
  return upper_halves(reinterpret_cast<__m256i>(
      _mm256_blendv_ps(reinterpret_cast<__m256>(rounded), reinterpret_cast<__m256>(quiet), nan)));
}
CONVEXT_INLINE __m128i narrowed(Vec<float> v, Half) {
  return _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#endif
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE void store(BFloat16* p, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(v, BFloat16()));
}
CONVEXT_INLINE void store(Half* p, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(v, Half()));
}
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE void store(BFloat16* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(v, BFloat16()));
}
CONVEXT_INLINE void store(Half* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(v, Half()));
}
#else
CONVEXT_INLINE void store(BFloat16* p, Vec<float> v) {
  const U32Vec nan = U32Vec{} + 0x7fc0, is_nan = reinterpret_cast<U32Vec>(v != v);
  *reinterpret_cast<U16Half*>(p) = __builtin_convertvector((nan & is_nan) | (rounded_bits(v) >> 16 & ~is_nan), U16Half);
}
CONVEXT_INLINE void store(Half* p, Vec<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) p[i] = to_half(v[i]);
}
#endif

// Of numbers of T, or NaN: nothing is rounded.
template <typename T>
CONVEXT_INLINE void store_exact(T* p, Vec<Accumulate<T>> v) {
  store(p, v);
}
#if CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE void store_exact(BFloat16* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), upper_halves(reinterpret_cast<__m256i>(v)));
}
#endif

// Lanes [first, last), clamped to the vector by the caller: 0 <= first, last <= lanes; none when last <= first.
template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_part_by_lane(const T* p, int first, int last) {
  Vec<Accumulate<T>> v = {};
  for (int i = first; i < last; ++i) v[i] = to_accumulate(p[i]);
  return v;
}
template <typename T>
CONVEXT_INLINE void store_part_by_lane(T* p, Vec<Accumulate<T>> v, int first, int last) {
  for (int i = first; i < last; ++i) p[i] = from_accumulate<T>(v[i]);
}

#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE uint32_t lane_mask(int first, int last) {  // bits [first, last)
  return last <= first ? 0u : ((1u << last) - 1) & ~((1u << first) - 1);
}
CONVEXT_INLINE Vec<float> load_part(const float* p, int first, int last) {
  return reinterpret_cast<Vec<float>>(_mm512_maskz_loadu_ps(__mmask16(lane_mask(first, last)), p));
}
CONVEXT_INLINE Vec<double> load_part(const double* p, int first, int last) {
  return reinterpret_cast<Vec<double>>(_mm512_maskz_loadu_pd(__mmask8(lane_mask(first, last)), p));
}
CONVEXT_INLINE Vec<float> load_part(const Half* p, int first, int last) {
  return reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16(lane_mask(first, last)), p)));
}
CONVEXT_INLINE Vec<float> load_part(const BFloat16* p, int first, int last) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16(lane_mask(first, last)), p));
  return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(wide, 16));
}
CONVEXT_INLINE void store_part(float* p, Vec<float> v, int first, int last) {
  _mm512_mask_storeu_ps(p, __mmask16(lane_mask(first, last)), reinterpret_cast<__m512>(v));
}
CONVEXT_INLINE void store_part(double* p, Vec<double> v, int first, int last) {
  _mm512_mask_storeu_pd(p, __mmask8(lane_mask(first, last)), reinterpret_cast<__m512d>(v));
}
CONVEXT_INLINE void store_part(Half* p, Vec<float> v, int first, int last) {
  _mm256_mask_storeu_epi16(p, __mmask16(lane_mask(first, last)), narrowed(v, Half()));
}
CONVEXT_INLINE void store_part(BFloat16* p, Vec<float> v, int first, int last) {
  _mm256_mask_storeu_epi16(p, __mmask16(lane_mask(first, last)), narrowed(v, BFloat16()));
}
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE __m256i lane_mask32(int first, int last) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
}
CONVEXT_INLINE __m256i lane_mask64(int first, int last) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return _mm256_andnot_si256(_mm256_cmpgt_epi64(_mm256_set1_epi64x(first), lane),
                             _mm256_cmpgt_epi64(_mm256_set1_epi64x(last), lane));
}
CONVEXT_INLINE Vec<float> load_part(const float* p, int first, int last) {
  return reinterpret_cast<Vec<float>>(_mm256_maskload_ps(p, lane_mask32(first, last)));
}
CONVEXT_INLINE Vec<double> load_part(const double* p, int first, int last) {
  return reinterpret_cast<Vec<double>>(_mm256_maskload_pd(p, lane_mask64(first, last)));
}
// Lanes [0, count) in up to three plain stores: on some processors a masked store takes twenty times as long.
CONVEXT_INLINE void store_first(float* p, Vec<float> v, int count) {
  if (count == 8) return store(p, v);
  const __m256 all = reinterpret_cast<__m256>(v);
  __m128 rest = _mm256_castps256_ps128(all);
  if (count & 4) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps(all, 1);
    p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
    rest = _mm_movehl_ps(rest, rest);
    p += 2;
  }
  if (count & 1) _mm_store_ss(p, rest);
}
CONVEXT_INLINE void store_first(double* p, Vec<double> v, int count) {
  if (count == 4) return store(p, v);
  const __m256d all = reinterpret_cast<__m256d>(v);
  __m128d rest = _mm256_castpd256_pd128(all);
  if (count & 2) {
    _mm_storeu_pd(p, rest);
    rest = _mm256_extractf128_pd(all, 1);
    p += 2;
  }
  if (count & 1) _mm_store_sd(p, rest);
}
CONVEXT_INLINE void store_part(float* p, Vec<float> v, int first, int last) {
  if (first == 0) return store_first(p, v, last > 0 ? last : 0);
  _mm256_maskstore_ps(p, lane_mask32(first, last), reinterpret_cast<__m256>(v));
}
CONVEXT_INLINE void store_part(double* p, Vec<double> v, int first, int last) {
  if (first == 0) return store_first(p, v, last > 0 ? last : 0);
  _mm256_maskstore_pd(p, lane_mask64(first, last), reinterpret_cast<__m256d>(v));
}
// 16-bit types have no masks: lanes [first, last) in one or two pieces that may overlap, moved to their place.
typedef unsigned __int128 Lanes16;
template <typename Word, typename T>
CONVEXT_INLINE Word load_word(const T* p) {
  Word word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}
template <typename T>
CONVEXT_INLINE __m128i load_part_bits(const T* p, int first, int last) {
  const int count = last - first;
  if (count <= 0) return _mm_setzero_si128();
  p += first;
  Lanes16 v;
  if (count >= 4)
    v = Lanes16(load_word<uint64_t>(p + count - 4)) << (count - 4) * 16 | load_word<uint64_t>(p);
  else if (count >= 2)
    v = uint64_t(load_word<uint32_t>(p + count - 2)) << (count - 2) * 16 | load_word<uint32_t>(p);
  else
    v = load_word<uint16_t>(p);
  v <<= first * 16;
  return _mm_set_epi64x(int64_t(v >> 64), int64_t(v));
}
template <typename Word, typename T>
CONVEXT_INLINE void store_word(T* p, Lanes16 v) {
  const Word word = Word(v);
  __builtin_memcpy(p, &word, sizeof word);
}
template <typename T>
CONVEXT_INLINE void store_part_bits(T* p, __m128i bits, int first, int last) {
  const int count = last - first;
  if (count <= 0) return;
  p += first;
  const Lanes16 v =
      (Lanes16(uint64_t(_mm_extract_epi64(bits, 1))) << 64 | uint64_t(_mm_cvtsi128_si64(bits))) >> first * 16;
  if (count >= 4) {
    store_word<uint64_t>(p, v);
    store_word<uint64_t>(p + count - 4, v >> (count - 4) * 16);
  } else if (count >= 2) {
    store_word<uint32_t>(p, v);
    store_word<uint32_t>(p + count - 2, v >> (count - 2) * 16);
  } else {
    store_word<uint16_t>(p, v);
  }
}
CONVEXT_INLINE Vec<float> load_part(const Half* p, int first, int last) {
  return reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(load_part_bits(p, first, last)));
}
CONVEXT_INLINE Vec<float> load_part(const BFloat16* p, int first, int last) {
  return reinterpret_cast<Vec<float>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_part_bits(p, first, last)), 16));
}
CONVEXT_INLINE void store_part(Half* p, Vec<float> v, int first, int last) {
  store_part_bits(p, narrowed(v, Half()), first, last);
}
CONVEXT_INLINE void store_part(BFloat16* p, Vec<float> v, int first, int last) {
  store_part_bits(p, narrowed(v, BFloat16()), first, last);
}
#endif
// What has no masked instruction goes lane by lane.
template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_part(const T* p, int first, int last) {
  return load_part_by_lane(p, first, last);
}
template <typename T>
CONVEXT_INLINE void store_part(T* p, Vec<Accumulate<T>> v, int first, int last) {
  store_part_by_lane(p, v, first, last);
}

// 0, 1, ... as many as there are lanes: for shuffles.
template <typename A>
using LaneSequence = std::make_integer_sequence<int, kLanes<A>>;

// Vectors of integers as wide as the elements.
template <typename A>
struct IndexType;
template <>
struct IndexType<float> {
  typedef int32_t element;
  typedef int32_t type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct IndexType<double> {
  typedef int64_t element;
  typedef int64_t type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
// Lane i + `by` in lane i, around the end.
template <typename A, typename V>
CONVEXT_INLINE V rotated(V v, int by) {
  typename IndexType<A>::type lanes = {};
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = (i + by) % kLanes<A>;
  return __builtin_shuffle(v, lanes);
}

template <typename A>
CONVEXT_INLINE typename IndexType<A>::type lane_numbers() {
  typename IndexType<A>::type v = {};
  for (int i = 0; i < kLanes<A>; ++i) v[i] = i;
  return v;
}
// a0 b0 a1 b1 ..., its first and its second half.
template <typename A>
CONVEXT_INLINE Vec<A> interleave_low(Vec<A> a, Vec<A> b) {
  return __builtin_shuffle(a, b, lane_numbers<A>() / 2 + (lane_numbers<A>() & 1) * kLanes<A>);
}
template <typename A>
CONVEXT_INLINE Vec<A> interleave_high(Vec<A> a, Vec<A> b) {
  return __builtin_shuffle(a, b, lane_numbers<A>() / 2 + (lane_numbers<A>() & 1) * kLanes<A> + kLanes<A> / 2);
}

// The first n lanes, 0 < n <= lanes.
template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_first(const T* p, int64_t n) {
  return n >= kLanes<Accumulate<T>> ? load(p) : load_part(p, 0, int(n));
}
template <typename T>
CONVEXT_INLINE void store_first(T* p, Vec<Accumulate<T>> v, int64_t n) {
  if (n >= kLanes<Accumulate<T>>)
    store(p, v);
  else
    store_part(p, v, 0, int(n));
}

// a > b ? a : b and a < b ? a : b, lane by lane, so b where one of them is NaN: one instruction each.
#if CONVEXT_ISA_LEVEL == 3
CONVEXT_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return reinterpret_cast<Vec<float>>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
CONVEXT_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
  return reinterpret_cast<Vec<float>>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#elif CONVEXT_ISA_LEVEL == 2
CONVEXT_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return reinterpret_cast<Vec<float>>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
CONVEXT_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
  return reinterpret_cast<Vec<float>>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
#endif
template <typename V>
CONVEXT_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
CONVEXT_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

// The sum of all lanes, in a fixed order: halves first.
template <typename A>
CONVEXT_INLINE A sum_lanes(Vec<A> v) {
#pragma GCC unroll 4
  for (int width = kLanes<A> / 2; width > 0; width /= 2) v += rotated<A>(v, width);
  return v[0];
}

template <typename X>
CONVEXT_INLINE constexpr X least(X a, X b) {
  return b < a ? b : a;
}
template <typename X>
CONVEXT_INLINE constexpr X greatest(X a, X b) {
  return a < b ? b : a;
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
