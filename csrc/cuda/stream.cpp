#include "stream.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

namespace convext::cuda {

void* current_stream(int device_index) {
  return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device_index)).stream();
}

int exchange_device(int device_index) { return c10::cuda::ExchangeDevice(static_cast<c10::DeviceIndex>(device_index)); }

}  // namespace convext::cuda
