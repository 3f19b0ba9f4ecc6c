// Each node computes, where no graph of the gradient is asked for, its gradients by the operators; else it hands over
// to the Python Function of the same meaning. What is saved is what the gradients read.
#include "autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>

#include "arena.h"
#include "epilogue_torch.h"
#include "geometry_checks.h"
#include "node.h"
#include "ops.h"
#include "packed_weights.h"
#include "python_arguments.h"

namespace convext {
namespace {

namespace py = pybind11;
using at::IntArrayRef;
using at::Tensor;
using std::string_view;
using Bias = std::optional<Tensor>;

// The operators, as the dispatcher knows them ------------------------------------------------------------------------

template <typename Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

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

// Runs an operator whose gradient is somebody else's concern.
template <typename Operator, typename... Args>
auto run(const Operator& op, Args&&... args) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(std::forward<Args>(args)...);
}

Tensor run_conv(const Tensor& input, const Tensor& weight, const Bias& bias, const ConvOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Bias&, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
                           string_view, bool, string_view)>("convext::conv_forward");
  return run(op, input, weight, bias, o.stride, o.padding, o.dilation, o.groups, o.padding_mode, o.flip_kernel,
             o.algorithm);
}

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

namespace {

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

std::tuple<Tensor, Tensor> run_max_pool(const Tensor& input, const PoolOptions& o, bool with_places) {
  static const auto op = find_operator<std::tuple<Tensor, Tensor>(
      const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool, string_view)>("convext::max_pool");
  return run(op, input, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, with_places, o.algorithm);
}

Tensor run_max_pool_indices(const Tensor& places, IntArrayRef size, const PoolOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool)>(
          "convext::max_pool_indices");
  return run(op, places, size, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode);
}

Tensor run_max_pool_gradient(const Tensor& grad_output, const Tensor& places, IntArrayRef size, const PoolOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                           IntArrayRef, bool, string_view)>("convext::max_pool_backward");
  return run(op, grad_output, places, size, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, o.algorithm);
}

Tensor run_avg_pool(const Tensor& input, const PoolOptions& o) {
  static const auto op = find_operator<Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool,
                                              bool, std::optional<int64_t>, string_view)>("convext::avg_pool");
  return run(op, input, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, o.count_include_pad, o.divisor_override,
             o.algorithm);
}

Tensor run_avg_pool_gradient(const Tensor& grad_output, IntArrayRef size, const PoolOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool,
                           std::optional<int64_t>, string_view)>("convext::avg_pool_backward");
  return run(op, grad_output, size, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, o.count_include_pad,
             o.divisor_override, o.algorithm);
}

std::tuple<Tensor, Tensor> run_batch_norm(const Tensor& input, const BatchNormOptions& o, const EpilogueOptions& e) {
  static const auto op = find_operator<std::tuple<Tensor, Tensor>(const Tensor&, const Bias&, const Bias&, double,
                                                                  string_view, double, double)>("convext::batch_norm");
  return run(op, input, o.weight, o.bias, o.eps, e.activation, e.a, e.b);
}

std::tuple<Tensor, Tensor, Tensor> run_batch_norm_gradient(const Tensor& grad_output, const Tensor& input,
                                                           const Tensor& kept, const EpilogueOptions& e) {
  static const auto op = find_operator<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, string_view, double, double)>("convext::batch_norm_backward");
  return run(op, grad_output, input, kept, e.activation, e.a, e.b);
}

Tensor run_max_unpool(const Tensor& input, const Tensor& indices, IntArrayRef output_size) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&, IntArrayRef)>("convext::max_unpool");
  return run(op, input, indices, output_size);
}

std::tuple<Tensor, Tensor> run_k_max_pool(const Tensor& input, int64_t k) {
  static const auto op = find_operator<std::tuple<Tensor, Tensor>(const Tensor&, int64_t)>("convext::k_max_pool");
  return run(op, input, k);
}

std::tuple<Tensor, Tensor> run_fractional_max_pool(const Tensor& input, const Tensor& samples, IntArrayRef kernel,
                                                   IntArrayRef output_size, bool with_places) {
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, bool)>(
          "convext::fractional_max_pool");
  return run(op, input, samples, kernel, output_size, with_places);
}

