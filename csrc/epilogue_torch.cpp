#include "epilogue_torch.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/hardsigmoid.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/silu.h>

#include <iterator>
#include <string>

namespace convext {

Activation parse_activation(std::string_view name) {
  std::string names;
  for (size_t i = 0; i < std::size(kActivations); ++i) {
    if (name == kActivations[i]) return Activation(i);
    names += std::string(i > 0 ? ", '" : "'") + kActivations[i] + "'";
  }
  TORCH_CHECK_VALUE(false, "conv: activation must be one of ", names, ", got '", name, "'");
}

void finish_with_torch(const Epilogue& e, const at::Tensor& output, const at::Tensor& residual) {
  at::Tensor y = output;
  if (residual.defined() && !e.residual_last) y.add_(residual);
  switch (e.activation) {
    case Activation::none: break;
    case Activation::clamp: y.clamp_(e.a, e.b); break;
    case Activation::leaky_relu: at::leaky_relu_(y, e.a); break;
    case Activation::sigmoid: y.sigmoid_(); break;
    case Activation::silu: at::silu_(y); break;
    case Activation::tanh: y.tanh_(); break;
    case Activation::gelu: y.copy_(at::gelu(y)); break;
    case Activation::gelu_tanh: y.copy_(at::gelu(y, "tanh")); break;
    case Activation::hardsigmoid: at::hardsigmoid_(y); break;
    case Activation::hardswish: at::hardswish_(y); break;
  }
  if (residual.defined() && e.residual_last) y.add_(residual);
}

}  // namespace convext
