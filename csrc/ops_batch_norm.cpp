// Batch normalisation with the activation behind it, where the CPU has kernels for it (batch_norm.h, channel_scale.h):
// tensors to pointers. No operator: an eager call comes here from calls.cpp, with its gradient from autograd.cpp; any
// other is torch's, see convext/functional/normalisation.py.
#include <c10/util/Exception.h>

#include <cmath>
#include <vector>

#include "autograd.h"
#include "batch_norm.h"
#include "channel_scale.h"
#include "epilogue_torch.h"
#include "ops.h"
#include "tensors.h"

namespace convext {
namespace {

using at::Tensor;

// Rows of what is kept for the gradient: one number per channel each.
enum Kept { kMean, kInverse, kScale, kShift, kKept };

bool of_channels(const std::optional<Tensor>& t, int64_t channels) {
  return !t.has_value() || (t->is_cpu() && t->scalar_type() == at::kFloat && t->dim() == 1 && t->size(0) == channels &&
                            t->is_contiguous());
}

BatchNormShape shape_of(const Tensor& input, Layout layout, const EpilogueOptions& e) {
  return {dtype_of(input.scalar_type(), "batch_norm"),
          layout,
          input.size(0),
          c10::multiply_integers(input.sizes().slice(2)),
          input.size(1),
          parse_activation(e.activation),
          float(e.a),
          float(e.b)};
}

const float* row(const Tensor& kept, Kept which) { return kept.data_ptr<float>() + which * kept.size(1); }

const float* data(const std::optional<Tensor>& t) { return t.has_value() ? t->data_ptr<float>() : nullptr; }

// running = (1 - momentum) running + momentum now
void follow(const std::optional<Tensor>& running, double momentum, const std::vector<double>& now) {
  if (!running.has_value()) return;
  float* values = running->data_ptr<float>();
  for (size_t c = 0; c < now.size(); ++c) values[c] = float((1 - momentum) * double(values[c]) + momentum * now[c]);
  if (!running->is_inference()) running->unsafeGetTensorImpl()->bump_version();
}

}  // namespace

std::optional<BatchNormed> normalise_batch(const Tensor& input, const BatchNormOptions& o, const EpilogueOptions& e) {
  const int spatial = int(input.dim()) - 2;
  const at::ScalarType type = input.scalar_type();
  if (!input.is_cpu() || spatial < 1 || spatial > kMaxSpatial || input.numel() == 0 || !(o.eps > 0) ||
      (type != at::kFloat && type != at::kHalf && type != at::kBFloat16))
    return std::nullopt;
  const int64_t channels = input.size(1), count = input.numel() / channels;
  for (const auto* t : {&o.running_mean, &o.running_var, &o.weight, &o.bias})
    if (!of_channels(*t, channels)) return std::nullopt;
  const bool running = o.running_mean.has_value() && o.running_var.has_value();
  if (o.training ? count < 2 || o.running_mean.has_value() != o.running_var.has_value() : !running) return std::nullopt;

  const Layout layout = layout_of(input);
  const BatchNormShape shape = shape_of(input, layout, e);
  if (o.training && !trains(shape.activation)) return std::nullopt;
  const Tensor x = laid_out(input, layout, spatial);
  std::vector<double> mean(size_t(channels), 0.0), var(size_t(channels), 0.0);
  if (o.training) {
    cpu::batch_statistics(shape, x.data_ptr(), mean.data(), var.data());
    std::vector<double> unbiased = var;
    for (double& squares : unbiased) squares /= double(count - 1);
    follow(o.running_mean, o.momentum, mean);
    follow(o.running_var, o.momentum, unbiased);
    for (double& squares : var) squares /= double(count);
  } else {
    std::copy_n(data(o.running_mean), channels, mean.begin());
    std::copy_n(data(o.running_var), channels, var.begin());
  }
  const Tensor kept = new_tensor({kKept, channels}, at::kFloat, input, at::MemoryFormat::Contiguous);
  float* to = kept.data_ptr<float>();
  const float *weight = data(o.weight), *bias = data(o.bias);
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = 1 / std::sqrt(var[c] + o.eps), scale = inverse * (weight == nullptr ? 1 : double(weight[c]));
    to[kMean * channels + c] = float(mean[c]);
    to[kInverse * channels + c] = float(inverse);
    to[kScale * channels + c] = float(scale);
    to[kShift * channels + c] = float((bias == nullptr ? 0 : double(bias[c])) - mean[c] * scale);
  }
  const Tensor output = new_output(input.sizes(), input, layout, spatial);
  const void* from = x.data_ptr();
  cpu::channel_scale({shape.dtype, layout, shape.batch, shape.places, channels, &from, &channels, 1, row(kept, kScale),
                      row(kept, kShift), shape.activation, shape.a, shape.b, output.data_ptr()});
  return BatchNormed{output, kept};
}

void batch_norm_gradients(const Tensor& grad_output, const Tensor& input, const Tensor& kept, const EpilogueOptions& e,
                          const bool* wanted, Tensor* gradients) {
  const int spatial = int(input.dim()) - 2;
  const Layout layout = layout_of(input);
  const BatchNormShape shape = shape_of(input, layout, e);
  const int64_t channels = shape.channels;
  const double count = double(shape.batch * shape.places);
  const Tensor x = laid_out(input, layout, spatial), dy = laid_out(grad_output, layout, spatial);
  const BatchNormScales scales = {row(kept, kMean), row(kept, kScale), row(kept, kShift)};
  std::vector<double> sum(size_t(channels), 0.0), product(size_t(channels), 0.0);
  cpu::batch_norm_sums(shape, x.data_ptr(), dy.data_ptr(), scales, sum.data(), product.data());
  const float* inverse = row(kept, kInverse);
  const auto of_channels = [&] { return new_tensor({channels}, at::kFloat, input, at::MemoryFormat::Contiguous); };
  if (wanted[1]) {
    gradients[1] = of_channels();
    for (int64_t c = 0; c < channels; ++c) gradients[1].data_ptr<float>()[c] = float(product[c] * double(inverse[c]));
  }
  if (wanted[2]) {
    gradients[2] = of_channels();
    std::copy_n(sum.begin(), channels, gradients[2].data_ptr<float>());
  }
  if (!wanted[0]) return;
  std::vector<float> slope(size_t(channels), 0.f), offset(size_t(channels), 0.f);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = double(scales.scale[c]), square = double(inverse[c]) * double(inverse[c]);
    slope[c] = float(-scale * square * product[c] / count);
    offset[c] = float(-scale * sum[c] / count);
  }
  gradients[0] = new_output(input.sizes(), input, layout, spatial);
  cpu::batch_norm_backward_input(shape, x.data_ptr(), dy.data_ptr(), scales, slope.data(), offset.data(),
                                 gradients[0].data_ptr());
}

}  // namespace convext