Tensor run_fractional_max_pool_gradient(const Tensor& grad_output, const Tensor& places, const Tensor& samples,
                                        IntArrayRef size, IntArrayRef kernel) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, IntArrayRef, IntArrayRef)>(
      "convext::fractional_max_pool_backward");
  return run(op, grad_output, places, samples, size, kernel);
}

Tensor run_fractional_max_pool_indices(const Tensor& places, const Tensor& samples, IntArrayRef size,
                                       IntArrayRef kernel) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef)>(
      "convext::fractional_max_pool_indices");
  return run(op, places, samples, size, kernel);
}

// The gradient's graph is wanted: convext.autograd's function of that name.
template <typename Gradient = Tensor, typename... Args>
Gradient differentiable(const char* name, Args&&... args) {
  const py::gil_scoped_acquire gil;
  return py::module_::import("convext.autograd").attr(name)(std::forward<Args>(args)...).template cast<Gradient>();
}

bool wants_graph() { return at::GradMode::is_enabled(); }

// Options kept for the gradient --------------------------------------------------------------------------------------
// With texts of their own: the caller's are gone by then.

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

class KeptPoolOptions : public PoolOptions {
 public:
  KeptPoolOptions() = default;
  explicit KeptPoolOptions(const PoolOptions& o) : PoolOptions(o), name(o.algorithm) { algorithm = name; }
  KeptPoolOptions(const KeptPoolOptions&) = delete;
  KeptPoolOptions& operator=(const KeptPoolOptions&) = delete;

  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, self.count_include_pad,
          self.divisor_override, self.name);
    if constexpr (!std::is_const_v<Self>) self.algorithm = self.name;
  }

 private:
  std::string name;
};

Entries entries(IntArrayRef values) { return Entries(values.begin(), values.end()); }

// Gradients: see node.h ----------------------------------------------------------------------------------------------

std::vector<int64_t> list(IntArrayRef values) { return values.vec(); }  // for Python

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

// What the gradients of pools keep, all but tensors.
struct PoolGradient {
  Entries input_size;
  KeptPoolOptions options;

  PoolGradient() = default;
  PoolGradient(IntArrayRef input, const PoolOptions& o) : input_size(entries(input)), options(o) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.input_size, self.options);
  }
};

struct MaxPoolGradient : PoolGradient {
  static constexpr const char* kName = "MaxPoolBackward";
  static constexpr size_t kInputs = 1, kSaved = 1;  // the places
  using PoolGradient::PoolGradient;

  void operator()(const Tensor& dy, const Tensor* saved, const bool*, Tensor* gradients) const {
    const PoolOptions& o = options;
    gradients[0] = wants_graph()
                       ? differentiable("max_pool_backward", dy, saved[0], list(input_size), list(o.kernel),
                                        list(o.stride), list(o.padding), list(o.dilation), o.ceil_mode, o.algorithm)
                       : run_max_pool_gradient(dy, saved[0], input_size, o);
  }
};

struct AvgPoolGradient : PoolGradient {
  static constexpr const char* kName = "AvgPoolBackward";
  static constexpr size_t kInputs = 1, kSaved = 0;
  using PoolGradient::PoolGradient;

  void operator()(const Tensor& dy, const Tensor*, const bool*, Tensor* gradients) const {
    const PoolOptions& o = options;
    gradients[0] = wants_graph() ? differentiable("avg_pool_backward", dy, list(input_size), list(o.kernel),
                                                  list(o.stride), list(o.padding), list(o.dilation), o.ceil_mode,
                                                  o.count_include_pad, o.divisor_override, o.algorithm)
                                 : run_avg_pool_gradient(dy, input_size, o);
  }
};

struct LPPoolGradient : PoolGradient {
  static constexpr const char* kName = "LPPoolBackward";
  static constexpr size_t kInputs = 1, kSaved = 2;  // input, output
  int64_t power = 0;

  LPPoolGradient() = default;
  LPPoolGradient(IntArrayRef input, const PoolOptions& o, int64_t p) : PoolGradient(input, o), power(p) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.input_size, self.options, self.power);
  }

  void operator()(const Tensor& dy, const Tensor* saved, const bool*, Tensor* gradients) const {
    const PoolOptions& o = options;
    const Tensor& input = saved[0];
    if (wants_graph() || !is_plain(dy)) {  // no operator, so nothing knows how to batch it
      gradients[0] = differentiable("lp_pool_backward", dy, input, power, c10::multiply_integers(o.kernel),
                                    list(o.kernel), list(o.stride), list(o.padding), list(o.dilation), o.ceil_mode,
                                    o.count_include_pad, o.divisor_override, o.algorithm);
      return;
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    gradients[0] = power_pool_gradient(dy, input, saved[1], int(power), o);
  }
};

