// Element types of the CPU kernels. Half and BFloat16 are storage only: 16 bits, converted to float to compute.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "../geometry.h"

namespace convext::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity, NaN
  if (rest >= 0x0400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));      // normal: rebias the exponent
  return bits_to_float(sign | float_to_bits(float(rest) * 0x1p-24f));                  // zero, subnormal
}

// Round to nearest, ties to even.
inline BFloat16 to_bfloat16(float f) {
  const uint32_t bits = float_to_bits(f);
  if (f != f) return {0x7fc0};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline Half to_half(float f) {
  const uint32_t bits = float_to_bits(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and up round to infinity
  if (rest < 0x38800000) {  // below 2^-14: subnormal; adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    const float shifted = bits_to_float(rest) + 0.5f;
    return {uint16_t(sign | (float_to_bits(shifted) - 0x3f000000))};
  }
  return {uint16_t(sign | ((rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13))};
}

// The type that sums are kept in, and the way there and back.
template <typename T>
struct AccumulateOf {
  using type = T;
};
template <>
struct AccumulateOf<Half> {
  using type = float;
};
template <>
struct AccumulateOf<BFloat16> {
  using type = float;
};
// Two numbers that are multiplied and added together (bfloat16_pairs.h).
struct BFloat16Pair {
  BFloat16 even, odd;
};
template <>
struct AccumulateOf<BFloat16Pair> {
  using type = float;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::type;

template <typename T>
inline Accumulate<T> to_accumulate(T x) {
  return x;
}
template <>
inline float to_accumulate(Half x) {
  return to_float(x);
}
template <>
inline float to_accumulate(BFloat16 x) {
  return to_float(x);
}
template <typename T>
inline T from_accumulate(Accumulate<T> x) {
  return x;
}
template <>
inline Half from_accumulate<Half>(float x) {
  return to_half(x);
}
template <>
inline BFloat16 from_accumulate<BFloat16>(float x) {
  return to_bfloat16(x);
}

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>()) with the element type that dtype names. CONVEXT_WITHOUT_FLOAT16 leaves out that type's
// kernels, for tests that have no time for them.
template <typename F>
auto dispatch_floating(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64: return f(Type<double>());
#if defined(CONVEXT_WITHOUT_FLOAT16)
    case DType::float16: throw std::invalid_argument("built with CONVEXT_WITHOUT_FLOAT16");
#else
    case DType::float16: return f(Type<Half>());
#endif
    case DType::bfloat16: return f(Type<BFloat16>());
    default: return f(Type<float>());
  }
}
template <typename F>
auto dispatch_all(DType dtype, F&& f) {
  switch (dtype) {
    case DType::uint8: return f(Type<uint8_t>());
    case DType::int8: return f(Type<int8_t>());
    case DType::int16: return f(Type<int16_t>());
    case DType::int32: return f(Type<int32_t>());
    case DType::int64: return f(Type<int64_t>());
    default: return dispatch_floating(dtype, f);
  }
}

}  // namespace convext::cpu
