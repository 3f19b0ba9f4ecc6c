// Batch normalisation with the activation behind it, where the CPU has kernels for it (batch_norm.h, channel_scale.h):
// tensors to pointers. In training two operators, which autograd_normalisation.cpp and convext/autograd join; in eval
// mode, without a gradient, one line per channel. What there are no kernels for is torch's, see
// convext/functional/normalisation.py.
#include <c10/util/Exception.h>
#include <torch/library.h>

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
using Parameter = std::optional<Tensor>;

// Rows of what is kept for the gradient, and for running statistics: one number per channel each.
enum Kept { kMean, kInverse, kScale, kShift, kUnbiased, kKept };

bool fits(const Tensor& input) {
  const at::ScalarType type = input.scalar_type();
  return input.is_cpu() && input.dim() >= 3 && input.dim() <= 2 + kMaxSpatial &&
         (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
}

bool of_channels(const Parameter& t, int64_t channels) {
  return !t.has_value() || (t->is_cpu() && t->scalar_type() == at::kFloat && t->dim() == 1 && t->size(0) == channels &&
                            t->is_contiguous());
}

int spatial_of(const Tensor& input) { return int(input.dim()) - 2; }

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

Tensor numbers(int64_t rows, int64_t channels, const Tensor& like) {
  return new_tensor({rows, channels}, at::kFloat, like, at::MemoryFormat::Contiguous);
}
const float* data(const Parameter& t) { return t.has_value() ? t->data_ptr<float>() : nullptr; }

// The rows of `kept`.
struct Rows {
  float *mean, *inverse, *scale, *shift, *unbiased;

  explicit Rows(const Tensor& kept) {
    float* const first = kept.data_ptr<float>();
    const int64_t channels = kept.size(1);
    const auto row = [&](Kept which) { return first + which * channels; };
    mean = row(kMean), inverse = row(kInverse), scale = row(kScale), shift = row(kShift), unbiased = row(kUnbiased);
  }

  // What follows from mean and variance of each channel, mean_of(c) and variance_of(c).
  template <typename Mean, typename Variance>
  void set(int64_t channels, const Mean& mean_of, const Variance& variance_of, const float* weight, const float* bias,
           double eps) const {
    for (int64_t c = 0; c < channels; ++c) {
      const double average = mean_of(c), root = 1 / std::sqrt(variance_of(c) + eps);
      const double factor = root * (weight == nullptr ? 1 : double(weight[c]));
      mean[c] = float(average);
      inverse[c] = float(root);
      scale[c] = float(factor);
      shift[c] = float((bias == nullptr ? 0 : double(bias[c])) - average * factor);
    }
  }
};

// x: laid out.
Tensor normalised(const Tensor& x, const BatchNormShape& s, const Tensor& kept) {
  const Tensor output = new_output(x.sizes(), x, s.layout, spatial_of(x));
  const void* from = x.data_ptr();
  const Rows rows(kept);
  cpu::channel_scale({s.dtype, s.layout, s.batch, s.places, s.channels, &from, &s.channels, 1, rows.scale, rows.shift,
                      s.activation, s.a, s.b, output.data_ptr()});
  return output;
}

void check_input(const Tensor& input, Activation activation) {
  TORCH_CHECK(input.dim() >= 3 && input.dim() <= 2 + kMaxSpatial,
              "batch_norm: input must have 3 to 5 dimensions, got size ", input.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(fits(input), "batch_norm: there are kernels for float32, float16 and bfloat16, got ",
                              input.scalar_type());
  TORCH_CHECK_VALUE(input.numel() > input.size(1),
                    "batch_norm: expected more than 1 value per channel when training, got input of size ",
                    input.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(trains(activation), "batch_norm: activation ", kActivations[int(activation)],
                              " has no gradient here");
}

// Of the activated normalisation in training: the output, and what is kept.
std::tuple<Tensor, Tensor> batch_norm_forward(const Tensor& input, const Parameter& weight, const Parameter& bias,
                                              double eps, std::string_view activation, double a, double b) {
  const Layout layout = layout_of(input);
  check_input(input, parse_activation(activation));
  TORCH_CHECK_VALUE(eps > 0, "batch_norm: eps must be positive in training, got ", eps);
  const int64_t channels = input.size(1), count = input.numel() / channels;
  for (const Parameter* t : {&weight, &bias})
    TORCH_CHECK(of_channels(*t, channels), "batch_norm: weight and bias must be contiguous float32 of size [", channels,
                "] on the CPU, got ", (*t)->scalar_type(), " of size ", (*t)->sizes(), " on ", (*t)->device());
  const BatchNormShape shape = shape_of(input, layout, {activation, a, b});
  const Tensor x = laid_out(input, layout, spatial_of(input));
  std::vector<double> mean(size_t(channels), 0.0), squares(size_t(channels), 0.0);
  cpu::batch_statistics(shape, x.data_ptr(), mean.data(), squares.data());
  const Tensor kept = numbers(kKept, channels, input);
  const Rows rows(kept);
  const auto variance = [&](int64_t c) { return squares[c] / double(count); };
  rows.set(channels, [&](int64_t c) { return mean[c]; }, variance, data(weight), data(bias), eps);
  for (int64_t c = 0; c < channels; ++c) rows.unbiased[c] = float(squares[c] / double(count - 1));
  return {normalised(x, shape, kept), kept};
}

// Of input, weight, bias, whether there are parameters or not.
std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& kept, std::string_view activation, double a,
                                                       double b) {
  const Layout layout = layout_of(input);
  check_input(input, parse_activation(activation));
  const BatchNormShape shape = shape_of(input, layout, {activation, a, b});
  const int64_t channels = shape.channels;
  TORCH_CHECK(
      grad_output.sizes() == input.sizes() && grad_output.scalar_type() == input.scalar_type() && grad_output.is_cpu(),
      "batch_norm: grad_output must be ", input.scalar_type(), " of size ", input.sizes(), ", got ",
      grad_output.scalar_type(), " of size ", grad_output.sizes());
  TORCH_CHECK(kept.is_cpu() && kept.scalar_type() == at::kFloat && kept.is_contiguous() &&
                  kept.sizes() == at::IntArrayRef({kKept, channels}),
              "batch_norm: kept must be contiguous float32 of size [", int(kKept), ", ", channels, "], got ",
              kept.scalar_type(), " of size ", kept.sizes());
  const double count = double(shape.batch * shape.places);
  const Tensor x = laid_out(input, layout, spatial_of(input)), dy = laid_out(grad_output, layout, spatial_of(input));
  const Rows rows(kept);
  const BatchNormScales scales = {rows.mean, rows.scale, rows.shift};
  std::vector<double> sum(size_t(channels), 0.0), product(size_t(channels), 0.0);
  cpu::batch_norm_sums(shape, x.data_ptr(), dy.data_ptr(), scales, sum.data(), product.data());

  const Tensor dweight = new_tensor({channels}, at::kFloat, input, at::MemoryFormat::Contiguous);
  const Tensor dbias = new_tensor({channels}, at::kFloat, input, at::MemoryFormat::Contiguous);
  std::vector<float> slope(size_t(channels), 0.f), offset(size_t(channels), 0.f);
  float *const of_weight = dweight.data_ptr<float>(), *const of_bias = dbias.data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = double(rows.scale[c]), inverse = double(rows.inverse[c]);
    of_weight[c] = float(product[c] * inverse);
    of_bias[c] = float(sum[c]);
    slope[c] = float(-scale * inverse * inverse * product[c] / count);
    offset[c] = float(-scale * sum[c] / count);
  }
  const Tensor dx = new_output(input.sizes(), input, layout, spatial_of(input));
  cpu::batch_norm_backward_input(shape, x.data_ptr(), dy.data_ptr(), scales, slope.data(), offset.data(),
                                 dx.data_ptr());
  return {dx, dweight, dbias};
}

// running = (1 - momentum) running + momentum now
void follow(const Parameter& running, double momentum, const float* now) {
  if (!running.has_value()) return;
  float* values = running->data_ptr<float>();
  for (int64_t c = 0, channels = running->size(0); c < channels; ++c)
    values[c] = float((1 - momentum) * double(values[c]) + momentum * double(now[c]));
  if (!running->is_inference()) running->unsafeGetTensorImpl()->bump_version();
}

}  // namespace