struct MaxUnpoolGradient {
  static constexpr const char* kName = "MaxUnpoolBackward";
  static constexpr size_t kInputs = 1, kSaved = 1;  // the indices

  template <typename Self, typename Visit>
  static void each(Self&, Visit&) {}

  void operator()(const Tensor& dy, const Tensor* saved, const bool*, Tensor* gradients) const {
    if (wants_graph() || !is_plain(dy) || !dy.is_cpu()) {
      gradients[0] = differentiable("max_unpool_backward", dy, saved[0]);
      return;
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    gradients[0] = max_unpool_gradient(dy, saved[0]);
  }
};

// Lines along a dimension as the only plane's channels: what the operator takes of them.
Tensor as_lines(const Tensor& t, int64_t dim) { return t.movedim(dim, -1).reshape({1, -1, t.size(dim)}); }
// And back, from lines of k numbers, to the shape of `sizes` but for k.
Tensor from_lines(const Tensor& lines, IntArrayRef sizes, int64_t dim) {
  at::DimVector shape(sizes.begin(), sizes.end());
  shape.erase(shape.begin() + dim);
  shape.push_back(lines.size(2));
  return lines.reshape(shape).movedim(-1, dim);
}

struct KMaxPoolGradient {
  static constexpr const char* kName = "KMaxPoolBackward";
  static constexpr size_t kInputs = 1, kSaved = 1;  // the indices, as the operator gave them
  std::vector<int64_t> input_size;
  std::optional<int64_t> dim;

  KMaxPoolGradient() = default;
  KMaxPoolGradient(IntArrayRef input, std::optional<int64_t> d) : input_size(input.vec()), dim(d) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.input_size, self.dim);
  }

  void operator()(const Tensor& dy, const Tensor* saved, const bool*, Tensor* gradients) const {
    const IntArrayRef sizes = input_size;
    if (wants_graph()) {
      gradients[0] = differentiable("k_max_pool_backward", dy, saved[0], input_size, dim);
      return;
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    gradients[0] = dim.has_value()
                       ? from_lines(run_max_unpool(as_lines(dy, *dim), saved[0], {sizes[*dim]}), sizes, *dim)
                       : run_max_unpool(dy, saved[0], {c10::multiply_integers(sizes.slice(2))}).reshape(sizes);
  }
};

struct FractionalMaxPoolGradient {
  static constexpr const char* kName = "FractionalMaxPoolBackward";
  static constexpr size_t kInputs = 1, kSaved = 2;  // places, samples
  Entries input_size, kernel;

  FractionalMaxPoolGradient() = default;
  FractionalMaxPoolGradient(IntArrayRef input, IntArrayRef k) : input_size(entries(input)), kernel(entries(k)) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.input_size, self.kernel);
  }

  void operator()(const Tensor& dy, const Tensor* saved, const bool*, Tensor* gradients) const {
    gradients[0] = wants_graph() ? differentiable("fractional_max_pool_backward", dy, saved[0], saved[1],
                                                  list(input_size), list(kernel))
                                 : run_fractional_max_pool_gradient(dy, saved[0], saved[1], input_size, kernel);
  }
};

// Of input, weight, bias.
struct BatchNormGradient {
  static constexpr const char* kName = "BatchNormBackward";
  static constexpr size_t kInputs = 3, kSaved = 4;  // input, weight, bias, what the operator keeps
  std::string activation;
  double a = 0, b = 0, eps = 0;

  BatchNormGradient() = default;
  BatchNormGradient(const EpilogueOptions& e, double epsilon)
      : activation(e.activation), a(e.a), b(e.b), eps(epsilon) {}
  template <typename Self, typename Visit>
  static void each(Self& self, Visit& visit) {
    visit(self.activation, self.a, self.b, self.eps);
  }

