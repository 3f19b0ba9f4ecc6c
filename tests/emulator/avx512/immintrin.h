// A stand-in for <immintrin.h> that gives the AVX-512 instructions of csrc/cpu to a machine that has AVX2 only, so that
// the AVX-512 kernels can be tested everywhere: CONVEXT_EMULATE_AVX512=1 makes setup.py put this folder before the
// compiler's, and for_each_isa.inl compile the avx512 namespace, 64-byte vectors and tiles and all, for AVX2.
// Arithmetic on such vectors the compiler splits in two; what is left are the intrinsics below, each under its own
// name, each a loop over lanes with the meaning of Intel's manual. Lanes outside a mask are neither read nor written:
// the tests put NaN around every operand, so a wrong mask shows.
//
// An intrinsic that is not here fails to compile ("target specific option mismatch"): add it.
#pragma once
#include_next <immintrin.h>

#include <cstdint>
#include <cstring>

#define CONVEXT_EMULATED inline __attribute__((always_inline))
#define CONVEXT_CALLED inline __attribute__((noinline))  // a call a use: kernels unroll much, and compile faster so

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of vector types as template arguments
namespace convext::emulated {

// Vectors as arrays of lanes.
template <typename Element, typename Vector>
struct Lanes {
  static constexpr int kCount = sizeof(Vector) / sizeof(Element);
  Element lane[kCount] = {};

  CONVEXT_EMULATED Lanes() = default;
  CONVEXT_EMULATED explicit Lanes(Vector v) { std::memcpy(lane, &v, sizeof v); }
  CONVEXT_EMULATED operator Vector() const {
    Vector v;
    std::memcpy(&v, lane, sizeof v);
    return v;
  }
};

template <typename Element, typename Vector>
CONVEXT_CALLED Vector maskz_load(uint32_t mask, const void* p) {
  Lanes<Element, Vector> v;
  for (int i = 0; i < v.kCount; ++i)
    if (mask >> i & 1) std::memcpy(&v.lane[i], static_cast<const Element*>(p) + i, sizeof(Element));
  return v;
}

template <typename Element, typename Vector>
CONVEXT_CALLED void mask_store(void* p, uint32_t mask, Vector vector) {
  const Lanes<Element, Vector> v(vector);
  for (int i = 0; i < v.kCount; ++i)
    if (mask >> i & 1) std::memcpy(static_cast<Element*>(p) + i, &v.lane[i], sizeof(Element));
}

template <typename Element, typename Vector>
CONVEXT_CALLED Vector sqrt(Vector a) {
  Lanes<Element, Vector> v(a);
  for (Element& lane : v.lane)
    lane = sizeof(Element) == 4 ? Element(__builtin_sqrtf(float(lane))) : Element(__builtin_sqrt(double(lane)));
  return v;
}

// b's lanes where the mask is set, else a's.
template <typename Element, typename Vector>
CONVEXT_CALLED Vector mask_blend(uint32_t mask, Vector a, Vector b) {
  Lanes<Element, Vector> v(a);
  const Lanes<Element, Vector> other(b);
  for (int i = 0; i < v.kCount; ++i)
    if (mask >> i & 1) v.lane[i] = other.lane[i];
  return v;
}

// v's lanes where the mask is set, at the front; the rest zero.
template <typename Element, typename Vector>
CONVEXT_CALLED Vector maskz_compress(uint32_t mask, Vector v) {
  const Lanes<Element, Vector> from(v);
  Lanes<Element, Vector> to;
  for (int i = 0, at = 0; i < from.kCount; ++i)
    if (mask >> i & 1) to.lane[at++] = from.lane[i];
  return to;
}

template <typename X>
CONVEXT_EMULATED bool holds(X a, X b, int predicate) {
  switch (predicate) {
    case _CMP_EQ_OQ: return a == b;
    case _CMP_LT_OQ: return a < b;
    case _CMP_LE_OQ: return a <= b;
    case _CMP_GT_OQ: return a > b;
    case _CMP_GE_OQ: return a >= b;
    case _CMP_NGT_UQ: return !(a > b);
    case _CMP_UNORD_Q: return a != a || b != b;
    default: __builtin_trap();  // not in use
  }
}

template <typename Element, typename Vector>
CONVEXT_CALLED uint32_t compare(Vector a, Vector b, int predicate) {
  const Lanes<Element, Vector> x(a), y(b);
  uint32_t mask = 0;
  for (int i = 0; i < x.kCount; ++i) mask |= uint32_t(holds(x.lane[i], y.lane[i], predicate)) << i;
  return mask;
}

template <typename Element, typename Vector>
CONVEXT_CALLED Vector max(Vector a, Vector b) {  // b where one is NaN
  Lanes<Element, Vector> x(a);
  const Lanes<Element, Vector> y(b);
  for (int i = 0; i < x.kCount; ++i) x.lane[i] = x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i];
  return x;
}

