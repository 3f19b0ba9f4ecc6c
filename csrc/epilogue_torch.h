// Epilogues in torch's words: names, and the arithmetic itself for devices whose kernels do not do it.
#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>

#include "epilogue.h"

namespace convext {

// Raises ValueError for an unknown name.
Activation parse_activation(std::string_view name);
// Whether the slope of an activation can be told from its result.
inline bool tells_slope(std::string_view activation, double a, double b) {
  return (activation == "clamp" && a < b) || (activation == "leaky_relu" && a > 0);
}
// In place. residual: undefined, or laid out as the output.
void finish_with_torch(const Epilogue& epilogue, const at::Tensor& output, const at::Tensor& residual);

}  // namespace convext
