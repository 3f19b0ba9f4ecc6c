// k-max pooling: see other_pools.h. A block has a plane. Numbers are compared as unsigned integers in the same order
// (ordered_key: zeros of both signs equal, NaN above infinity).
//
// The k-th greatest key is built from its highest bit down: a bit stays set where at least k keys are as great as the
// key so far. That is one pass over the plane and one count over the block per bit, 32 of them (64 for float64 and
// integers); planes are small and stay in the second-level cache. Then the plane is walked once more, kThreads places
// at a time: what is greater is taken, and of what is equal the first; a running count over the block says where to.
#include "../other_pools.h"
#include "dtype.cuh"
#include "launch.cuh"
#include "naive.cuh"

namespace convext::cuda {
namespace {

__device__ __forceinline__ uint32_t ordered_key(float x) {
  if (x != x) return 0xffffffffu;
  union {
    float number;
    uint32_t bits;
  } u;
  u.number = x + 0.0f;
  return u.bits >> 31 ? ~u.bits : u.bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t ordered_key(double x) {
  if (x != x) return ~uint64_t(0);
  union {
    double number;
    uint64_t bits;
  } u;
  u.number = x + 0.0;
  return u.bits >> 63 ? ~u.bits : u.bits | uint64_t(1) << 63;
}
__device__ __forceinline__ uint64_t ordered_key(int64_t x) { return uint64_t(x) ^ uint64_t(1) << 63; }

template <typename T>
struct KeyOf {
  using type = uint64_t;
  static __device__ __forceinline__ uint64_t of(T x) { return ordered_key(int64_t(x)); }
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
  static __device__ __forceinline__ uint64_t of(double x) { return ordered_key(x); }
};
template <typename T>
struct FloatKey {
  using type = uint32_t;
  static __device__ __forceinline__ uint32_t of(T x) { return ordered_key(to_accumulate(x)); }
};
template <>
struct KeyOf<float> : FloatKey<float> {};
template <>
struct KeyOf<Half> : FloatKey<Half> {};
template <>
struct KeyOf<BFloat16> : FloatKey<BFloat16> {};

struct Counts {
  int64_t before, all;  // of the threads with lower numbers, and of the block
};
// Counts over the block, by doubling steps. All threads must come.
__device__ __forceinline__ Counts count_block(int64_t mine, int64_t* shared) {
  const int thread = int(threadIdx.x);
  shared[thread] = mine;
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
    const int64_t other = thread >= step ? shared[thread - step] : 0;
    __syncthreads();
    shared[thread] += other;
    __syncthreads();
  }
  const Counts counts = {shared[thread] - mine, shared[kThreads - 1]};
  __syncthreads();
  return counts;
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void k_max_kernel(const T* __restrict__ input, int64_t channels,
                                                            int64_t places, int64_t k, bool contiguous,
                                                            T* __restrict__ output, int64_t* __restrict__ indices) {
  using Keys = KeyOf<T>;
  using Key = typename Keys::type;
  __shared__ int64_t shared[kThreads];
  const int64_t plane = blockIdx.x;
  const int64_t step = contiguous ? 1 : channels;
  const T* x = input + (contiguous ? plane * places : plane / channels * channels * places + plane % channels);

  Key least = 0;
  for (int bit = 8 * int(sizeof(Key)) - 1; bit >= 0; --bit) {
    const Key candidate = least | Key(1) << bit;
    int64_t mine = 0;
    for (int64_t i = threadIdx.x; i < places; i += kThreads) mine += Keys::of(x[i * step]) >= candidate;
    if (count_block(mine, shared).all >= k) least = candidate;
  }
  int64_t greater = 0;
  for (int64_t i = threadIdx.x; i < places; i += kThreads) greater += Keys::of(x[i * step]) > least;
  const int64_t equal_wanted = k - count_block(greater, shared).all;

  int64_t taken = 0, equal_seen = 0;
  for (int64_t first = 0; first < places; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const bool inside = i < places;
    const Key key = inside ? Keys::of(x[i * step]) : Key(0);
    const bool equal = inside && key == least;
    const Counts equals = count_block(equal, shared);
    const bool wanted = inside && (key > least || (equal && equal_seen + equals.before < equal_wanted));
    const Counts wants = count_block(wanted, shared);
    if (wanted) {
      const int64_t at = plane * k + taken + wants.before;
      output[at] = x[i * step];
      indices[at] = i;
    }
    taken += wants.all;
    equal_seen += equals.all;
  }
}

}  // namespace

void k_max_pool(const KMaxArguments& args) {
  dispatch_all(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("k_max", k_max_kernel<T>, grid_of(args.batch * args.channels), kThreads, 0, args.stream,
           static_cast<const T*>(args.input), args.channels, args.places, args.k, args.layout == Layout::contiguous,
           static_cast<T*>(args.output), args.indices);
  });
}

}  // namespace convext::cuda
