// What the files of implicit_gemm share.
#pragma once
#include "../algorithms.h"

namespace convext::cuda {

// The Hopper variant (conv_implicit_gemm_hopper.cu). It suits a call if it was compiled for sm_90a, the current device
// has compute capability 9.0, and geometry, dtype and pointers are what the bulk copies take. Of the geometry only one
// image is looked at, but for the gradient of the weight.
bool implicit_gemm_hopper_suits(const ConvArguments& args, Direction direction);
// Enough wherever it suits; 0 where the geometry tells already that it does not.
int64_t implicit_gemm_hopper_workspace_bytes(const ConvGeometry& geometry, DType dtype, Direction direction);
void implicit_gemm_hopper(const ConvArguments& args, Direction direction);

}  // namespace convext::cuda
