// Does the stand-in show what it promises to show? Run by tests/test_cuda_emulator.py, a scenario a time; see there for
// what each must print and how it must end.
#include <cuda_runtime.h>

#include <iostream>
#include <vector>

#include "../../csrc/cuda/async_copy.cuh"
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/tensor_core.cuh"

namespace {

using convext::cuda::launch;

constexpr int kCount = 64;

// out[i] = in[i - 1], by way of shared memory.
template <bool kWithBarrier>
__global__ void shift_kernel(const int* in, int* out) {
  __shared__ int passed[kCount];
  const int i = int(threadIdx.y * blockDim.x + threadIdx.x);
  passed[i] = in[i];
  if (kWithBarrier) __syncthreads();
  out[i] = passed[(i + kCount - 1) % kCount];
}

template <bool kWithBarrier>
bool shifts() {
  std::vector<int> in(kCount), out(kCount);
  for (int i = 0; i < kCount; ++i) in[i] = i * i;
  launch("shift", shift_kernel<kWithBarrier>, dim3(2), dim3(16, 4), 0, nullptr, in.data(), out.data());
  for (int i = 0; i < kCount; ++i)
    if (out[i] != in[(i + kCount - 1) % kCount]) return false;
  return true;
}

__global__ void dynamic_kernel(double* out) {
  CONVEXT_DYNAMIC_SHARED(double, passed);
  const int i = threadIdx.x;
  const bool poisoned = passed[i] != passed[i];
  __syncthreads();
  passed[i] = i;
  __syncthreads();
  out[i] = poisoned ? passed[blockDim.x - 1 - i] : -1;
}

__global__ void overrun_kernel(double* out) {
  CONVEXT_DYNAMIC_SHARED(double, passed);
  out[0] = passed[kCount];  // one past the last
}

__global__ void static_poison_kernel(bool* poisoned) {
  __shared__ float values[8];
  *poisoned = values[3] != values[3];
  values[3] = 1;
}

__global__ void some_wait_kernel() {
  if (threadIdx.x < 3) __syncthreads();
}

__global__ void wait_apart_kernel(int* out) {
  if (threadIdx.x % 2 == 0) {
    *out = 1;
    __syncthreads();
  } else {
    *out = 2;
    __syncthreads();
  }
}

__global__ void plain_kernel(int* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = int(threadIdx.x); }

// The sum over the lanes below, and what the warps around it have to do with it: nothing.
__global__ void scan_kernel(const int* in, int* out) {
  const int i = int(threadIdx.x), lane = i % 32;
  int sum = in[i];
  for (unsigned by = 1; by < 32; by *= 2) {
    const int below = __shfl_up_sync(~0u, sum, by);
    if (lane >= int(by)) sum += below;
  }
  const int total = __shfl_sync(~0u, sum, 31);
  int turned = in[i];
  for (int by = 16; by > 0; by /= 2) turned += __shfl_xor_sync(~0u, turned, by);
  const bool odd = lane % 2 != 0;
  const bool votes = __ballot_sync(~0u, odd) == 0xaaaaaaaau && __any_sync(~0u, odd) && !__all_sync(~0u, odd);
  const int above = __shfl_down_sync(0xffffu << (lane / 16 * 16), in[i], 1, 16);
  const bool right = total == turned && votes && above == (lane % 16 == 15 ? in[i] : in[i + 1]);
  out[i] = right ? sum : -1;
}

// A warp passes values on through shared memory.
template <bool kSynchronised>
__global__ void pass_kernel(int* out) {
  __shared__ int passed[kCount];
  const int i = int(threadIdx.x);
  passed[i] = i;
  if (kSynchronised) __syncwarp();
  out[i] = passed[i ^ 31];
}

enum Missing { kNothing, kWait, kBarrier };
template <Missing kMissing>
__global__ void async_kernel(const float* in, float* out) {
  __shared__ convext::cuda::Four<float> passed[2][8];
  const int i = int(threadIdx.x);
  convext::cuda::copy_async<16>(&passed[0][i], in + 4 * i, true);
  convext::cuda::commit_async();
  convext::cuda::copy_async<16>(&passed[1][i], in + 4 * i, i != 3);
  convext::cuda::commit_async();
  if (kMissing == kWait)
    convext::cuda::wait_async<2>();
  else
    convext::cuda::wait_async<1>();
  if (kMissing != kBarrier) __syncthreads();
  for (int j = 0; j < 4; ++j) out[4 * i + j] = passed[0][7 - i].v[j];
  const bool still_poison = passed[1][i].v[0] != passed[1][i].v[0];
  __syncthreads();
  convext::cuda::wait_async<0>();
  __syncthreads();
  if (!still_poison || passed[1][3].v[2] != 0 || passed[1][5].v[1] != in[21]) out[0] = -1;
}

template <Missing kMissing>
bool copies() {
  std::vector<float> in(32), out(32);
  for (int i = 0; i < 32; ++i) in[i] = float(i);
  launch("async", async_kernel<kMissing>, dim3(1), dim3(8), 0, nullptr, in.data(), out.data());
  for (int i = 0; i < 32; ++i)
    if (out[i] != in[(7 - i / 4) * 4 + i % 4]) return false;
  return true;
}

// c[16][8] = a[16][K] b[K][8] where a row of a, and of b or of b transposed, has 32 bytes (or b 16).
template <typename T, bool kTransposed, bool kRounded>
__global__ void product_kernel(const T* a, const T* b, float* c) {
  using namespace convext::cuda;
  constexpr int kDepth = 32 / sizeof(T), kWidth = 16 / sizeof(T);
  __shared__ Four<float> a_space[kDepth * 16 * sizeof(T) / 16], b_space[kDepth * 8 * sizeof(T) / 16];
  T *a_rows = reinterpret_cast<T*>(a_space), *b_rows = reinterpret_cast<T*>(b_space);
  const int lane = int(threadIdx.x), matrix = lane / 8, row = lane % 8;
  for (int i = lane; i < 16 * kDepth; i += 32) a_rows[i] = a[i];
  for (int i = lane; i < 8 * kDepth; i += 32) b_rows[i] = b[i];
  __syncwarp();
  uint32_t x[4], y[4];
  if (kTransposed) {  // [K][16] and [K][8]
    load_matrices<true>(x, a_rows + (row + matrix / 2 * 8) * 16 + matrix % 2 * 8);
    load_matrices<true>(y, b_rows + (row + matrix % 2 * 8) * 8);
  } else {  // [16][K] and [8][K]
    load_matrices<false>(x, a_rows + (row + matrix % 2 * 8) * kDepth + matrix / 2 * kWidth);
    load_matrices<false>(y, b_rows + row * kDepth + matrix % 2 * kWidth);
  }
  if (sizeof(T) == 4 && kRounded) {
    for (uint32_t& i : x) i = to_tf32(i);
    for (uint32_t& i : y) i = to_tf32(i);
  }
  float sum[4] = {1, 1, 1, 1};
  multiply_matrices<T>(sum, x, y);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

template <typename T, bool kTransposed, bool kRounded = true>
bool multiplies() {
  using namespace convext::cuda;
  constexpr int kDepth = 32 / sizeof(T);
  std::vector<T> a(16 * kDepth), b(8 * kDepth);
  std::vector<float> c(128);
  const float part = sizeof(T) == 4 ? 1 + 0x1p-12f : 1;  // rounds to 1
  const auto number = [](int i) { return float(i * i % 7 - 3); };
  for (size_t i = 0; i < a.size(); ++i) a[i] = from_accumulate<T>(number(int(i) + 2) * part);
  for (size_t i = 0; i < b.size(); ++i) b[i] = from_accumulate<T>(number(3 * int(i)));
  launch("product", product_kernel<T, kTransposed, kRounded>, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(),
         c.data());
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      float sum = 1;
      for (int k = 0; k < kDepth; ++k)
        sum += number((kTransposed ? k * 16 + m : m * kDepth + k) + 2) *
               number(3 * (kTransposed ? k * 8 + n : n * kDepth + k));
      if (c[m * 8 + n] != sum) return false;
    }
  return true;
}

__global__ void lanes_apart_kernel(int* out) {
  out[threadIdx.x] = threadIdx.x % 2 == 0 ? __shfl_sync(~0u, 1, 0) : __shfl_xor_sync(~0u, 2, 1);
}
__global__ void lane_lost_kernel(int* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
}

std::string refusal(dim3 grid, dim3 block, size_t shared_bytes) {
  int out = 0;
  try {
    launch("plain", plain_kernel, grid, block, shared_bytes, nullptr, &out);
  } catch (const std::runtime_error& error) { return error.what(); }
  return "accepted";
}

bool run(const std::string& scenario) {
  if (scenario == "barrier") return shifts<true>();
  if (scenario == "missing_barrier") return shifts<false>();
  if (scenario == "dynamic") {
    std::vector<double> out(kCount);
    launch("dynamic", dynamic_kernel, dim3(3), dim3(kCount), kCount * sizeof(double), nullptr, out.data());
    for (int i = 0; i < kCount; ++i)
      if (out[i] != kCount - 1 - i) return false;
    return true;
  }
  if (scenario == "overrun") {
    double out;
    launch("overrun", overrun_kernel, dim3(1), dim3(1), kCount * sizeof(double), nullptr, &out);
    return true;
  }
  if (scenario == "static_poison") {
    bool poisoned = false;
    launch("static_poison", static_poison_kernel, dim3(2), dim3(1), 0, nullptr, &poisoned);
    return poisoned;
  }
  if (scenario == "no_switches") {
    std::vector<int> out(512);
    launch("plain", plain_kernel, dim3(2), dim3(256), 0, nullptr, out.data());
    return out[511] == 255 && emulator::block.fibers.size() == 1;
  }
  if (scenario == "scan") {
    std::vector<int> in(kCount), out(kCount);
    for (int i = 0; i < kCount; ++i) in[i] = i * i % 13;
    launch("scan", scan_kernel, dim3(1), dim3(kCount), 0, nullptr, in.data(), out.data());
    for (int i = 0, sum = 0; i < kCount; ++i) {
      sum = (i % 32 == 0 ? 0 : sum) + in[i];
      if (out[i] != sum) return false;
    }
    return true;
  }
  if (scenario == "pass" || scenario == "missing_syncwarp") {
    std::vector<int> out(kCount);
    launch("pass", scenario == "pass" ? pass_kernel<true> : pass_kernel<false>, dim3(1), dim3(kCount), 0, nullptr,
           out.data());
    for (int i = 0; i < kCount; ++i)
      if (out[i] != (i ^ 31)) return false;
    return true;
  }
  if (scenario == "async") return copies<kNothing>();
  if (scenario == "missing_wait") return copies<kWait>();
  if (scenario == "missing_async_barrier") return copies<kBarrier>();
  if (scenario == "products")
    return multiplies<convext::cuda::Half, false>() && multiplies<convext::cuda::Half, true>() &&
           multiplies<convext::cuda::BFloat16, false>() && multiplies<convext::cuda::BFloat16, true>() &&
           multiplies<float, false>();
  if (scenario == "unrounded") return multiplies<float, false, false>();
  if (scenario == "lanes_apart" || scenario == "lane_lost") {
    std::vector<int> out(32);
    launch("lanes", scenario == "lane_lost" ? lane_lost_kernel : lanes_apart_kernel, dim3(1), dim3(32), 0, nullptr,
           out.data());
  }
  if (scenario == "some_wait") launch("some_wait", some_wait_kernel, dim3(1), dim3(8), 0, nullptr);
  if (scenario == "wait_apart") {
    int out = 0;
    launch("wait_apart", wait_apart_kernel, dim3(1), dim3(8), 0, nullptr, &out);
  }
  if (scenario == "refusals") {
    std::cout << refusal(dim3(1), dim3(2048), 0) << "\n" << refusal(dim3(1, 70000), dim3(1), 0) << "\n";
    std::cout << refusal(dim3(1), dim3(1), 300 * 1024) << "\n" << refusal(dim3(1), dim3(1), 100 * 1024) << "\n";
    return true;
  }
  return false;
}

}  // namespace

int main(int, char** words) {
  const bool ok = run(words[1]);
  std::cout << (ok ? "yes" : "no") << "\n";
}
