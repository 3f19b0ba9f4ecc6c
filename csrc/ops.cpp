// The door to torch: operator schemas, checks of tensors, tensors to pointers and geometry, memory for outputs and
// workspaces. Device-neutral: the same function serves CPU and CUDA, the table decides which kernel runs. No
// arithmetic here. Checks of sizes are geometry_checks.cpp's; fakes (shapes under torch.compile) are convext/ops.py's.
#include "ops.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>

#include "arena.h"
#include "cpu/finish.h"
#include "epilogue_torch.h"
#include "packed_weights.h"
#include "tensors.h"

namespace convext {
namespace {

void check_same(const at::Tensor& a, const char* a_name, const at::Tensor& b, const char* b_name) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "conv: ", a_name, " type (", a.scalar_type(), ") and ", b_name,
              " type (", b.scalar_type(), ") should be the same");
  TORCH_CHECK(a.device() == b.device(), "conv: ", a_name, " and ", b_name, " should be on the same device, got ",
              a.device(), " and ", b.device());
}

ConvCall conv_call(at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                   std::string_view padding_mode, bool flip_kernel) {
  return {stride, padding, dilation, groups, padding_mode, flip_kernel};
}

ConvGeometry conv_geometry(Sizes input, Sizes weight, const ConvCall& call, Layout layout) {
  ConvGeometry g;
  const std::string error = make_conv_geometry(input, weight, call, &g);
  TORCH_CHECK(error.empty(), error);
  g.layout = layout;
  return g;
}

void check_grad_output(const at::Tensor& grad_output, const ConvGeometry& g) {
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(conv_output_shape(g)), "conv", g.spatial,
              "d: grad_output has size ", grad_output.sizes(), " (expected ", to_string(conv_output_shape(g)), " for ",
              describe(g), ")");
}

// Chooses, packs the weight (null: there is none) or lays it out, allocates the workspace, runs. args has its other
// pointers, but for output's. Returns what ran.
const ConvAlgorithm& run_conv(ConvArguments& args, const at::Tensor& like, const at::Tensor* weight,
                              const at::Tensor& output, std::string_view asked, Direction direction) {
  const Device device = device_of(like.device(), "conv");
  const DeviceScope scope(like);
  const Asked wanted = parse_algorithm(asked);
  args.geometry.winograd = wanted.winograd;
  args.geometry.tf32 = allows_tf32(device, args.dtype);
  const ConvAlgorithm& algorithm = resolve_conv(device, wanted, args.geometry, args.dtype, direction);
  log_choice(asked, algorithm.name, args.geometry, args.dtype, name_of(direction));
  const at::Tensor w = weight == nullptr ? at::Tensor() : give_weight(args, algorithm, direction, *weight);
  const at::Tensor workspace = new_workspace(algorithm.workspace_bytes(args.geometry, args.dtype, direction), like);
  args.workspace = aligned(workspace);
  args.stream = scope.stream();
  at::Tensor written = output;
  if (weight == nullptr && args.weight_channels_last && !algorithm.writes_channels_last) {
    written = new_output(output.sizes(), like, Layout::contiguous, args.geometry.spatial);
    args.weight_channels_last = false;
  }
  args.output = written.data_ptr();
  algorithm.kernel(direction)(args);
  if (!written.is_same(output)) output.copy_(written);
  return algorithm;
}

// The epilogue where the kernel leaves it to others. args.output is output's memory.
void finish(const ConvArguments& args, const at::Tensor& output, const at::Tensor& residual) {
  if (output.is_cpu())
    cpu::finish_output(args);
  else
    finish_with_torch(args.epilogue, output, residual);
}

