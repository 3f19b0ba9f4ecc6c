// What the files of the direct convolution share. conv_direct.cu has the outputs and the gradient of the input,
// conv_direct_weight.cu the gradient of the weight, of every layer; the others are faster for some layers, which
// `suits` tells, and those go there first.
#pragma once
#include "../algorithms.h"

namespace convext::cuda {

// A tensor of one channel is contiguous, whatever its layout is called.
inline ConvGeometry of_planes(ConvGeometry geometry) {
  if (geometry.in_channels == 1 && geometry.out_channels == 1) geometry.layout = Layout::contiguous;
  return geometry;
}

void conv_direct_backward_weight(const ConvArguments& args);
int64_t conv_direct_weight_workspace(const ConvGeometry& geometry, DType dtype);

// Depthwise, contiguous, stride 1: forward and gradient of the input.
bool conv_direct_depthwise_suits(const ConvGeometry& geometry, DType dtype, Direction direction);
void conv_direct_depthwise(const char* name, const ConvArguments& args, Direction direction);

// The same, strided or dilated.
bool conv_direct_depthwise_strided_suits(const ConvGeometry& geometry, DType dtype, Direction direction);
void conv_direct_depthwise_strided(const char* name, const ConvArguments& args, Direction direction);

// Depthwise lines with short kernels, contiguous: forward and gradient of the input.
bool conv_direct_causal_suits(const ConvArguments& args, Direction direction);
void conv_direct_causal(const char* name, const ConvArguments& args, Direction direction);

// Depthwise, channels_last: forward and gradient of the input.
bool conv_direct_depthwise_last_suits(const ConvGeometry& geometry);
void conv_direct_depthwise_last(const char* name, const ConvArguments& args, Direction direction);

// Few channels read or made, both layouts: forward and gradient of the input.
bool conv_direct_few_suits(const ConvGeometry& geometry, DType dtype, Direction direction);
void conv_direct_few(const char* name, const ConvArguments& args, Direction direction);

// Few channels on one side, both layouts: gradient of the weight.
bool conv_direct_few_weight_suits(const ConvGeometry& geometry, DType dtype);
int64_t conv_direct_few_weight_workspace(const ConvGeometry& geometry, DType dtype);
void conv_direct_few_weight(const ConvArguments& args);

// Depthwise or few outputs per group, contiguous: gradient of the weight.
bool conv_direct_depthwise_weight_suits(const ConvGeometry& geometry, DType dtype);
int64_t conv_direct_depthwise_weight_workspace(const ConvGeometry& geometry, DType dtype);
void conv_direct_depthwise_weight(const ConvArguments& args);

// Depthwise, channels_last: gradient of the weight.
bool conv_direct_depthwise_last_weight_suits(const ConvGeometry& geometry);
int64_t conv_direct_depthwise_last_weight_workspace(const ConvGeometry& geometry, DType dtype);
void conv_direct_depthwise_last_weight(const ConvArguments& args);

}  // namespace convext::cuda
