// What may follow a convolution before its output is stored: a residual added, an activation applied.
//
//   y = activation(conv + residual)        or, with residual_last,        y = activation(conv) + residual
//
// The residual has the shape, dtype and layout of the output. No torch header.
#pragma once
#include <cstdint>
#include <string_view>

namespace convext {

// a, b: the activation's parameters.
enum class Activation {
  none,
  clamp,        // min(max(x, a), b): ReLU is clamp(0, infinity), ReLU6 clamp(0, 6)
  leaky_relu,   // x where x > 0, else a x
  sigmoid,      // 1 / (1 + exp(-x))
  silu,         // x sigmoid(x)
  tanh,         //
  gelu,         // x (1 + erf(x / sqrt 2)) / 2
  gelu_tanh,    // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
  hardsigmoid,  // clamp(x + 3, 0, 6) / 6
  hardswish,    // x hardsigmoid(x)
};
constexpr const char* kActivations[] = {"none", "clamp", "leaky_relu", "sigmoid",     "silu",
                                        "tanh", "gelu",  "gelu_tanh",  "hardsigmoid", "hardswish"};

struct Epilogue {
  const void* residual = nullptr;
  bool residual_last = false;
  Activation activation = Activation::none;
  double a = 0, b = 0;

  bool empty() const { return residual == nullptr && activation == Activation::none; }
  // Made of a sum, a product, a minimum and a maximum: kernels do it in registers.
  bool piecewise_linear() const {
    const bool linear = activation == Activation::none || activation == Activation::clamp ||
                        (activation == Activation::leaky_relu && a >= 0 && a <= 1);
    return linear && !(residual != nullptr && residual_last && activation != Activation::none);
  }
};

}  // namespace convext