at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    const ConvCall& call, const std::optional<at::Tensor>& residual, Epilogue epilogue,
                    std::string_view algorithm) {
  check_same(input, "Input", weight, "weight");
  const Layout layout = layout_of(input, weight);
  if (bias.has_value()) check_same(input, "Input", *bias, "bias");
  if (residual.has_value()) check_same(input, "Input", *residual, "residual");
  ConvArguments args{conv_geometry(sizes_of(input), sizes_of(weight), call, layout),
                     dtype_of(input.scalar_type(), "conv")};
  const ConvGeometry& g = args.geometry;
  TORCH_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == g.out_channels), "conv", g.spatial,
              "d: given weight of size ", weight.sizes(), ", expected bias to be 1-dimensional with ", g.out_channels,
              " elements, got bias of size ", bias.has_value() ? bias->sizes() : at::IntArrayRef());
  const at::Tensor output = new_output(conv_output_shape(g), input, layout, g.spatial);
  const at::Tensor b = bias.has_value() ? bias->contiguous() : at::Tensor();
  TORCH_CHECK(!residual.has_value() || residual->sizes() == output.sizes(), "conv", g.spatial, "d: residual has size ",
              residual.has_value() ? residual->sizes() : at::IntArrayRef(), " (expected ", output.sizes(),
              ", the output's, for ", describe(g), ")");
  if (output.numel() == 0) return output;
  const at::Tensor r = residual.has_value() ? laid_out(*residual, layout, g.spatial) : at::Tensor();
  if (r.defined()) epilogue.residual = r.data_ptr();
  args.epilogue = epilogue;
  if (g.in_channels == 0) {  // an empty sum
    std::vector<int64_t> broadcast(input.dim(), 1);
    broadcast[1] = g.out_channels;
    if (b.defined())
      output.copy_(b.view(broadcast).expand_as(output));
    else
      output.zero_();
    args.output = output.data_ptr();
    finish(args, output, r);
    return output;
  }
  const at::Tensor x = laid_out(input, layout, g.spatial);
  args.input = x.data_ptr();
  args.bias = b.defined() ? b.data_ptr() : nullptr;
  if (!run_conv(args, input, &weight, output, algorithm, Direction::forward).finishes) finish(args, output, r);
  return output;
}

at::Tensor conv_forward(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                        std::string_view padding_mode, bool flip_kernel, std::string_view algorithm) {
  return convolve(input, weight, bias, conv_call(stride, padding, dilation, groups, padding_mode, flip_kernel), {}, {},
                  algorithm);
}

at::Tensor conv_fused(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      const std::optional<at::Tensor>& residual, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, int64_t groups, std::string_view padding_mode, bool flip_kernel,
                      std::string_view activation, double a, double b, bool residual_last, std::string_view algorithm) {
  return convolve(input, weight, bias, conv_call(stride, padding, dilation, groups, padding_mode, flip_kernel),
                  residual, {nullptr, residual_last, parse_activation(activation), a, b}, algorithm);
}

// It has no gradient, and says so rather than give none.
at::Tensor conv_fused_autograd(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                               const std::optional<at::Tensor>& residual, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                               std::string_view padding_mode, bool flip_kernel, std::string_view activation, double a,
                               double b, bool residual_last, std::string_view algorithm) {
  const auto wants = [](const at::Tensor& t) { return t.requires_grad(); };
  TORCH_CHECK_NOT_IMPLEMENTED(
      !at::GradMode::is_enabled() || !(wants(input) || wants(weight) || (bias.has_value() && wants(*bias)) ||
                                       (residual.has_value() && wants(*residual))),
      "conv_fused: has no gradient; call it under torch.no_grad() or with tensors that require none, or use "
      "convext.functional and torch's activations");
  const at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("convext::conv_fused", "").typed<decltype(conv_fused_autograd)>();
  return op.call(input, weight, bias, residual, stride, padding, dilation, groups, padding_mode, flip_kernel,
                 activation, a, b, residual_last, algorithm);
}

