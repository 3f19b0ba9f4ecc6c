// The only door to a GPU: the one file with a launch in it, and so the one that differs between nvcc and the CPU
// stand-in of the tests (tests/emulator/cuda_runtime.h), which g++ finds under the same name.
//
//   launch("conv_naive_forward", kernel<T>, grid, block, shared_bytes, stream, arguments...)
//
// queues a kernel on a stream (a cudaStream_t as void*), checks that it was accepted and throws std::runtime_error with
// the kernel's name if not. Nothing here or in the kernels waits for the device. Blocks are always one-dimensional
// grids: grid_of() says so once and refuses what a grid cannot hold.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace convext::cuda {

// Of every block. Kernels say __launch_bounds__(kThreads, 1): with the 1, ptxas takes the registers it needs; without
// it, it would rather spill a few for a rounder occupancy.
constexpr int kThreads = 256;
constexpr size_t kPlainSharedBytes = 48 * 1024;  // more must be asked for

// A block's dynamic shared memory, 16-byte aligned, as an array of T.
#if defined(__CUDACC__)
#define CONVEXT_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char convext_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(convext_dynamic_shared)
#else
#define CONVEXT_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(emulator::dynamic_shared())
#endif

inline dim3 grid_of(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::runtime_error("a CUDA grid of " + std::to_string(blocks) + " blocks is too large");
  return dim3(static_cast<unsigned>(blocks));
}

// For kernels that stride through `elements`, a thread each, by for_each_element.
inline dim3 grid_for_elements(int64_t elements) {
  constexpr int64_t kMaxBlocks = 1 << 20;
  const int64_t blocks = elements / kThreads + (elements % kThreads != 0 ? 1 : 0);
  return grid_of(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            const Arguments&... arguments) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (shared_bytes > kPlainSharedBytes)  // a refusal is the next launch's error
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
#if defined(__CUDACC__)
  kernel<<<grid, block, shared_bytes, queue>>>(static_cast<Parameters>(arguments)...);
#else
  emulator::launch(kernel, grid, block, shared_bytes, queue, static_cast<Parameters>(arguments)...);
#endif
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA kernel ") + name +
                             " could not be launched: " + cudaGetErrorString(error));
}

}  // namespace convext::cuda
