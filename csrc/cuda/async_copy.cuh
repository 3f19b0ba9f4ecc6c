// Copies from global to shared memory that do not pass through registers and that a thread need not wait for: cp.async
// of sm_80 and later. Before that they are plain copies, done at once. On the CPU stand-in
// (tests/emulator/async_copy.h) they are made at the wait.
//
//   copy_async<16>(to, from, inside);   // zeros where not inside; `from` is then not read
//   commit_async();                     // closes a group of the copies since the last one
//   wait_async<1>();                    // until all of this thread's groups but the latest one are there
//
// What other threads have copied is seen after they have waited and a barrier.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace convext::cuda {

#if !defined(__CUDACC__)

template <int kBytes>
inline void copy_async(void* to, const void* from, bool inside) {
  emulator::copy_async(to, from, kBytes, inside ? kBytes : 0);
}
inline void commit_async() { emulator::commit_async_copies(); }
template <int kButLatest>
void wait_async() {
  emulator::wait_async_copies(kButLatest);
}

#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  static_assert(kBytes == 16, "the form that goes past the first-level cache copies 16 bytes");
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kButLatest>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kButLatest) : "memory");
}

#else

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  static_assert(kBytes == 16, "an int4");
  *static_cast<int4*>(to) = inside ? *static_cast<const int4*>(from) : int4{0, 0, 0, 0};
}
__device__ __forceinline__ void commit_async() {}
template <int kButLatest>
__device__ __forceinline__ void wait_async() {}

#endif

}  // namespace convext::cuda
