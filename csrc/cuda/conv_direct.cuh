// What the two files of the direct convolution share: conv_direct.cu has the outputs and the gradient of the input,
// conv_direct_weight.cu the gradient of the weight.
#pragma once
#include "../algorithms.h"

namespace convext::cuda {

void conv_direct_backward_weight(const ConvArguments& args);

}  // namespace convext::cuda