template <typename Element, typename Vector>
CONVEXT_CALLED Vector min(Vector a, Vector b) {  // b where one is NaN
  Lanes<Element, Vector> x(a);
  const Lanes<Element, Vector> y(b);
  for (int i = 0; i < x.kCount; ++i) x.lane[i] = x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i];
  return x;
}

template <typename Element, typename Vector>
CONVEXT_CALLED Vector set1(Element e) {
  Lanes<Element, Vector> v;
  for (Element& lane : v.lane) lane = e;
  return v;
}

// Each lane converted; of the narrower vector the first lanes, the rest zero.
template <typename From, typename To, typename Result, typename Vector>
CONVEXT_CALLED Result convert(Vector vector) {
  const Lanes<From, Vector> from(vector);
  Lanes<To, Result> to;
  for (int i = 0; i < from.kCount && i < to.kCount; ++i) to.lane[i] = To(from.lane[i]);
  return to;
}

CONVEXT_CALLED __m512 cvtph_ps(__m256i half) {
  Lanes<__m256, __m512> v;
  v.lane[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
  v.lane[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
  return v;
}

template <int ROUNDING>
CONVEXT_CALLED __m256i cvtps_ph(__m512 vector) {
  const Lanes<__m256, __m512> v(vector);
  return _mm256_set_m128i(_mm256_cvtps_ph(v.lane[1], ROUNDING), _mm256_cvtps_ph(v.lane[0], ROUNDING));
}

CONVEXT_CALLED __m512i slli_epi32(__m512i vector, unsigned bits) {
  Lanes<uint32_t, __m512i> v(vector);
  for (uint32_t& lane : v.lane) lane = bits < 32 ? lane << bits : 0;
  return v;
}

CONVEXT_CALLED __m512i srli_epi32(__m512i vector, unsigned bits) {
  Lanes<uint32_t, __m512i> v(vector);
  for (uint32_t& lane : v.lane) lane = bits < 32 ? lane >> bits : 0;
  return v;
}

// Zeros of the same sign for subnormal numbers.
CONVEXT_EMULATED float flushed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

// Odd elements first; each product is added exactly, the sum rounded to nearest whatever MXCSR says, subnormal numbers
// are zeros on the way in and out.
CONVEXT_CALLED __m512 dpbf16_ps(__m512 sum, __m512i a, __m512i b) {
  Lanes<float, __m512> c(sum);
  const Lanes<uint32_t, __m512i> x(a), y(b);
  const auto widened = [](uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return flushed(f);
  };
  for (int i = 0; i < c.kCount; ++i) {
    const float odd =
        __builtin_fmaf(widened(x.lane[i] & 0xffff0000), widened(y.lane[i] & 0xffff0000), flushed(c.lane[i]));
    c.lane[i] = flushed(__builtin_fmaf(widened(x.lane[i] << 16), widened(y.lane[i] << 16), flushed(odd)));
  }
  return c;
}

}  // namespace convext::emulated
#pragma GCC diagnostic pop
#pragma GCC pop_options
#undef CONVEXT_EMULATED
#undef CONVEXT_CALLED

#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_cvtps_ph
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#undef _mm512_dpbf16_ps

#define _mm512_maskz_loadu_ps convext::emulated::maskz_load<float, __m512>
#define _mm_maskz_loadu_ps convext::emulated::maskz_load<float, __m128>
#define _mm512_maskz_loadu_pd convext::emulated::maskz_load<double, __m512d>
#define _mm256_maskz_loadu_epi16 convext::emulated::maskz_load<uint16_t, __m256i>
#define _mm_maskz_loadu_epi8 convext::emulated::maskz_load<uint8_t, __m128i>
#define _mm512_mask_storeu_ps convext::emulated::mask_store<float, __m512>
#define _mm512_mask_storeu_pd convext::emulated::mask_store<double, __m512d>
#define _mm256_mask_storeu_epi16 convext::emulated::mask_store<uint16_t, __m256i>
#define _mm_mask_storeu_epi8 convext::emulated::mask_store<uint8_t, __m128i>
#define _mm512_mask_blend_ps convext::emulated::mask_blend<float, __m512>
#define _mm512_mask_blend_pd convext::emulated::mask_blend<double, __m512d>
#define _mm512_mask_blend_epi32 convext::emulated::mask_blend<int32_t, __m512i>
#define _mm512_mask_blend_epi64 convext::emulated::mask_blend<int64_t, __m512i>
#define _mm512_maskz_compress_epi32 convext::emulated::maskz_compress<int32_t, __m512i>
#define _mm512_maskz_compress_epi64 convext::emulated::maskz_compress<int64_t, __m512i>
#define _mm512_sqrt_ps convext::emulated::sqrt<float, __m512>
#define _mm512_sqrt_pd convext::emulated::sqrt<double, __m512d>
#define _mm512_max_ps convext::emulated::max<float, __m512>
#define _mm512_min_ps convext::emulated::min<float, __m512>
#define _mm512_max_pd convext::emulated::max<double, __m512d>
#define _mm512_set1_ps convext::emulated::set1<float, __m512>
#define _mm512_set1_pd convext::emulated::set1<double, __m512d>
#define _mm512_cmp_ps_mask convext::emulated::compare<float, __m512>
#define _mm512_cmp_pd_mask convext::emulated::compare<double, __m512d>
#define _mm512_cmpeq_epi32_mask(a, b) convext::emulated::compare<int32_t, __m512i>(a, b, _CMP_EQ_OQ)
#define _mm512_cmpeq_epi64_mask(a, b) convext::emulated::compare<int64_t, __m512i>(a, b, _CMP_EQ_OQ)
#define _mm_cmpeq_epi8_mask(a, b) convext::emulated::compare<uint8_t, __m128i>(a, b, _CMP_EQ_OQ)
#define _mm512_cmplt_epi32_mask(a, b) convext::emulated::compare<int32_t, __m512i>(a, b, _CMP_LT_OQ)
#define _mm512_cmplt_epi64_mask(a, b) convext::emulated::compare<int64_t, __m512i>(a, b, _CMP_LT_OQ)
#define _mm512_cvtepu8_epi32 convext::emulated::convert<uint8_t, uint32_t, __m512i, __m128i>
#define _mm512_cvtepu8_epi64 convext::emulated::convert<uint8_t, uint64_t, __m512i, __m128i>
#define _mm512_cvtepu16_epi32 convext::emulated::convert<uint16_t, uint32_t, __m512i, __m256i>
#define _mm512_cvtepi32_epi16 convext::emulated::convert<uint32_t, uint16_t, __m256i, __m512i>
#define _mm512_cvtepi32_epi8 convext::emulated::convert<uint32_t, uint8_t, __m128i, __m512i>
#define _mm512_cvtepi64_epi8 convext::emulated::convert<uint64_t, uint8_t, __m128i, __m512i>
#define _mm512_cvtph_ps convext::emulated::cvtph_ps
#define _mm512_cvtps_ph(vector, rounding) convext::emulated::cvtps_ph<rounding>(vector)
#define _mm512_slli_epi32 convext::emulated::slli_epi32
#define _mm512_srli_epi32 convext::emulated::srli_epi32
#define _mm512_dpbf16_ps(sum, a, b) convext::emulated::dpbf16_ps(sum, (__m512i)(a), (__m512i)(b))
