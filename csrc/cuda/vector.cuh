// Neighbours in memory that move together, in one access of up to 16 bytes where the address allows it.
#pragma once
#include "dtype.cuh"

namespace convext::cuda {

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};
template <typename T>
constexpr int kPack = 16 / int(sizeof(T));  // elements of a 16-byte access

template <int kCount, typename T>
__device__ __forceinline__ void load_pack(const T* from, Accumulate<T> (&to)[kCount]) {
  const Pack<T, kCount> pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = to_accumulate(pack.v[i]);
}
template <int kCount, typename T>
__device__ __forceinline__ void store_pack(T* to, const Accumulate<T>* from) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.v[i] = from_accumulate<T>(from[i]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// May elements be moved `count` at a time, if each such move starts a multiple of `count` elements after `data`?
template <typename T>
bool packable(const T* data, int64_t count) {
  return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * static_cast<uint64_t>(count)) == 0;
}

}  // namespace convext::cuda
