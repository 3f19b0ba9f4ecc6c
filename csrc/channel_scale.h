// y = activation(x * scale + shift), one scale and shift per channel, of several tensors joined along their channels:
// batch normalisation in eval mode, with the concatenation before it and the activation behind it. No torch header.
#pragma once
#include "epilogue.h"
#include "geometry.h"

namespace convext {

struct ChannelScaleArguments {
  DType dtype;  // float32, float16 or bfloat16
  Layout layout;
  int64_t batch, places, channels;  // of the output
  const void* const* inputs;        // `count` of them, with input_channels each
  const int64_t* input_channels;
  int64_t count;
  const float *scale, *shift;
  Activation activation;
  float a, b;
  void* output;
};

namespace cpu {
void channel_scale(const ChannelScaleArguments& args);
}

}  // namespace convext
