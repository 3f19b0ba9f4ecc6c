// Pooling with its gradients.
#include "autograd_calls.h"
#include "ops.h"

namespace convext {
namespace {

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

// Kept for the gradient, with texts of their own: the caller's are gone by then.
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

}  // namespace

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
