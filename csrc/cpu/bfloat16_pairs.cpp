// bfloat16_pairs.inl and gemm.inl for the one instruction set that has products of pairs.
#include "bfloat16_pairs.h"

#include <utility>

#include "simd.h"

#if defined(__x86_64__) && (!defined(CONVEXT_ONLY_ISA) || CONVEXT_ONLY_ISA == 3)
#pragma GCC push_options
#if defined(CONVEXT_EMULATE_AVX512)
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,fma,f16c,prefer-vector-width=512")
#endif
#define CONVEXT_ISA avx512_bf16
#define CONVEXT_ISA_LEVEL 3
#define CONVEXT_VECTOR_BYTES 64
#include "simd.inl"

#include "bfloat16_pairs.inl"
#pragma GCC pop_options

namespace convext::cpu {
template <>
const Gemm<BFloat16Pair>& gemm<BFloat16Pair>() {
  return avx512_bf16::kGemm<BFloat16Pair>;
}
const BFloat16Pairs& bfloat16_pairs() { return avx512_bf16::kBFloat16Pairs; }
}  // namespace convext::cpu

#else

namespace convext::cpu {
template <>
const Gemm<BFloat16Pair>& gemm<BFloat16Pair>() {
  static constexpr Gemm<BFloat16Pair> none = {};
  return none;
}
const BFloat16Pairs& bfloat16_pairs() {
  static constexpr BFloat16Pairs none = {};
  return none;
}
}  // namespace convext::cpu

#endif
