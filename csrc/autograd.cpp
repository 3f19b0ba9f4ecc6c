// Each Function computes its operator and, where no graph of the gradient is asked for, its gradients by the operators;
// else it hands over to the Python Function of the same meaning. What is saved is what the gradients read.
#include "autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/utils/pybind.h>

#include "arena.h"
#include "calls.h"
#include "geometry_checks.h"
#include "packed_weights.h"

namespace convext {
namespace {

namespace py = pybind11;
using at::IntArrayRef;
using at::Tensor;
using std::string_view;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
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

std::tuple<Tensor, Tensor> run_max_pool(const Tensor& input, const PoolOptions& o, bool with_places) {
  static const auto op = find_operator<std::tuple<Tensor, Tensor>(
      const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool, string_view)>("convext::max_pool");
  return run(op, input, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, with_places, o.algorithm);
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

// The gradient's graph is wanted: convext.autograd's function of that name.
template <typename... Args>
Tensor differentiable(const char* name, Args&&... args) {
  const py::gil_scoped_acquire gil;
  return py::module_::import("convext.autograd").attr(name)(std::forward<Args>(args)...).template cast<Tensor>();
}

bool wants_graph() { return at::GradMode::is_enabled(); }

// Options kept for the gradient --------------------------------------------------------------------------------------
// As one text, the cheapest that a context holds: numbers (sizes and arguments, each led by its length), then the name
// of the algorithm. A number is its digits in base 32, the least first: '@' to '_', the last one '`' to DEL.

class Kept {
 public:
  Kept() { text_.reserve(96); }
  explicit Kept(AutogradContext* ctx) : text_(ctx->saved_data["options"].toStringRef()) {}
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  void put(int64_t value) {
    uint64_t left = uint64_t(value);
    for (; left >= 32; left /= 32) text_.push_back(char('@' + left % 32));
    text_.push_back(char('`' + left));
  }
  void put(IntArrayRef values) {
    put(int64_t(values.size()));
    for (int64_t value : values) put(value);
  }
  void keep(AutogradContext* ctx, string_view name) {
    text_.append(name);
    ctx->saved_data["options"] = std::move(text_);
  }

  int64_t take() {
    uint64_t value = 0;
    int shift = 0;
    for (; text_[at_] < '`'; shift += 5) value |= uint64_t(text_[at_++] - '@') << shift;
    return int64_t(value | uint64_t(text_[at_++] - '`') << shift);
  }
  Entries take_entries() {
    Entries values;
    values.resize(size_t(take()));
    for (int64_t& value : values) value = take();
    return values;
  }
  string_view rest() const { return string_view(text_).substr(at_); }

 private:
  std::string text_;
  size_t at_ = 0;
};

void keep(AutogradContext* ctx, const ConvOptions& o, IntArrayRef a_size, IntArrayRef b_size, bool biased) {
  PaddingMode mode = PaddingMode::zeros;
  parse_padding_mode(o.padding_mode, &mode);  // forward has run: it is one
  Kept kept;
  for (IntArrayRef values : {a_size, b_size, IntArrayRef(o.stride), IntArrayRef(o.padding), IntArrayRef(o.dilation)})
    kept.put(values);
  for (int64_t value : {o.groups, int64_t(mode), int64_t(o.flip_kernel), int64_t(biased)}) kept.put(value);
  kept.keep(ctx, o.algorithm);
}

struct KeptConv : Kept {
  Entries a_size, b_size;
  ConvOptions options;
  bool biased;

  explicit KeptConv(AutogradContext* ctx) : Kept(ctx) {
    for (Entries* values : {&a_size, &b_size, &options.stride, &options.padding, &options.dilation})
      *values = take_entries();
    options.groups = take();
    options.padding_mode = name_of(PaddingMode(take()));
    options.flip_kernel = take() != 0;
    biased = take() != 0;
    options.algorithm = rest();
  }
};

void keep(AutogradContext* ctx, const PoolOptions& o, IntArrayRef input_size) {
  Kept kept;
  for (IntArrayRef values :
       {input_size, IntArrayRef(o.kernel), IntArrayRef(o.stride), IntArrayRef(o.padding), IntArrayRef(o.dilation)})
    kept.put(values);
  for (int64_t value : {int64_t(o.ceil_mode), int64_t(o.count_include_pad), o.divisor_override.value_or(0)})
    kept.put(value);
  kept.keep(ctx, o.algorithm);
}

struct KeptPool : Kept {
  Entries input_size;
  PoolOptions options;

  explicit KeptPool(AutogradContext* ctx) : Kept(ctx) {
    for (Entries* values : {&input_size, &options.kernel, &options.stride, &options.padding, &options.dilation})
      *values = take_entries();
    options.ceil_mode = take() != 0;
    options.count_include_pad = take() != 0;
    if (const int64_t divisor = take()) options.divisor_override = divisor;  // 0 itself is refused
    options.algorithm = rest();
  }
};

// Functions ----------------------------------------------------------------------------------------------------------

std::vector<int64_t> list(IntArrayRef values) { return values.vec(); }  // for Python

Tensor conv_gradient(const char* name, const Tensor& a, const Tensor& b, IntArrayRef size, const ConvOptions& o) {
  if (wants_graph())
    return differentiable(name, a, b, list(size), list(o.stride), list(o.padding), list(o.dilation), o.groups,
                          o.padding_mode, o.flip_kernel, o.algorithm);
  return run_conv_gradient(string_view(name) == "conv_backward_input", a, b, size, o);
}

struct Conv : Function<Conv> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Bias& bias,
                        const ConvOptions& options) {
    const ArenaScope memory;
    ctx->save_for_backward({weight.requires_grad() ? input : Tensor(), input.requires_grad() ? weight : Tensor()});
    const Trained trained(weight.requires_grad());
    const Tensor output = run_conv(input, weight, bias, options);
    keep(ctx, options, input.sizes(), weight.sizes(), bias.has_value());
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ArenaScope memory;
    const variable_list saved = ctx->get_saved_variables();
    const KeptConv kept(ctx);
    const Trained trained(ctx->needs_input_grad(1));
    const Tensor &dy = grads[0], &input = saved[0], &weight = saved[1];
    variable_list result(4);
    if (ctx->needs_input_grad(0))
      result[0] = conv_gradient("conv_backward_input", dy, weight, kept.a_size, kept.options);
    if (ctx->needs_input_grad(1))
      result[1] = conv_gradient("conv_backward_weight", dy, input, kept.b_size, kept.options);
    if (kept.biased && ctx->needs_input_grad(2))
      result[2] = wants_graph() ? differentiable("conv_backward_bias", dy) : run_conv_bias_gradient(dy);
    return result;
  }
};

struct ConvInputGradient : Function<ConvInputGradient> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& weight, IntArrayRef input_size,
                        const ConvOptions& options) {
    const ArenaScope memory;
    ctx->save_for_backward(
        {weight.requires_grad() ? grad_output : Tensor(), grad_output.requires_grad() ? weight : Tensor()});
    const Tensor output = run_conv_gradient(true, grad_output, weight, input_size, options);
    keep(ctx, options, input_size, weight.sizes(), /*biased=*/false);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ArenaScope memory;
    const variable_list saved = ctx->get_saved_variables();
    const KeptConv kept(ctx);
    const ConvOptions& o = kept.options;
    const Tensor &grad = grads[0], &grad_output = saved[0], &weight = saved[1];
    variable_list result(4);
    if (ctx->needs_input_grad(0))
      result[0] = wants_graph() ? differentiable("conv", grad, weight, py::none(), list(o.stride), list(o.padding),
                                                 list(o.dilation), o.groups, o.padding_mode, o.flip_kernel, o.algorithm)
                                : run_conv(grad, weight, std::nullopt, o);
    if (ctx->needs_input_grad(1)) result[1] = conv_gradient("conv_backward_weight", grad_output, grad, kept.b_size, o);
    return result;
  }
};

