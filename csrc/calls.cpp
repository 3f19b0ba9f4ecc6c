// The short road: a whole call of convext.functional in one step of C++. convext/functional is the definition of a
// call; most of what it decides (subclasses, transforms, tracing, autocast, odd arguments, errors) does not concern a
// plain call: plain tensors on a CPU or GPU, nothing watching, arguments of the usual types. Those are read here
// straight off their Python objects and handed to the operator, with its gradient where one is asked for. Whatever is
// not plain goes the long road, a function of convext/functional. So no error of an argument is stated here, and the
// two roads cannot disagree on one; errors of sizes come from the operator, whichever road led there.
#include "calls.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/rand.h>
#include <torch/csrc/Exceptions.h>

#include <array>

#include "autograd.h"
#include "chain.h"
#include "epilogue_torch.h"
#include "geometry_checks.h"
#include "ops.h"
#include "python_arguments.h"

namespace convext {

namespace {

using at::Tensor;
using Arguments = PyObject* const*;

// "same": the output has ceil(size / stride) places; the odd one of the padding at the end, or with `lower` at the
// start.
void same_padding(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, bool lower, int64_t* sides) {
  const int64_t total =
      std::max<int64_t>((ceil_div(size, stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0);
  sides[lower ? 1 : 0] = total / 2;
  sides[lower ? 0 : 1] = total - total / 2;
}

// Every form of padding that convext/padding.py knows, for an input and a kernel of these sizes.
bool read_padding(PyObject* object, at::IntArrayRef places, at::IntArrayRef kernel, const Entries& stride,
                  const Entries& dilation, Entries* out) {
  const int spatial = int(places.size());
  out->assign(2 * spatial, 0);
  std::string_view name;
  if (read(object, &name)) {
    if (name == "valid") return true;
    if (name != "same" && name != "same_lower") return false;
    for (int i = 0; i < spatial; ++i) {
      if (stride[i] <= 0) return false;
      same_padding(places[i], kernel[i], stride[i], dilation[i], name == "same_lower", out->data() + 2 * i);
    }
    return true;
  }
  if (is_sequence(object) && PySequence_Fast_GET_SIZE(object) == spatial &&
      is_sequence(PySequence_Fast_GET_ITEM(object, 0))) {
    for (int i = 0; i < spatial; ++i) {
      PyObject* pair = PySequence_Fast_GET_ITEM(object, i);
      if (!is_sequence(pair) || PySequence_Fast_GET_SIZE(pair) != 2) return false;
      for (int side = 0; side < 2; ++side)
        if (!read(PySequence_Fast_GET_ITEM(pair, side), &(*out)[2 * i + side])) return false;
    }
    return true;
  }
  Entries both;
  if (!read(object, spatial, &both)) return false;
  for (int i = 0; i < spatial; ++i) (*out)[2 * i] = (*out)[2 * i + 1] = both[i];
  return true;
}

// An input with a batch, which it is given here if it has none.
bool read_input(PyObject* object, int spatial, Tensor* input, bool* unbatched) {
  if (!read(object, input)) return false;
  *unbatched = input->dim() == spatial + 1;
  if (*unbatched) *input = input->unsqueeze(0);
  return input->dim() == spatial + 2;
}

// The calls ----------------------------------------------------------------------------------------------------------

constexpr PyObject* not_plain = nullptr;

// How many elements of operands make it worth letting other threads of Python run meanwhile: some microseconds of work.
constexpr int64_t kWorthUnlocking = 8192;

template <typename Compute>
PyObject* answer(int64_t elements, bool unbatched, const Compute& compute) {
  std::optional<pybind11::gil_scoped_release> unlocked;
  if (elements > kWorthUnlocking) unlocked.emplace();
  Tensor output = compute();
  if (unbatched) output = output.squeeze(0);
  unlocked.reset();
  return THPVariable_Wrap(std::move(output));
}

// Of what there may be no kernels for: then the call is not plain.
template <typename Compute>
PyObject* answer_if_any(int64_t elements, const Compute& compute) {
  std::optional<Tensor> output;
  {
    std::optional<pybind11::gil_scoped_release> unlocked;
    if (elements > kWorthUnlocking) unlocked.emplace();
    output = compute();
  }
  return output.has_value() ? THPVariable_Wrap(*std::move(output)) : not_plain;
}

// Of a pooling: the output, or a tuple with the indices where there are any.
template <typename Compute>
PyObject* answer_pooled(int64_t elements, bool unbatched, const Compute& compute) {
  Tensor indices;
  PyObject* first = answer(elements, unbatched, [&] {
    Tensor output;
    std::tie(output, indices) = compute();
    if (unbatched && indices.defined()) indices = indices.squeeze(0);
    return output;
  });
  if (!indices.defined() || first == nullptr) return first;
  const auto output = pybind11::reinterpret_steal<pybind11::object>(first);
  PyObject* second = THPVariable_Wrap(std::move(indices));
  return second == nullptr ? nullptr
                           : PyTuple_Pack(2, first, pybind11::reinterpret_steal<pybind11::object>(second).ptr());
}

struct ConvOperands {
  Tensor input, weight;
  std::optional<Tensor> bias;
  bool unbatched = false;

  int64_t elements() const { return input.numel() + weight.numel(); }
  at::IntArrayRef places() const { return input.sizes().slice(2); }
  at::IntArrayRef kernel() const { return weight.sizes().slice(2); }
};

bool read_operands(Arguments args, int spatial, ConvOperands* out) {
  return !at::impl::torch_function_mode_enabled() && read_input(args[0], spatial, &out->input, &out->unbatched) &&
         read(args[1], &out->weight) && out->weight.dim() == spatial + 2 && read(args[2], &out->bias);
}

// input, weight, bias, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
PyObject* call_conv(int spatial, Arguments args) {
  ConvOperands x;
  ConvOptions o;
  if (!read_operands(args, spatial, &x) || !read(args[3], spatial, &o.stride) || !read(args[5], spatial, &o.dilation) ||
      !read_padding(args[4], x.places(), x.kernel(), o.stride, o.dilation, &o.padding) || !read(args[6], &o.groups) ||
      !read(args[7], &o.padding_mode) || !read(args[8], &o.flip_kernel) || !read(args[9], &o.algorithm))
    return not_plain;
  return answer(x.elements(), x.unbatched, [&] { return conv(x.input, x.weight, x.bias, o); });
}

// As call_conv, then residual, activation, a, b, residual_last. No gradient.
PyObject* call_conv_fused(int spatial, Arguments args) {
  ConvOperands x;
  ConvOptions o;
  EpilogueOptions e;
  std::optional<Tensor> residual;
  if (!read_operands(args, spatial, &x) || x.unbatched || !read(args[3], spatial, &o.stride) ||
      !read(args[5], spatial, &o.dilation) ||
      !read_padding(args[4], x.places(), x.kernel(), o.stride, o.dilation, &o.padding) || !read(args[6], &o.groups) ||
      !read(args[7], &o.padding_mode) || !read(args[8], &o.flip_kernel) || !read(args[9], &o.algorithm) ||
      !read(args[10], &residual) || !read(args[11], &e.activation) || !read(args[12], &e.a) || !read(args[13], &e.b) ||
      !read(args[14], &e.residual_last))
    return not_plain;
  const auto trains = [](const std::optional<Tensor>& t) { return t.has_value() && t->requires_grad(); };
  if (at::GradMode::is_enabled() && (trains(x.input) || trains(x.weight) || trains(x.bias) || trains(residual))) {
    if (residual.has_value() || !tells_slope(e.activation, e.a, e.b)) return not_plain;
    return answer(x.elements(), x.unbatched, [&] { return conv_activated(x.input, x.weight, x.bias, o, e); });
  }
  return answer(x.elements(), x.unbatched, [&] { return conv_fused(x.input, x.weight, x.bias, residual, o, e); });
}

// The sizes of the output without batch and channels; false for what convext.functional must look at or refuse.
bool transposed_sizes(const ConvOperands& x, const ConvOptions& o, const Entries& extra, bool same, Entries* sizes) {
  if (o.groups <= 0 || x.input.size(1) != x.weight.size(0)) return false;
  if (x.bias.has_value() && (x.bias->dim() != 1 || x.bias->size(0) != x.weight.size(1) * o.groups ||
                             x.bias->scalar_type() != x.input.scalar_type()))
    return false;
  for (size_t i = 0; i < sizes->size(); ++i) {
    if (o.stride[i] <= 0 || o.dilation[i] <= 0 || extra[i] < 0 || extra[i] >= o.stride[i] || (same && extra[i] != 0))
      return false;
    (*sizes)[i] = same ? x.places()[i] * o.stride[i]
                       : (x.places()[i] - 1) * o.stride[i] - o.padding[2 * i] - o.padding[2 * i + 1] +
                             o.dilation[i] * (x.kernel()[i] - 1) + extra[i] + 1;
  }
  return true;
}

// input, weight, bias, stride, padding, output_padding, groups, dilation, flip_kernel, algorithm
PyObject* call_conv_transpose(int spatial, Arguments args) {
  ConvOperands x;
  ConvOptions o;
  o.padding_mode = "zeros";
  Entries extra, sizes(spatial);
  if (!read_operands(args, spatial, &x) || !read(args[3], spatial, &o.stride) || !read(args[5], spatial, &extra) ||
      !read(args[6], &o.groups) || !read(args[7], spatial, &o.dilation) || !read(args[8], &o.flip_kernel) ||
      !read(args[9], &o.algorithm))
    return not_plain;
  std::string_view name;
  const bool same = read(args[4], &name) && name != "valid";
  if (same && !transposed_sizes(x, o, extra, same, &sizes)) return not_plain;
  if (!read_padding(args[4], same ? at::IntArrayRef(sizes) : x.places(), x.kernel(), o.stride, o.dilation, &o.padding))
    return not_plain;
  if (!same && !transposed_sizes(x, o, extra, same, &sizes)) return not_plain;
  Entries shape{x.input.size(0), x.weight.size(1) * o.groups};
  shape.append(sizes.begin(), sizes.end());
  std::string named;
  if (o.algorithm != "auto") o.algorithm = named = std::string(o.algorithm).append(kTransposed);
  return answer(x.elements(), x.unbatched, [&] {
    Tensor output = conv_input_gradient(x.input, x.weight, shape, o);
    if (!x.bias.has_value()) return output;
    Entries per_channel(spatial + 2, 1);
    per_channel[1] = -1;
    return output.add_(x.bias->reshape(per_channel));
  });
}

// kernel_size, stride, padding, dilation
bool read_window(at::IntArrayRef places, std::array<PyObject*, 4> args, PoolOptions* o) {
  const int spatial = int(places.size());
  const auto [kernel, stride, padding, dilation] = args;
  if (!read(kernel, spatial, &o->kernel) || !read(dilation, spatial, &o->dilation)) return false;
  if (stride == Py_None || (is_sequence(stride) && PySequence_Fast_GET_SIZE(stride) == 0))
    o->stride = o->kernel;
  else if (!read(stride, spatial, &o->stride))
    return false;
  return read_padding(padding, places, o->kernel, o->stride, o->dilation, &o->padding);
}

// A layer of call_chain: (weight, bias, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm,
// activation, a, b, residual_last), or of a max pooling (kernel_size, stride, padding, dilation, ceil_mode, algorithm).
// Paddings that depend on the input's size are not plain here.
bool read_layer(PyObject* object, ChainCall* layer) {
  constexpr int spatial = 2;
  constexpr int64_t unknown[spatial] = {};
  if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) < 6) return false;
  const auto item = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(object, i); };
  layer->pools = PyTuple_GET_SIZE(object) == 6;
  std::string_view padding;
  if (read(item(layer->pools ? 2 : 3), &padding) && padding != "valid") return false;
  if (layer->pools) {
    PoolOptions& o = layer->pool;
    return read_window(unknown, {item(0), item(1), item(2), item(3)}, &o) && read(item(4), &o.ceil_mode) &&
           read(item(5), &o.algorithm);
  }
  ConvOptions& o = layer->conv;
  EpilogueOptions& e = layer->epilogue;
  return PyTuple_GET_SIZE(object) == 13 && read(item(0), &layer->weight) && layer->weight.dim() == 2 + spatial &&
         read(item(1), &layer->bias) && read(item(2), spatial, &o.stride) && read(item(4), spatial, &o.dilation) &&
         read_padding(item(3), unknown, unknown, o.stride, o.dilation, &o.padding) && read(item(5), &o.groups) &&
         read(item(6), &o.padding_mode) && read(item(7), &o.flip_kernel) && read(item(8), &o.algorithm) &&
         read(item(9), &e.activation) && read(item(10), &e.a) && read(item(11), &e.b) &&
         read(item(12), &e.residual_last);
}

}  // namespace

