// Element types of the CUDA kernels. The 16-bit types are storage only: converted to float to compute.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../geometry.h"

namespace convext::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

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
template <typename T>
using Accumulate = typename AccumulateOf<T>::type;

template <typename T>
__device__ __forceinline__ Accumulate<T> to_accumulate(T x) {
  return x;
}
template <>
__device__ __forceinline__ float to_accumulate(Half x) {
  return __half2float(x);
}
template <>
__device__ __forceinline__ float to_accumulate(BFloat16 x) {
  return __bfloat162float(x);
}
template <typename T>
__device__ __forceinline__ T from_accumulate(Accumulate<T> x) {
  return x;
}
template <>
__device__ __forceinline__ Half from_accumulate<Half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ BFloat16 from_accumulate<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Four numbers that move between shared memory and registers together (16 bytes a move).
template <typename A>
struct alignas(16) Four {
  A v[4];
};

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>()) with the element type that dtype names.
template <typename F>
auto dispatch_floating(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64: return f(Type<double>());
    case DType::float16: return f(Type<Half>());
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

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float16 || dtype == DType::bfloat16 ? 2 : 4;
}
inline int64_t accumulate_bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

}  // namespace convext::cuda
