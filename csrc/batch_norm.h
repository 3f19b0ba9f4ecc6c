// Batch normalisation that is trained, and the activation behind it, on the CPU:
//
//   y = activation(z),  z = x scale + shift,  scale = weight / sqrt(var + eps),  shift = bias - mean scale
//
// mean and var of each channel, over batch and places. With g = dy activation'(z), N numbers of a channel:
//
//   dbias = sum g        dweight = sum g (x - mean) / sqrt(var + eps)
//   dx = scale (g - dbias / N - (x - mean) / sqrt(var + eps) dweight / N)
//
// z is computed again for the gradient, not kept: x is, and that is all. In eval mode it is channel_scale.h. No torch
// header.
#pragma once
#include <cstdint>

#include "epilogue.h"
#include "geometry.h"

namespace convext {

struct BatchNormShape {
  DType dtype;  // float32, float16 or bfloat16
  Layout layout;
  int64_t batch, places, channels;
  Activation activation;
  float a, b;
};

// Whether there is a gradient of it.
constexpr bool trains(Activation activation) {
  return activation == Activation::none || activation == Activation::clamp || activation == Activation::leaky_relu ||
         activation == Activation::silu || activation == Activation::hardswish;
}

// Of each channel, what the gradient reads beside x and dy.
struct BatchNormScales {
  const float *mean, *scale, *shift;
};

namespace cpu {

// mean, and sum of (x - mean)^2, of each channel.
void batch_statistics(const BatchNormShape& shape, const void* input, double* mean, double* squares);
// sum g, and sum g (x - mean).
void batch_norm_sums(const BatchNormShape& shape, const void* input, const void* grad_output,
                     const BatchNormScales& scales, double* sum, double* product);
// dx = scale g + (x - mean) slope + offset
void batch_norm_backward_input(const BatchNormShape& shape, const void* input, const void* grad_output,
                               const BatchNormScales& scales, const float* slope, const float* offset, void* dx);

}  // namespace cpu
}  // namespace convext
