// Batch normalisation with its gradient.
#include "autograd_calls.h"
#include "ops.h"

namespace convext {
namespace {

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

}  // namespace convext