bool normalises(const Tensor& input, const BatchNormOptions& o, const EpilogueOptions& e) {
  if (!fits(input) || input.numel() == 0 || !(o.eps > 0)) return false;
  const int64_t channels = input.size(1);
  for (const Parameter* t : {&o.running_mean, &o.running_var, &o.weight, &o.bias})
    if (!of_channels(*t, channels)) return false;
  if (o.running_mean.has_value() != o.running_var.has_value()) return false;
  return o.training ? input.numel() > channels && trains(parse_activation(e.activation)) : o.running_mean.has_value();
}

void follow_statistics(const BatchNormOptions& options, const Tensor& kept) {
  const Rows rows(kept);
  follow(options.running_mean, options.momentum, rows.mean);
  follow(options.running_var, options.momentum, rows.unbiased);
}

Tensor normalise_by_running(const Tensor& input, const BatchNormOptions& o, const EpilogueOptions& e) {
  const Layout layout = layout_of(input);
  const int64_t channels = input.size(1);
  const Tensor kept = numbers(kKept, channels, input);
  const float *const mean = data(o.running_mean), *const variance = data(o.running_var);
  const auto mean_of = [&](int64_t c) { return double(mean[c]); };
  const auto variance_of = [&](int64_t c) { return double(variance[c]); };
  Rows(kept).set(channels, mean_of, variance_of, data(o.weight), data(o.bias), o.eps);
  return normalised(laid_out(input, layout, spatial_of(input)), shape_of(input, layout, e), kept);
}

TORCH_LIBRARY_FRAGMENT(convext, m) {
  for (const char* schema :
       {"batch_norm(Tensor input, Tensor? weight, Tensor? bias, float eps, str activation, float a, float b) -> "
        "(Tensor, Tensor)",
        "batch_norm_backward(Tensor grad_output, Tensor input, Tensor kept, str activation, float a, float b) -> "
        "(Tensor, Tensor, Tensor)"})
    m.def(schema, {at::Tag::flexible_layout});
}
TORCH_LIBRARY_IMPL(convext, CPU, m) {
  m.impl("batch_norm", batch_norm_forward);
  m.impl("batch_norm_backward", batch_norm_backward);
}

}  // namespace convext