  void operator()(const Tensor& dy, const Tensor* saved, const bool* wanted, Tensor* gradients) const {
    if (wants_graph() || !is_plain(dy) || dy.scalar_type() != saved[0].scalar_type()) {
      const auto all = differentiable<std::array<std::optional<Tensor>, kInputs>>(
          "batch_norm_backward", dy, saved[0], saved[1], saved[2], eps, activation, a, b);
      for (size_t i = 0; i < kInputs; ++i)
        if (wanted[i] && all[i].has_value()) gradients[i] = *all[i];
      return;
    }
    Tensor all[kInputs];
    std::tie(all[0], all[1], all[2]) = run_batch_norm_gradient(dy, saved[0], saved[3], {activation, a, b});
    for (size_t i = 0; i < kInputs; ++i)
      if (wanted[i]) gradients[i] = all[i];
  }
};

}  // namespace

using torch::autograd::compute_requires_grad;

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

Pooled max_pool(const Tensor& input, const PoolOptions& options, bool with_indices) {
  const bool trained = compute_requires_grad(input);
  std::optional<ArenaScope> memory;
  if (trained) memory.emplace();
  auto [output, places] = run_max_pool(input, options, /*with_places=*/trained || with_indices);
  if (trained) attach<MaxPoolGradient>(output, {&input}, {&places}, input.sizes(), options);
  return {output, with_indices ? run_max_pool_indices(places, input.sizes(), options) : Tensor()};
}

Tensor avg_pool(const Tensor& input, const PoolOptions& options) {
  if (!compute_requires_grad(input)) return run_avg_pool(input, options);
  const ArenaScope memory;
  Tensor output = run_avg_pool(input, options);
  attach<AvgPoolGradient>(output, {&input}, {}, input.sizes(), options);
  return output;
}

std::optional<Tensor> lp_pool(const Tensor& input, int power, const PoolOptions& options) {
  std::optional<Tensor> output;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    output = power_pool(input, power, options);
  }
  if (output.has_value() && compute_requires_grad(input))
    attach<LPPoolGradient>(*output, {&input}, {&input, &*output}, input.sizes(), options, power);
  return output;
}

std::optional<Tensor> batch_norm(const Tensor& input, const BatchNormOptions& options, const EpilogueOptions& e) {
  const bool trained = compute_requires_grad(input, options.weight, options.bias);
  if ((trained && !options.training) || !normalises(input, options, e)) return std::nullopt;
  if (!options.training) return normalise_by_running(input, options, e);
  std::optional<ArenaScope> memory;
  if (trained) memory.emplace();
  auto [output, kept] = run_batch_norm(input, options, e);
  follow_statistics(options, kept);
  const auto pointer = [](const Bias& t) { return t.has_value() ? &*t : nullptr; };
  if (trained)
    attach<BatchNormGradient>(output, {&input, pointer(options.weight), pointer(options.bias)},
                              {&input, pointer(options.weight), pointer(options.bias), &kept}, e, options.eps);
  return output;
}

Tensor max_unpool(const Tensor& input, const Tensor& indices, IntArrayRef output_size) {
  const bool trained = compute_requires_grad(input);
  std::optional<ArenaScope> memory;
  if (trained) memory.emplace();
  Tensor output = run_max_unpool(input, indices, output_size);
  if (trained) attach<MaxUnpoolGradient>(output, {&input}, {&indices});
  return output;
}

Pooled k_max_pool(const Tensor& input, int64_t k, std::optional<int64_t> dim, bool with_indices) {
  Tensor output, indices;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    std::tie(output, indices) = run_k_max_pool(dim.has_value() ? as_lines(input, *dim) : input, k);
    if (dim.has_value()) output = from_lines(output, input.sizes(), *dim);
  }
  if (compute_requires_grad(input)) attach<KMaxPoolGradient>(output, {&input}, {&indices}, input.sizes(), dim);
  if (!with_indices) return {output, Tensor()};
  return {output, dim.has_value() ? from_lines(indices, input.sizes(), *dim) : indices};
}

Pooled fractional_max_pool(const Tensor& input, const Tensor& samples, IntArrayRef kernel_size, IntArrayRef output_size,
                           bool with_indices) {
  const bool trained = compute_requires_grad(input);
  auto [output, places] = run_fractional_max_pool(input, samples, kernel_size, output_size, trained || with_indices);
  if (trained) attach<FractionalMaxPoolGradient>(output, {&input}, {&places, &samples}, input.sizes(), kernel_size);
  return {output,
          with_indices ? run_fractional_max_pool_indices(places, samples, input.sizes(), kernel_size) : Tensor()};
}

}  // namespace convext
