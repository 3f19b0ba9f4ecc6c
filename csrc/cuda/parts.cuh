// Sums in parts: blocks leave theirs in the workspace, a part after the other, and a second kernel adds them in order.
#pragma once
#include "dtype.cuh"
#include "launch.cuh"

namespace convext::cuda {

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void sum_parts_kernel(const Accumulate<T>* __restrict__ parts, int elements,
                                                                int count, T* __restrict__ out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  Accumulate<T> sum = parts[i];
  for (int part = 1; part < count; ++part) sum += parts[i + part * int64_t(elements)];
  out[i] = from_accumulate<T>(sum);
}

template <typename T>
void sum_parts(const char* name, const Accumulate<T>* parts, int64_t elements, int64_t count, T* out, void* stream) {
  launch(name, sum_parts_kernel<T>, grid_of(ceil_div(elements, kThreads)), kThreads, 0, stream, parts, int(elements),
         int(count), out);
}

// Blocks that fill a GPU several times over. Tests make it small, so that parts are long.
#if !defined(CONVEXT_ENOUGH_BLOCKS)
#define CONVEXT_ENOUGH_BLOCKS 1024
#endif

// How many parts `items` are cut into, where `blocks` work on each: enough to fill a GPU, each of one item or more.
inline int64_t parts_for(int64_t blocks, int64_t items) {
  constexpr int64_t kMostParts = 256;
  int64_t parts = ceil_div(CONVEXT_ENOUGH_BLOCKS, blocks);
  if (parts > kMostParts) parts = kMostParts;
  return parts < items ? parts : items;
}

}  // namespace convext::cuda
