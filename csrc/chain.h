// Layers one after the other in one call, from torch's tensors: what an optimised network's chains run. See
// cpu/layer_chain.h for what is gained.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "autograd.h"

namespace convext {

// A convolution with its epilogue, or (pools) a max pooling.
struct ChainCall {
  bool pools = false;
  at::Tensor weight;
  std::optional<at::Tensor> bias;
  ConvOptions conv;
  EpilogueOptions epilogue;
  PoolOptions pool;
};

// The last layer's output, to the bit what the layers one by one give; residual: the last layer's. Without a gradient.
at::Tensor run_layers(const at::Tensor& input, const std::vector<ChainCall>& layers,
                      const std::optional<at::Tensor>& residual);

}  // namespace convext