struct MaxPool : Function<MaxPool> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& input, const PoolOptions& options) {
    const ArenaScope memory;
    auto [output, places] = run_max_pool(input, options, /*with_places=*/true);
    ctx->save_for_backward({places});
    keep(ctx, options, input.sizes());
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ArenaScope memory;
    const Tensor places = ctx->get_saved_variables()[0];
    const KeptPool kept(ctx);
    const PoolOptions& o = kept.options;
    if (wants_graph())
      return {differentiable("max_pool_backward", grads[0], places, list(kept.input_size), list(o.kernel),
                             list(o.stride), list(o.padding), list(o.dilation), o.ceil_mode, o.algorithm),
              Tensor()};
    return {run_max_pool_gradient(grads[0], places, kept.input_size, o), Tensor()};
  }
};

struct AvgPool : Function<AvgPool> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& input, const PoolOptions& options) {
    const ArenaScope memory;
    const Tensor output = run_avg_pool(input, options);
    keep(ctx, options, input.sizes());
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ArenaScope memory;
    const KeptPool kept(ctx);
    const PoolOptions& o = kept.options;
    if (wants_graph())
      return {differentiable("avg_pool_backward", grads[0], list(kept.input_size), list(o.kernel), list(o.stride),
                             list(o.padding), list(o.dilation), o.ceil_mode, o.count_include_pad, o.divisor_override,
                             o.algorithm),
              Tensor()};
    return {run_avg_pool_gradient(grads[0], kept.input_size, o), Tensor()};
  }
};

