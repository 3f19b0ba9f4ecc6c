// Convolutions with their gradients.
#include "autograd_calls.h"
#include "epilogue_torch.h"
#include "geometry_checks.h"
#include "ops.h"
#include "packed_weights.h"

namespace convext {
namespace {

// A trained weight will have changed when it is next used: its packed form is not kept.
class Trained {
 public:
  explicit Trained(bool trained) : before_(trained ? keep_packed_weights(false) : true), trained_(trained) {}
  ~Trained() {
    if (trained_) keep_packed_weights(before_);
  }
  Trained(const Trained&) = delete;
  Trained& operator=(const Trained&) = delete;

 private:
  bool before_, trained_;
};

Tensor run_conv(const Tensor& input, const Tensor& weight, const Bias& bias, const ConvOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Bias&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
                           string_view, bool, string_view)>("convext::conv_forward");
  return run(op, input, weight, bias, o.stride, o.padding, o.dilation, o.groups, o.padding_mode, o.flip_kernel,
             o.algorithm);
}

using ConvGradient = Tensor(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
                            string_view, bool, string_view);

// A gradient of a convolution: the one of the input (operands dy, w) or of the weight (dy, x).
Tensor run_conv_gradient(bool of_input, const Tensor& a, const Tensor& b, IntArrayRef size, const ConvOptions& o) {
  static const auto input_op = find_operator<ConvGradient>("convext::conv_backward_input");
  static const auto weight_op = find_operator<ConvGradient>("convext::conv_backward_weight");
  return run(of_input ? input_op : weight_op, a, b, size, o.stride, o.padding, o.dilation, o.groups, o.padding_mode,
             o.flip_kernel, o.algorithm);
}

Tensor run_conv_bias_gradient(const Tensor& grad_output) {
  static const auto op = find_operator<Tensor(const Tensor&)>("convext::conv_backward_bias");
  return run(op, grad_output);
}

Tensor run_activation_gradient(const Tensor& grad_output, const Tensor& output, const EpilogueOptions& e) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, string_view, double, double)>("convext::activation_backward");
  return run(op, grad_output, output, e.activation, e.a, e.b);
}

// Kept for the gradient, with texts of their own: the caller's are gone by then.
class KeptConvOptions : public ConvOptions {
 public:
  KeptConvOptions() = default;
  explicit KeptConvOptions(const ConvOptions& o) : ConvOptions(o), name(o.algorithm) {
    PaddingMode known = PaddingMode::zeros;
    parse_padding_mode(o.padding_mode, &known);  // forward has run: it is one
    mode = int64_t(known);
    spell();
  }
  KeptConvOptions(const KeptConvOptions&) = delete;
  KeptConvOptions& operator=(const KeptConvOptions&) = delete;

  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.stride, self.padding, self.dilation, self.groups, self.mode, self.flip_kernel, self.name);
    if constexpr (!std::is_const_v<Self>) self.spell();
  }

 private:
  void spell() { padding_mode = name_of(PaddingMode(mode)), algorithm = name; }

  std::string name;
  int64_t mode = 0;
};

Tensor conv_gradient(const char* name, const Tensor& a, const Tensor& b, IntArrayRef size, const ConvOptions& o) {
  if (wants_graph())
    return differentiable(name, a, b, list(size), list(o.stride), list(o.padding), list(o.dilation), o.groups,
                          o.padding_mode, o.flip_kernel, o.algorithm);
  return run_conv_gradient(string_view(name) == "conv_backward_input", a, b, size, o);
}

// Of input, weight, bias. Saved: the input for the weight's, the weight for the input's.
struct ConvGradients {
  static constexpr const char* kName = "ConvBackward";
  static constexpr size_t kInputs = 3, kSaved = 2;
  Entries input_size, weight_size;
  KeptConvOptions options;

  ConvGradients() = default;
  ConvGradients(IntArrayRef input, IntArrayRef weight, const ConvOptions& o)
      : input_size(entries(input)), weight_size(entries(weight)), options(o) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.input_size, self.weight_size, self.options);
  }

  void operator()(const Tensor& dy, const Tensor* saved, const bool* wanted, Tensor* gradients) const {
    const Trained trained(wanted[1]);
    if (wanted[0]) gradients[0] = conv_gradient("conv_backward_input", dy, saved[1], input_size, options);
    if (wanted[1]) gradients[1] = conv_gradient("conv_backward_weight", dy, saved[0], weight_size, options);
    if (wanted[2]) gradients[2] = wants_graph() ? differentiable("conv_backward_bias", dy) : run_conv_bias_gradient(dy);
  }
};

// The same with a clamp or a leaky ReLU behind it, whose slope the output tells: it is saved, too.
struct ConvActivatedGradients : ConvGradients {
  static constexpr const char* kName = "ConvActivatedBackward";
  static constexpr size_t kSaved = 3;
  int64_t activation = 0;
  double a = 0, b = 0;

