// Division by a number that a launch knows beforehand: a multiplication and a shift instead of a hundred instructions
// (in 64 bits, a function call). For 0 <= n < 2^31 (2^63) and 1 <= d, with B = 32 (64) bits and s = ceil(log2 d):
//
//   n / d = (high B bits of n m  +  n) >> s,   m = floor(2^B (2^s - d) / d) + 1
//
// Granlund and Montgomery, "Division by invariant integers using multiplication", 1994.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace convext::cuda {

__device__ __forceinline__ uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
__device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

template <typename Signed, typename Unsigned, typename Wide>
struct DivideBy {
  Signed divisor;
  Unsigned multiplier;
  int shift = 0;

  DivideBy(int64_t d = 1) : divisor(static_cast<Signed>(d)) {  // NOLINT: converts as a number does
    while ((Wide(1) << shift) < Wide(d)) ++shift;
    multiplier =
        static_cast<Unsigned>(((Wide(1) << 8 * sizeof(Signed)) * ((Wide(1) << shift) - Wide(d))) / Wide(d) + 1);
  }
  __device__ __forceinline__ Signed quotient(Signed n) const {
    return static_cast<Signed>((multiply_high(static_cast<Unsigned>(n), multiplier) + static_cast<Unsigned>(n)) >>
                               shift);
  }
  __device__ __forceinline__ Signed remainder(Signed n) const { return n - quotient(n) * divisor; }
};

__extension__ using Wide128 = unsigned __int128;
using Divide = DivideBy<int32_t, uint32_t, uint64_t>;
using Divide64 = DivideBy<int64_t, uint64_t, Wide128>;

// Splits n into quotient (returned) and remainder (left in n).
__device__ __forceinline__ int32_t split(int32_t& n, const Divide& by) {
  const int32_t q = by.quotient(n);
  n -= q * by.divisor;
  return q;
}
__device__ __forceinline__ int64_t split(int64_t& n, const Divide64& by) {
  const int64_t q = by.quotient(n);
  n -= q * by.divisor;
  return q;
}

}  // namespace convext::cuda
