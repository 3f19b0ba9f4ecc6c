// What the pooling files share.
#pragma once
#include <limits>

#include "../algorithms.h"
#include "dtype.cuh"

namespace convext::cuda {

// PoolAlgorithm::max_indices: the winner's flat index (d h w) in its input plane, from its place in the window.
void max_pool_indices(const PoolArguments& args);

// Places are bytes or int32 (PoolGeometry::byte_places).
__device__ __forceinline__ int load_place(const void* places, bool bytes, int64_t at) {
  return bytes ? static_cast<const uint8_t*>(places)[at] : static_cast<const int32_t*>(places)[at];
}
__device__ __forceinline__ void store_place(void* places, bool bytes, int64_t at, int64_t place) {
  if (bytes)
    static_cast<uint8_t*>(places)[at] = static_cast<uint8_t>(place);
  else
    static_cast<int32_t*>(places)[at] = static_cast<int32_t>(place);
}

// The maximum of nothing.
template <typename A>
constexpr A kLowest =
    std::numeric_limits<A>::has_infinity ? -std::numeric_limits<A>::infinity() : std::numeric_limits<A>::lowest();

// Whether `value`, which comes later, wins over `best`: the first greatest does, the last NaN over everything.
template <typename A>
__device__ __forceinline__ bool wins(A value, A best) {
  return value > best || value != value;
}

}  // namespace convext::cuda