  ConvActivatedGradients() = default;
  ConvActivatedGradients(IntArrayRef input, IntArrayRef weight, const ConvOptions& o, const EpilogueOptions& e)
      : ConvGradients(input, weight, o), activation(int64_t(parse_activation(e.activation))), a(e.a), b(e.b) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    ConvGradients::each(self, visit);
    visit(self.activation, self.a, self.b);
  }

  void operator()(const Tensor& dy, const Tensor* saved, const bool* wanted, Tensor* gradients) const {
    const char* name = kActivations[activation];
    const Tensor output = saved[2].detach();
    const Tensor before = wants_graph() || !is_plain(dy) ? differentiable("before_activation", dy, output, name, a, b)
                                                         : run_activation_gradient(dy, output, {name, a, b});
    ConvGradients::operator()(before, saved, wanted, gradients);
  }
};

// Of the gradient that is the input of a transposed convolution, and the weight. Saved likewise.
struct ConvInputGradients {
  static constexpr const char* kName = "ConvTransposeBackward";
  static constexpr size_t kInputs = 2, kSaved = 2;
  Entries weight_size;
  KeptConvOptions options;

  ConvInputGradients() = default;
  ConvInputGradients(IntArrayRef weight, const ConvOptions& o) : weight_size(entries(weight)), options(o) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.weight_size, self.options);
  }

  void operator()(const Tensor& grad, const Tensor* saved, const bool* wanted, Tensor* gradients) const {
    const ConvOptions& o = options;
    const Tensor &grad_output = saved[0], &weight = saved[1];
    if (wanted[0])
      gradients[0] = wants_graph()
                         ? differentiable("conv", grad, weight, py::none(), list(o.stride), list(o.padding),
                                          list(o.dilation), o.groups, o.padding_mode, o.flip_kernel, o.algorithm)
                         : run_conv(grad, weight, std::nullopt, o);
    if (wanted[1]) gradients[1] = conv_gradient("conv_backward_weight", grad_output, grad, weight_size, o);
  }
};

}  // namespace

Tensor conv_fused(const Tensor& input, const Tensor& weight, const Bias& bias, const Bias& residual,
                  const ConvOptions& o, const EpilogueOptions& e) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Bias&, const Bias&, IntArrayRef, IntArrayRef,
                           IntArrayRef, int64_t, string_view, bool, string_view, double, double, bool, string_view)>(
          "convext::conv_fused");
  return op.call(input, weight, bias, residual, o.stride, o.padding, o.dilation, o.groups, o.padding_mode,
                 o.flip_kernel, e.activation, e.a, e.b, e.residual_last, o.algorithm);
}

Tensor channel_scale(at::TensorList inputs, const Tensor& scale, const Tensor& shift, const EpilogueOptions& e) {
  static const auto op =
      find_operator<Tensor(at::TensorList, const Tensor&, const Tensor&, string_view, double, double)>(
          "convext::channel_scale");
  return run(op, inputs, scale, shift, e.activation, e.a, e.b);
}

Tensor conv(const Tensor& input, const Tensor& weight, const Bias& bias, const ConvOptions& options) {
  if (!compute_requires_grad(input, weight, bias)) return run_conv(input, weight, bias, options);
  const ArenaScope memory;
  const Trained trained(weight.requires_grad());
  Tensor output = run_conv(input, weight, bias, options);
  attach<ConvGradients>(output, {&input, &weight, bias.has_value() ? &*bias : nullptr},
                        {weight.requires_grad() ? &input : nullptr, input.requires_grad() ? &weight : nullptr},
                        input.sizes(), weight.sizes(), options);
  return output;
}

Tensor conv_activated(const Tensor& input, const Tensor& weight, const Bias& bias, const ConvOptions& options,
                      const EpilogueOptions& activation) {
  const ArenaScope memory;
  const Trained trained(weight.requires_grad());
  Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = conv_fused(input, weight, bias, std::nullopt, options, activation);
  }
  attach<ConvActivatedGradients>(
      output, {&input, &weight, bias.has_value() ? &*bias : nullptr},
      {weight.requires_grad() ? &input : nullptr, input.requires_grad() ? &weight : nullptr, &output}, input.sizes(),
      weight.sizes(), options, activation);
  return output;
}

Tensor conv_input_gradient(const Tensor& grad_output, const Tensor& weight, IntArrayRef input_size,
                           const ConvOptions& options) {
  if (!compute_requires_grad(grad_output, weight))
    return run_conv_gradient(true, grad_output, weight, input_size, options);
  const ArenaScope memory;
  Tensor output = run_conv_gradient(true, grad_output, weight, input_size, options);
  attach<ConvInputGradients>(
      output, {&grad_output, &weight},
      {weight.requires_grad() ? &grad_output : nullptr, grad_output.requires_grad() ? &weight : nullptr},
      weight.sizes(), options);
  return output;
}

}  // namespace convext