at::Tensor conv_backward_input(const at::Tensor& grad_output, const at::Tensor& weight, at::IntArrayRef input_size,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups, std::string_view padding_mode, bool flip_kernel,
                               std::string_view algorithm) {
  check_same(grad_output, "grad_output", weight, "weight");
  const Layout layout = layout_of(grad_output, weight);
  ConvArguments args{conv_geometry(input_size, sizes_of(weight),
                                   conv_call(stride, padding, dilation, groups, padding_mode, flip_kernel), layout),
                     dtype_of(grad_output.scalar_type(), "conv")};
  const ConvGeometry& g = args.geometry;
  check_grad_output(grad_output, g);
  const at::Tensor output = new_output(input_size, grad_output, layout, g.spatial);
  if (output.numel() == 0) return output;
  const at::Tensor dy = laid_out(grad_output, layout, g.spatial);
  args.grad_output = dy.data_ptr();
  run_conv(args, grad_output, &weight, output, algorithm, Direction::backward_input);
  return output;
}

at::Tensor conv_backward_weight(const at::Tensor& grad_output, const at::Tensor& input, at::IntArrayRef weight_size,
                                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                int64_t groups, std::string_view padding_mode, bool flip_kernel,
                                std::string_view algorithm) {
  check_same(grad_output, "grad_output", input, "input");
  const ArenaScope memory;
  const Layout layout = layout_of(input, grad_output);
  ConvArguments args{conv_geometry(sizes_of(input), weight_size,
                                   conv_call(stride, padding, dilation, groups, padding_mode, flip_kernel), layout),
                     dtype_of(grad_output.scalar_type(), "conv")};
  const ConvGeometry& g = args.geometry;
  check_grad_output(grad_output, g);
  const at::Tensor output = new_output(weight_size, input, layout, g.spatial);
  if (output.numel() == 0) return output;
  if (g.batch == 0) return output.zero_();
  args.weight_channels_last = layout == Layout::channels_last && g.taps() > 1 && g.group_inputs() > 1;
  const at::Tensor dy = laid_out(grad_output, layout, g.spatial), x = laid_out(input, layout, g.spatial);
  args.grad_output = dy.data_ptr();
  args.input = x.data_ptr();
  run_conv(args, input, nullptr, output, algorithm, Direction::backward_weight);
  return output;
}

// dy activation'(x), told by y = activation(x).
at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& output, std::string_view activation,
                               double a, double b) {
  (void)parse_activation(activation);
  TORCH_CHECK_VALUE(tells_slope(activation, a, b), "activation_backward: the result of ", activation, "(", a, ", ", b,
                    ") does not tell its slope");
  TORCH_CHECK(grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type() &&
                  grad_output.device() == output.device(),
              "activation_backward: grad_output must be ", output.scalar_type(), " of size ", output.sizes(), " on ",
              output.device(), ", got ", grad_output.scalar_type(), " of size ", grad_output.sizes(), " on ",
              grad_output.device());
  const int spatial = int(output.dim()) - 2;
  TORCH_CHECK(spatial >= 1 && spatial <= kMaxSpatial,
              "activation_backward: output must have 3 to 5 dimensions, got size ", output.sizes());
  at::Tensor before = new_output(output.sizes(), output, layout_of(output), spatial);
  if (activation == "leaky_relu") return at::leaky_relu_backward_out(before, grad_output, output, a, true);
  if (a == 0 && std::isinf(b)) return at::threshold_backward_out(before, grad_output, output, 0);
  return at::hardtanh_backward_out(before, grad_output, output, a, b);
}

