// What the directions of im2col share.
#pragma once
#include "../algorithms.h"
#include "blocking.h"
#include "gemm.h"

namespace convext::cpu::im2col {

int64_t backward_input_bytes(const ConvGeometry& geometry, DType dtype);
int64_t backward_weight_bytes(const ConvGeometry& geometry, DType dtype);
void backward_input(const ConvArguments& args);
void backward_weight(const ConvArguments& args);

}  // namespace convext::cpu::im2col
