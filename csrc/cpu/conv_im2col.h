// What the directions of im2col share.
#pragma once
#include "../algorithms.h"
#include "blocking.h"
#include "gemm.h"

namespace convext::cpu::im2col {

void forward(const ConvArguments& args);
int64_t forward_bytes(const ConvGeometry& geometry, DType dtype);
// Lanes of a panel of the packed weight.
int64_t weight_width(const ConvGeometry& geometry, DType dtype);

void backward_input(const ConvArguments& args);
int64_t backward_input_bytes(const ConvGeometry& geometry, DType dtype);
Packing backward_input_packing(const ConvGeometry& geometry, DType dtype);
void pack_backward_input(const PackArguments& args);

int64_t backward_weight_bytes(const ConvGeometry& geometry, DType dtype);
void backward_weight(const ConvArguments& args);
// Of a 1x1 kernel that sees every place without padding (conv_im2col_pointwise_weight.cpp).
bool is_pointwise_weight(const ConvGeometry& geometry);
int64_t pointwise_weight_bytes(const ConvGeometry& geometry, DType dtype);
void pointwise_weight(const ConvArguments& args);

}  // namespace convext::cpu::im2col