// Not one of the algorithms' directions: a plain sum, in an order that does not depend on the number of threads.
at::Tensor conv_backward_bias(const at::Tensor& grad_output) {
  TORCH_CHECK(grad_output.dim() >= 3 && grad_output.dim() <= 5,
              "conv: grad_output must have 3 to 5 dimensions, got size ", grad_output.sizes());
  const int spatial = int(grad_output.dim()) - 2;
  const Layout layout = layout_of(grad_output);
  if (device_of(grad_output.device(), "conv") == Device::cuda) {
    std::vector<int64_t> dims{0};
    for (int64_t d = 2; d < grad_output.dim(); ++d) dims.push_back(d);
    return grad_output.sum(dims);
  }
  ConvArguments args{ConvGeometry(), dtype_of(grad_output.scalar_type(), "conv")};
  args.geometry.batch = grad_output.size(0);
  args.geometry.out_channels = grad_output.size(1);
  args.geometry.spatial = spatial;
  args.geometry.layout = layout;
  for (int axis = 0; axis < spatial; ++axis)
    args.geometry.output[kMaxSpatial - spatial + axis] = grad_output.size(2 + axis);
  const at::Tensor output =
      new_tensor({grad_output.size(1)}, grad_output.scalar_type(), grad_output, at::MemoryFormat::Contiguous);
  if (grad_output.numel() == 0) return output.zero_();
  const at::Tensor dy = laid_out(grad_output, layout, spatial);
  args.grad_output = dy.data_ptr();
  args.output = output.data_ptr();
  cpu::conv_backward_bias(args);
  return output;
}

// "'auto', 'im2col', ...": what may be asked for.
template <typename Table>
std::string names_in(const Table& table) {
  std::string names = "'auto'";
  for (const auto* algorithm : table) names += std::string(", '") + algorithm->name + "'";
  return names;
}

// Whether a call that names the algorithm leaves this direction to "auto": a gradient that it has not, of a layer that
// it can do.
bool lacks(const ConvAlgorithm& algorithm, const ConvGeometry& geometry, DType dtype, Direction direction,
           bool transposed) {
  const Direction layer = transposed ? Direction::backward_input : Direction::forward;
  return direction != layer && algorithm.unsupported(geometry, dtype, direction) != nullptr &&
         algorithm.unsupported(geometry, dtype, layer) == nullptr;
}
bool lacks(const PoolAlgorithm&, const PoolGeometry&, DType, PoolPass, bool) { return false; }

// of: the direction or the pass.
template <typename Table, typename Geometry, typename Of, typename Choose>
auto& resolve(const Table& table, const char* op, std::string_view name, bool transposed, const Geometry& geometry,
              DType dtype, Of of, const Choose& choose) {
  if (name == "auto") return choose();
  const auto found = std::find_if(table.begin(), table.end(), [&](const auto* a) { return name == a->name; });
  TORCH_CHECK_VALUE(found != table.end(), op, ": algorithm must be one of ", names_in(table), ", got '", name, "'");
  const auto* algorithm = *found;
  if (lacks(*algorithm, geometry, dtype, of, transposed)) return choose();
  const std::string reason = refusal(*algorithm, geometry, dtype, of);
  TORCH_CHECK_NOT_IMPLEMENTED(reason.empty(), op, ": algorithm '", name, "' cannot do this call: ", reason, " (",
                              describe(geometry), " ", name_of(dtype), ")");
  return *algorithm;
}

}  // namespace

const char* name_of(WinogradMode mode) {
  return mode == WinogradMode::off ? "off" : mode == WinogradMode::accurate ? "accurate" : "fast";
}

WinogradMode parse_winograd_mode(std::string_view name) {
  for (WinogradMode mode : {WinogradMode::off, WinogradMode::accurate, WinogradMode::fast})
    if (name == name_of(mode)) return mode;
  TORCH_CHECK_VALUE(false, "winograd mode must be 'off', 'accurate' or 'fast', got '", name, "'");
}

Asked parse_algorithm(std::string_view algorithm) {
  const size_t mark = algorithm.rfind(kTransposed);
  const bool transposed = mark != std::string_view::npos && mark + kTransposed.size() == algorithm.size();
  if (transposed) algorithm = algorithm.substr(0, mark);
  const size_t colon = algorithm.find(':');
  if (colon == std::string_view::npos) return {algorithm, winograd_mode(), transposed};
  return {algorithm.substr(0, colon), parse_winograd_mode(algorithm.substr(colon + 1)), transposed};
}

bool allows_tf32(Device device, DType dtype) {
  if (device != Device::cuda || dtype != DType::float32) return false;
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
  return at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
#else
  return at::globalContext().allowTF32CuDNN();
#endif
}

