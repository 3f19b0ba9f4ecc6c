// Does the stand-in show what it promises to show? Run by tests/test_cuda_emulator.py, a scenario a time; see there for
// what each must print and how it must end.
#include <cuda_runtime.h>

#include <iostream>
#include <vector>

#include "../../csrc/cuda/launch.cuh"

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