// No gradient.
PyObject* call_chain(int, Arguments args) {
  Tensor input;
  std::optional<Tensor> residual;
  std::vector<ChainCall> layers(size_t(PyTuple_GET_SIZE(args[1])));
  bool plain = !at::impl::torch_function_mode_enabled() && !layers.empty() && read(args[0], &input) &&
               input.dim() == 4 && read(args[2], &residual);
  for (size_t i = 0; plain && i < layers.size(); ++i) plain = read_layer(PyTuple_GET_ITEM(args[1], i), &layers[i]);
  const auto trains = [](const std::optional<Tensor>& t) {
    return t.has_value() && t->defined() && t->requires_grad();
  };
  if (plain && at::GradMode::is_enabled()) {
    plain = !trains(input) && !trains(residual);
    for (const ChainCall& layer : layers) plain = plain && !trains(layer.weight) && !trains(layer.bias);
  }
  if (!plain) return not_plain;
  return answer(input.numel(), false, [&] { return run_layers(input, layers, residual); });
}

namespace {

// call_chain for Python, to which None says that the call is not plain.
PyObject* layers_entry(PyObject*, Arguments args, Py_ssize_t given) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(given == 3 && PyTuple_Check(args[1]), "expected an input, a tuple of layers, a residual or None");
  PyObject* output = call_chain(2, args);
  if (output != not_plain) return output;
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// inputs, a tuple of them; scale, shift, activation, a, b. No gradient.
PyObject* call_channel_scale(int, Arguments args) {
  if (at::impl::torch_function_mode_enabled() || !PyTuple_Check(args[0])) return not_plain;
  std::vector<Tensor> inputs(size_t(PyTuple_GET_SIZE(args[0])));
  Tensor scale, shift;
  EpilogueOptions e;
  bool plain = read(args[1], &scale) && read(args[2], &shift) && read(args[3], &e.activation) && read(args[4], &e.a) &&
               read(args[5], &e.b);
  int64_t elements = 0;
  bool trains = scale.requires_grad() || shift.requires_grad();
  for (size_t i = 0; plain && i < inputs.size(); ++i) {
    plain = read(PyTuple_GET_ITEM(args[0], i), &inputs[i]);
    if (!plain) break;
    elements += inputs[i].numel();
    trains = trains || inputs[i].requires_grad();
  }
  if (!plain || (trains && at::GradMode::is_enabled())) return not_plain;
  return answer(elements, false, [&] { return channel_scale(inputs, scale, shift, e); });
}

// input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algorithm
PyObject* call_max_pool(int spatial, Arguments args) {
  Tensor input;
  bool unbatched = false, return_indices = false;
  PoolOptions o;
  if (at::impl::torch_function_mode_enabled() || !read_input(args[0], spatial, &input, &unbatched) ||
      !read_window(input.sizes().slice(2), {args[1], args[2], args[3], args[4]}, &o) || !read(args[5], &o.ceil_mode) ||
      !read(args[6], &return_indices) || !read(args[7], &o.algorithm))
    return not_plain;
  return answer_pooled(input.numel(), unbatched, [&] { return max_pool(input, o, return_indices); });
}

// input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, algorithm
PyObject* call_avg_pool(int spatial, Arguments args) {
  Tensor input;
  bool unbatched = false;
  PoolOptions o;
  if (at::impl::torch_function_mode_enabled() || !read_input(args[0], spatial, &input, &unbatched) ||
      !read_window(input.sizes().slice(2), {args[1], args[2], args[3], args[7]}, &o) || !read(args[4], &o.ceil_mode) ||
      !read(args[5], &o.count_include_pad) || !read(args[6], &o.divisor_override) || !read(args[8], &o.algorithm))
    return not_plain;
  return answer(input.numel(), unbatched, [&] { return avg_pool(input, o); });
}

// The output size of an adaptive pooling, None standing for the input's; no stride makes the window so.
bool read_output_size(PyObject* object, const Tensor& input, int spatial, PoolOptions* o) {
  o->kernel.resize(spatial);
  if (is_sequence(object) && PySequence_Fast_GET_SIZE(object) != spatial) return false;
  for (int i = 0; i < spatial; ++i) {
    PyObject* entry = is_sequence(object) ? PySequence_Fast_GET_ITEM(object, i) : object;
    int64_t& size = o->kernel[i];
    if (entry == Py_None)
      size = input.size(2 + i);
    else if (!read(entry, &size) || size < 0)
      return false;
  }
  return true;
}

// input, output_size, algorithm
PyObject* call_adaptive_avg_pool(int spatial, Arguments args) {
  Tensor input;
  bool unbatched = false;
  PoolOptions o;
  if (at::impl::torch_function_mode_enabled() || !read_input(args[0], spatial, &input, &unbatched) ||
      !read_output_size(args[1], input, spatial, &o) || !read(args[2], &o.algorithm))
    return not_plain;
  return answer(input.numel(), unbatched, [&] { return avg_pool(input, o); });
}

// input, output_size, return_indices, algorithm
PyObject* call_adaptive_max_pool(int spatial, Arguments args) {
  Tensor input;
  bool unbatched = false, return_indices = false;
  PoolOptions o;
  if (at::impl::torch_function_mode_enabled() || !read_input(args[0], spatial, &input, &unbatched) ||
      !read_output_size(args[1], input, spatial, &o) || !read(args[2], &return_indices) || !read(args[3], &o.algorithm))
    return not_plain;
  return answer_pooled(input.numel(), unbatched, [&] { return max_pool(input, o, return_indices); });
}

// input, norm_type, kernel_size, stride, ceil_mode, padding, dilation, algorithm
PyObject* call_lp_pool(int spatial, Arguments args) {
  Tensor input;
  bool unbatched = false;
  PoolOptions o;
  int64_t power = 0;
  double norm = 0;
  if (!read(args[1], &power) && read(args[1], &norm) && norm >= 2 && norm <= 4) power = int64_t(norm);
  if (power < 2 || power > 4 || (norm != 0 && double(power) != norm) || at::impl::torch_function_mode_enabled() ||
      !read_input(args[0], spatial, &input, &unbatched) ||
      !read_window(input.sizes().slice(2), {args[2], args[3], args[5], args[6]}, &o) || !read(args[4], &o.ceil_mode) ||
      !read(args[7], &o.algorithm))
    return not_plain;
  return answer_if_any(input.numel(), [&] {
    std::optional<Tensor> output = lp_pool(input, int(power), o);
    if (output.has_value() && unbatched) output = output->squeeze(0);
    return output;
  });
}

// The output size of a max unpooling, if it is plainly one that pools to `places`.
bool read_unpooled_size(at::IntArrayRef places, std::array<PyObject*, 4> args, Entries* sizes) {
  const int spatial = int(places.size());
  const auto [kernel_size, step, pads, output_size] = args;
  Entries kernel, stride, padding, ones(spatial, 1);
  std::string_view name;
  if (!read(kernel_size, spatial, &kernel) ||
      !(step == Py_None ? (stride = kernel, true) : read(step, spatial, &stride)))
    return false;
  sizes->assign(places.begin(), places.end());
  if (output_size != Py_None) {
    if (!is_sequence(output_size)) return false;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(output_size);
    if (count != spatial && count != spatial + 2) return false;
    for (int i = 0; i < spatial; ++i)
      if (!read(PySequence_Fast_GET_ITEM(output_size, count - spatial + i), &(*sizes)[i])) return false;
  } else if (read(pads, &name) && name != "valid") {
    return false;
  }
  if (!read_padding(pads, *sizes, kernel, stride, ones, &padding)) return false;
  for (int i = 0; i < spatial; ++i) {
    const int64_t usual = (places[i] - 1) * stride[i] + kernel[i] - padding[2 * i] - padding[2 * i + 1];
    if (output_size == Py_None) (*sizes)[i] = usual;
    if ((*sizes)[i] < 0 || (*sizes)[i] <= usual - stride[i] || (*sizes)[i] >= usual + stride[i]) return false;
  }
  return true;
}

// input, indices, kernel_size, stride, padding, output_size
PyObject* call_max_unpool(int spatial, Arguments args) {
  Tensor input, indices;
  bool unbatched = false;
  Entries sizes;
  if (at::impl::torch_function_mode_enabled() || !read_input(args[0], spatial, &input, &unbatched) ||
      !read(args[1], &indices))
    return not_plain;
  if (unbatched) indices = indices.unsqueeze(0);
  if (indices.sizes() != input.sizes() ||
      !read_unpooled_size(input.sizes().slice(2), {args[2], args[3], args[4], args[5]}, &sizes))
    return not_plain;
  return answer(input.numel(), unbatched, [&] { return max_unpool(input, indices, sizes); });
}

// input, k, dim, return_indices
PyObject* call_k_max_pool1d(int, Arguments args) {
  Tensor input;
  int64_t k = 0, dim = 0;
  bool return_indices = false;
  if (at::impl::torch_function_mode_enabled() || !read(args[0], &input) || !read(args[1], &k) || !read(args[2], &dim) ||
      !read(args[3], &return_indices) || dim < -input.dim() || dim >= input.dim())
    return not_plain;
  if (dim < 0) dim += input.dim();
  if (k < 1 || k > input.size(dim)) return not_plain;
  return answer_pooled(input.numel(), false, [&] { return k_max_pool(input, k, dim, return_indices); });
}

// input, k, return_indices
PyObject* call_k_max_pool(int, Arguments args) {
  Tensor input;
  int64_t k = 0;
  bool return_indices = false;
  if (at::impl::torch_function_mode_enabled() || !read(args[0], &input) || !read(args[1], &k) ||
      !read(args[2], &return_indices) || input.dim() < 3 || input.dim() > 2 + kMaxSpatial || k < 1 ||
      k > c10::multiply_integers(input.sizes().slice(2)))
    return not_plain;
  return answer_pooled(input.numel(), false, [&] { return k_max_pool(input, k, std::nullopt, return_indices); });
}

// input, kernel_size, output_size, output_ratio, return_indices, samples
PyObject* call_fractional_max_pool(int spatial, Arguments args) {
  Tensor input;
  std::optional<Tensor> samples;
  bool unbatched = false, return_indices = false;
  Entries kernel, sizes;
  if (at::impl::torch_function_mode_enabled() || !read_input(args[0], spatial, &input, &unbatched) ||
      !read(args[1], spatial, &kernel) || !read(args[4], &return_indices) || !read(args[5], &samples) ||
      (samples.has_value() && samples->requires_grad()))
    return not_plain;
  double ratio = 0;
  if (args[2] != Py_None) {
    if (!read(args[2], spatial, &sizes)) return not_plain;
  } else {
    for (int i = 0; i < spatial; ++i) {
      PyObject* entry = args[3];
      if (is_sequence(entry)) {
        if (PySequence_Fast_GET_SIZE(entry) != spatial) return not_plain;
        entry = PySequence_Fast_GET_ITEM(entry, i);
      }
      if (!read(entry, &ratio) || !(ratio > 0 && ratio <= 1)) return not_plain;
      sizes.push_back(int64_t(double(input.size(2 + i)) * ratio));
    }
  }
  return answer_pooled(input.numel(), unbatched, [&] {
    if (!samples.has_value()) samples = at::rand({input.size(0), input.size(1), spatial}, input.options());
    return fractional_max_pool(input, *samples, kernel, sizes, return_indices);
  });
}

// input, running_mean, running_var, weight, bias, training, momentum, eps, activation, a, b
PyObject* call_batch_norm(int, Arguments args) {
  Tensor input;
  BatchNormOptions o;
  EpilogueOptions e;
  if (at::impl::torch_function_mode_enabled() || !read(args[0], &input) || !read(args[1], &o.running_mean) ||
      !read(args[2], &o.running_var) || !read(args[3], &o.weight) || !read(args[4], &o.bias) ||
      !read(args[5], &o.training) || !read(args[6], &o.momentum) || !read(args[7], &o.eps) ||
      !read(args[8], &e.activation) || !read(args[9], &e.a) || !read(args[10], &e.b))
    return not_plain;
  return answer_if_any(input.numel(), [&] { return batch_norm(input, o, e); });
}

constexpr Road kRoads[] = {{"conv", call_conv, 10},
                           {"conv_fused", call_conv_fused, 15},
                           {"conv_transpose", call_conv_transpose, 10},
                           {"max_pool", call_max_pool, 8},
                           {"avg_pool", call_avg_pool, 9},
                           {"adaptive_max_pool", call_adaptive_max_pool, 4},
                           {"adaptive_avg_pool", call_adaptive_avg_pool, 3},
                           {"lp_pool", call_lp_pool, 8},
                           {"max_unpool", call_max_unpool, 6},
                           {"k_max_pool1d", call_k_max_pool1d, 4},
                           {"k_max_pool", call_k_max_pool, 3},
                           {"fractional_max_pool", call_fractional_max_pool, 6},
                           {"batch_norm", call_batch_norm, 11},
                           {"channel_scale", call_channel_scale, 6},
                           {"chain", call_chain, 3}};
constexpr size_t kWithLongRoad = 13;  // the first, which are functions of Python as they stand
PyObject* long_roads[kWithLongRoad] = {};

// A function of Python: the function of convext.functional that was called, its number of spatial dimensions, and what
// the road takes. The long road takes the same.
template <size_t road>
PyObject* entry(PyObject*, Arguments args, Py_ssize_t given) {
  HANDLE_TH_ERRORS
  constexpr Py_ssize_t count = kRoads[road].count;
  int64_t spatial = 0;
  TORCH_CHECK_TYPE(given == count + 2 && read(args[1], &spatial) && spatial >= 1 && spatial <= kMaxSpatial,
                   "expected a function, 1 to 3, then ", count, " arguments");
  PyObject* output = kRoads[road].call(int(spatial), args + 2);
  return output != not_plain ? output : PyObject_Vectorcall(long_roads[road], args, size_t(given), nullptr);
  END_HANDLE_TH_ERRORS
}

PyMethodDef method(const char* name, _PyCFunctionFast function, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}
template <size_t... road>
std::vector<PyMethodDef> methods_of(std::index_sequence<road...>) {
  return {method(kRoads[road].name, &entry<road>, "A call of convext.functional: function, dimensions, arguments")...};
}

void set_long_road(const std::string& name, const pybind11::function& function) {
  for (size_t road = 0; road < kWithLongRoad; ++road)
    if (name == kRoads[road].name) long_roads[road] = pybind11::object(function).release().ptr();
}

}  // namespace

const Road& short_road(std::string_view name) {
  for (const Road& road : kRoads)
    if (name == road.name) return road;
  TORCH_CHECK_VALUE(false, "there is no road called ", name);
}

void add_calls(pybind11::module_& module) {
  static std::vector<PyMethodDef> methods = methods_of(std::make_index_sequence<kWithLongRoad>());
  if (methods.back().ml_name != nullptr) {
    methods.push_back(method("layers", &layers_entry, "Convolutions with their epilogues and max poolings, in turn"));
    methods.push_back({nullptr, nullptr, 0, nullptr});
  }
  if (PyModule_AddFunctions(module.ptr(), methods.data()) != 0) throw pybind11::error_already_set();
  module.def("set_long_road", &set_long_road, pybind11::arg("name"), pybind11::arg("function"));
}

}  // namespace convext