Device device_of(const at::Device& device, const char* op) {
  if (device.is_cpu()) return Device::cpu;
  TORCH_CHECK_NOT_IMPLEMENTED(device.is_cuda(), op, ": convext has kernels for cpu and cuda, got a tensor on ", device);
  TORCH_CHECK_NOT_IMPLEMENTED(!conv_algorithms(Device::cuda).empty(), op, ": got a tensor on ", device,
                              ", but this convext was built without CUDA kernels (rebuild it where nvcc and a CUDA "
                              "build of torch are found, or with CONVEXT_CUDA=1)");
  return Device::cuda;
}

DType dtype_of(at::ScalarType type, const char* op) {
  const bool pooling = std::string_view(op) == "max_pool";
  switch (type) {
    case at::kFloat: return DType::float32;
    case at::kDouble: return DType::float64;
    case at::kHalf: return DType::float16;
    case at::kBFloat16: return DType::bfloat16;
    case at::kByte:
      if (pooling) return DType::uint8;
      break;
    case at::kChar:
      if (pooling) return DType::int8;
      break;
    case at::kShort:
      if (pooling) return DType::int16;
      break;
    case at::kInt:
      if (pooling) return DType::int32;
      break;
    case at::kLong:
      if (pooling) return DType::int64;
      break;
    default: break;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, op, ": dtype ", type, " is not supported (expected float32, float64, float16 or ",
                              "bfloat16", pooling ? ", or an integer type" : "", ")");
}

const ConvAlgorithm& resolve_conv(Device device, const Asked& asked, const ConvGeometry& geometry, DType dtype,
                                  Direction direction) {
  return resolve(conv_algorithms(device), "conv", asked.name, asked.transposed, geometry, dtype, direction,
                 [&]() -> const ConvAlgorithm& { return choose_conv(device, geometry, dtype, direction); });
}

const PoolAlgorithm& resolve_pool(Device device, std::string_view name, const PoolGeometry& geometry, DType dtype,
                                  PoolPass pass) {
  return resolve(pool_algorithms(device), "pool", name, false, geometry, dtype, pass,
                 [&]() -> const PoolAlgorithm& { return choose_pool(device, geometry, dtype, pass); });
}

// Padding has two entries per spatial dimension: before, after. The three convolutions are each other's derivatives.
TORCH_LIBRARY(convext, m) {
  const std::string conv =
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode, "
      "bool flip_kernel, str algorithm) -> Tensor";
  const std::string schemas[] = {
      "conv_forward(Tensor input, Tensor weight, Tensor? bias, " + conv,
      "conv_fused(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str padding_mode, bool flip_kernel, str activation, float a, float b, "
      "bool residual_last, str algorithm) -> Tensor",
      "conv_backward_input(Tensor grad_output, Tensor weight, SymInt[] input_size, " + conv,
      "conv_backward_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, " + conv,
      "conv_backward_bias(Tensor grad_output) -> Tensor",
      "activation_backward(Tensor grad_output, Tensor output, str activation, float a, float b) -> Tensor",
  };
  for (const std::string& schema : schemas) m.def(schema.c_str(), {at::Tag::flexible_layout});
}

// CUDA is registered in every build: without kernels, device_of says so in one sentence.
#define CONVEXT_REGISTER(key)                             \
  TORCH_LIBRARY_IMPL(convext, key, m) {                   \
    m.impl("conv_forward", conv_forward);                 \
    m.impl("conv_fused", conv_fused);                     \
    m.impl("conv_backward_input", conv_backward_input);   \
    m.impl("conv_backward_weight", conv_backward_weight); \
    m.impl("conv_backward_bias", conv_backward_bias);     \
    m.impl("activation_backward", activation_backward);   \
  }
CONVEXT_REGISTER(CPU)
CONVEXT_REGISTER(CUDA)
TORCH_LIBRARY_IMPL(convext, Autograd, m) { m.impl("conv_fused", conv_fused_autograd); }

}  // namespace convext
