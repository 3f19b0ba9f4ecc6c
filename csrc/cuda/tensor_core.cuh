// Matrix products of a warp: fragments of small matrices, spread over the registers of its 32 lanes, and their product
// in the tensor cores. With group = lane / 4 and member = lane % 4, a register holds w elements (two of 16 bits, or one
// of 32) that are neighbours along the sum, and registers i hold:
//
//   a  16 x 8w   row group + 8 (i % 2),   columns w (member + 4 (i / 2)) ...
//   b  8w x 8    rows w (member + 4 i) ...,   column group
//   c  16 x 8    row group + 8 (i / 2),   column 2 member + i % 2          (float32)
//
// load_matrices (ldmatrix) brings four matrices of 8 rows of 16 bytes from shared memory into that order, lane l giving
// the address of row l % 8 of matrix l / 8: register j is row `group`, word `member` of matrix j. The transposed form
// gives rows 2 member and 2 member + 1 of column `group`, 16-bit elements, for matrices that lie the other way round.
//
// float32 is multiplied as TF32, which has a mantissa of ten bits: registers go through to_tf32 first. sm_75 has
// float16 only (kTensorCores), in halves of the depth. The CPU stand-in's twin is tests/emulator/tensor_core.h.
#pragma once
#include "dtype.cuh"

namespace convext::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define CONVEXT_OLD_TENSOR_CORES  // tests define it, too
#endif

// Whether there is a product of T here.
template <typename T>
constexpr bool kTensorCores = true;
#if defined(CONVEXT_OLD_TENSOR_CORES)
template <>
constexpr bool kTensorCores<BFloat16> = false;
template <>
constexpr bool kTensorCores<float> = false;
#endif

template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
#if !defined(__CUDACC__)
  emulator::load_matrices(to, row, 4, kTransposed);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#endif
}

// Rounded to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
#if !defined(__CUDACC__)
  return emulator::to_tf32(__uint_as_float(bits));
#elif defined(CONVEXT_OLD_TENSOR_CORES)
  return bits;
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#endif
}

// c += a b
template <typename T>
__device__ __forceinline__ void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b);

#if !defined(__CUDACC__)

template <>
inline void multiply_matrices<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  emulator::multiply_float16(c, a, b);
}
template <>
inline void multiply_matrices<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  emulator::multiply_bfloat16(c, a, b);
}
template <>
inline void multiply_matrices<float>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  emulator::multiply_tf32(c, a, b);
}

#else

#define CONVEXT_MMA(instruction)                                                                                  \
  asm volatile("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

#if defined(CONVEXT_OLD_TENSOR_CORES)
template <>
__device__ __forceinline__ void multiply_matrices<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
}
#else
template <>
__device__ __forceinline__ void multiply_matrices<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  CONVEXT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
__device__ __forceinline__ void multiply_matrices<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  CONVEXT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void multiply_matrices<float>(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  CONVEXT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#endif
#undef CONVEXT_MMA

#endif

}  // namespace convext::cuda