struct LPPool : Function<LPPool> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t power, const PoolOptions& options) {
    const Tensor output = *power_pool(input, int(power), options);
    ctx->save_for_backward({input, output});
    ctx->saved_data["power"] = power;
    keep(ctx, options, input.sizes());
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t power = ctx->saved_data["power"].toInt();
    const KeptPool kept(ctx);
    const PoolOptions& o = kept.options;
    const Tensor& input = saved[0];
    if (wants_graph() || !is_plain(grads[0]))  // no operator, so nothing knows how to batch it
      return {differentiable("lp_pool_backward", grads[0], input, power, c10::multiply_integers(o.kernel),
                             list(o.kernel), list(o.stride), list(o.padding), list(o.dilation), o.ceil_mode,
                             o.count_include_pad, o.divisor_override, o.algorithm),
              Tensor(), Tensor()};
    const at::AutoDispatchBelowADInplaceOrView guard;
    return {power_pool_gradient(grads[0], input, saved[1], int(power), o), Tensor(), Tensor()};
  }
};

}  // namespace

using torch::autograd::compute_requires_grad;

Tensor conv(const Tensor& input, const Tensor& weight, const Bias& bias, const ConvOptions& options) {
  return compute_requires_grad(input, weight, bias) ? Conv::apply(input, weight, bias, options)
                                                    : run_conv(input, weight, bias, options);
}

Tensor conv_input_gradient(const Tensor& grad_output, const Tensor& weight, IntArrayRef input_size,
                           const ConvOptions& options) {
  return compute_requires_grad(grad_output, weight) ? ConvInputGradient::apply(grad_output, weight, input_size, options)
                                                    : run_conv_gradient(true, grad_output, weight, input_size, options);
}

Tensor max_pool(const Tensor& input, const PoolOptions& options) {
  return compute_requires_grad(input) ? MaxPool::apply(input, options)
                                      : std::get<0>(run_max_pool(input, options, /*with_places=*/false));
}

Tensor avg_pool(const Tensor& input, const PoolOptions& options) {
  return compute_requires_grad(input) ? AvgPool::apply(input, options) : run_avg_pool(input, options);
}

std::optional<Tensor> lp_pool(const Tensor& input, int power, const PoolOptions& options) {
  if (compute_requires_grad(input))
    return takes_power(input, power, options) ? std::optional(LPPool::apply(input, power, options)) : std::nullopt;
  const at::AutoDispatchBelowADInplaceOrView guard;
  return power_pool(input, power, options);
}

}  // namespace convext
