#include "stream.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <atomic>

namespace convext::cuda {

void* current_stream(int device_index) {
  return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device_index)).stream();
}

int exchange_device(int device_index) { return c10::cuda::ExchangeDevice(static_cast<c10::DeviceIndex>(device_index)); }

Gpu current_gpu() {
  constexpr int kMostDevices = 64, kCapabilities = 4096;
  static std::atomic<int> known[kMostDevices];  // capability + kCapabilities * multiprocessors; 0: not asked yet
  const int device = c10::cuda::current_device();
  const bool kept = device >= 0 && device < kMostDevices;
  int both = kept ? known[device].load(std::memory_order_relaxed) : 0;
  if (both == 0) {
    int major = 0, minor = 0, multiprocessors = 0;
    const bool answered =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
    if (!answered) return Gpu();  // the launch will say what is wrong
    both = 10 * major + minor + kCapabilities * multiprocessors;
    if (kept) known[device].store(both, std::memory_order_relaxed);
  }
  return {both % kCapabilities, both / kCapabilities};
}

}  // namespace convext::cuda
