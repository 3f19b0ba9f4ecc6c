// Operators with their first gradient, in C++: what an eager call that asks for a gradient runs. A gradient of a
// gradient, function transforms, forward mode and torch.compile go through convext/autograd, which has every order.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "geometry.h"

namespace convext {

using Entries = c10::SmallVector<int64_t, 2 * kMaxSpatial>;  // of one argument: one or two per spatial dimension

// The options of the operators, spelled out as they take them. The texts are the caller's.
struct ConvOptions {
  Entries stride, padding, dilation;
  int64_t groups = 1;
  std::string_view padding_mode;
  bool flip_kernel = false;
  std::string_view algorithm;
};

// What follows a convolution that is run with conv_fused, see epilogue.h.
struct EpilogueOptions {
  std::string_view activation = "none";
  double a = 0, b = 0;
  bool residual_last = false;
};

struct PoolOptions {
  Entries kernel, stride, padding, dilation;
  bool ceil_mode = false;
  bool count_include_pad = true;                 // average only
  std::optional<int64_t> divisor_override = {};  // average only
  std::string_view algorithm;
};

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                const ConvOptions& options);
// With an epilogue, and without a gradient: raises NotImplementedError where one is asked for.
at::Tensor conv_fused(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      const std::optional<at::Tensor>& residual, const ConvOptions& options,
                      const EpilogueOptions& epilogue);
// With an activation whose slope its result tells (tells_slope of epilogue_torch.h), and its gradient.
at::Tensor conv_activated(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                          const ConvOptions& options, const EpilogueOptions& activation);
// activation(cat(inputs, 1) * scale + shift), without a gradient; see channel_scale.h.
at::Tensor channel_scale(at::TensorList inputs, const at::Tensor& scale, const at::Tensor& shift,
                         const EpilogueOptions& epilogue);
// The gradient of the input, used forward: transposed convolution.
at::Tensor conv_input_gradient(const at::Tensor& grad_output, const at::Tensor& weight, at::IntArrayRef input_size,
                               const ConvOptions& options);
// A pooling and, where they are asked for, its int64 indices; else undefined.
using Pooled = std::tuple<at::Tensor, at::Tensor>;
Pooled max_pool(const at::Tensor& input, const PoolOptions& options, bool with_indices);
at::Tensor avg_pool(const at::Tensor& input, const PoolOptions& options);
// Power averages where the CPU has kernels for them, else nothing; see other_pools.h.
std::optional<at::Tensor> lp_pool(const at::Tensor& input, int power, const PoolOptions& options);
at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, at::IntArrayRef output_size);
// The k greatest along `dim`, or of each plane.
Pooled k_max_pool(const at::Tensor& input, int64_t k, std::optional<int64_t> dim, bool with_indices);
Pooled fractional_max_pool(const at::Tensor& input, const at::Tensor& samples, at::IntArrayRef kernel_size,
                           at::IntArrayRef output_size, bool with_indices);

// What batch normalisation takes beside its input.
struct BatchNormOptions {
  std::optional<at::Tensor> running_mean, running_var, weight, bias;
  bool training = false;
  double momentum = 0, eps = 0;
};
// activation(batch_norm(input)) where the CPU has kernels for it, else nothing. Follows the running statistics.
std::optional<at::Tensor> batch_norm(const at::Tensor& input, const BatchNormOptions& options,
                                     const EpilogueOptions& activation);

// What batch_norm is made of beside its operators (ops_batch_norm.cpp): whether there are kernels for a call; running
// statistics, from what the operator keeps; and eval mode, without a gradient.
bool normalises(const at::Tensor& input, const BatchNormOptions& options, const EpilogueOptions& activation);
void follow_statistics(const BatchNormOptions& options, const at::Tensor& kept);
at::Tensor normalise_by_running(const at::Tensor& input, const BatchNormOptions& options,
                                const EpilogueOptions& activation);

// What lp_pool is made of (ops_power.cpp), without a gradient.
std::optional<at::Tensor> power_pool(const at::Tensor& input, int power, const PoolOptions& options);
at::Tensor power_pool_gradient(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& output,
                               int power, const PoolOptions& options);

}  // namespace convext
