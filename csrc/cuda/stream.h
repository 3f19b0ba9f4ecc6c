// What the kernels' callers must know of torch's CUDA state, and no more. stream.cpp is the only file that includes
// c10/cuda.
#pragma once
#include "../cuda_choice.h"

namespace convext::cuda {

// torch's current stream on a device, as the cudaStream_t that ConvArguments::stream takes.
void* current_stream(int device_index);
// Makes a device the current one; returns the one that was. The caller puts it back.
int exchange_device(int device_index);
// The current device, asked for once. Nothing here waits or is forbidden while a graph is captured.
Gpu current_gpu();

}  // namespace convext::cuda
