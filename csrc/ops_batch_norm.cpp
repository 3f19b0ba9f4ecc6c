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
float* row(const Tensor& kept, Kept which) { return kept.data_ptr<float>() + which * kept.size(1); }
const float* data(const Parameter& t) { return t.has_value() ? t->data_ptr<float>() : nullptr; }

// The rows that follow from mean and variance.
void set_line(const Tensor& kept, int64_t c, double mean, double variance, const float* weight, const float* bias,
              double eps) {
  const double inverse = 1 / std::sqrt(variance + eps), scale = inverse * (weight == nullptr ? 1 : double(weight[c]));
  row(kept, kMean)[c] = float(mean);
  row(kept, kInverse)[c] = float(inverse);
  row(kept, kScale)[c] = float(scale);
  row(kept, kShift)[c] = float((bias == nullptr ? 0 : double(bias[c])) - mean * scale);
}

// x: laid out.
Tensor normalised(const Tensor& x, const BatchNormShape& s, const Tensor& kept) {
  const Tensor output = new_output(x.sizes(), x, s.layout, spatial_of(x));
  const void* from = x.data_ptr();
  cpu::channel_scale({s.dtype, s.layout, s.batch, s.places, s.channels, &from, &s.channels, 1, row(kept, kScale),
                      row(kept, kShift), s.activation, s.a, s.b, output.data_ptr()});
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
  for (int64_t c = 0; c < channels; ++c) {
    set_line(kept, c, mean[c], squares[c] / double(count), data(weight), data(bias), eps);
    row(kept, kUnbiased)[c] = float(squares[c] / double(count - 1));
  }
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
  const BatchNormScales scales = {row(kept, kMean), row(kept, kScale), row(kept, kShift)};
  std::vector<double> sum(size_t(channels), 0.0), product(size_t(channels), 0.0);
  cpu::batch_norm_sums(shape, x.data_ptr(), dy.data_ptr(), scales, sum.data(), product.data());

  const Tensor dweight = new_tensor({channels}, at::kFloat, input, at::MemoryFormat::Contiguous);
  const Tensor dbias = new_tensor({channels}, at::kFloat, input, at::MemoryFormat::Contiguous);
  std::vector<float> slope(size_t(channels), 0.f), offset(size_t(channels), 0.f);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = double(scales.scale[c]), inverse = double(row(kept, kInverse)[c]);
    dweight.data_ptr<float>()[c] = float(product[c] * inverse);
    dbias.data_ptr<float>()[c] = float(sum[c]);
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
  for (int64_t c = 0; c < running->size(0); ++c)
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
  follow(options.running_mean, options.momentum, row(kept, kMean));
  follow(options.running_var, options.momentum, row(kept, kUnbiased));
}

Tensor normalise_by_running(const Tensor& input, const BatchNormOptions& o, const EpilogueOptions& e) {
  const Layout layout = layout_of(input);
  const int64_t channels = input.size(1);
  const Tensor kept = numbers(kKept, channels, input);
  for (int64_t c = 0; c < channels; ++c)
    set_line(kept, c, data(o.running_mean)[c], data(o.running_var)[c], data(o.weight), data(o.bias), o.eps);
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
