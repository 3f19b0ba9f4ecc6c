// The door to torch: operator schemas, checks of tensors, tensors to pointers and geometry, memory for outputs and
// workspaces. Device-neutral: the same function serves CPU and CUDA, the table decides which kernel runs. No
// arithmetic here. Checks of sizes are geometry_checks.cpp's; fakes (shapes under torch.compile) are convext/ops.py's.
#include "ops.h"

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>
#ifdef CONVEXT_WITH_CUDA
#include "cuda/stream.h"
#endif
#include "huge_pages.h"
#include "packed_weights.h"

namespace convext {
namespace {

std::atomic<bool> poison{false};

constexpr int64_t kAlignment = 64;

// One algorithm call on the right device and stream.
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor& tensor) {
#ifdef CONVEXT_WITH_CUDA
    if (tensor.is_cuda()) {
      previous_ = cuda::exchange_device(tensor.get_device());
      stream_ = cuda::current_stream(tensor.get_device());
    }
#else
    (void)tensor;
#endif
  }
  ~DeviceScope() {
#ifdef CONVEXT_WITH_CUDA
    if (previous_ >= 0) cuda::exchange_device(previous_);
#endif
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  void* stream() const { return stream_; }

 private:
  int previous_ = -1;
  void* stream_ = nullptr;
};

Sizes sizes_of(const at::Tensor& t) { return t.sizes(); }

std::string op_name(const char* op, const PoolGeometry& g) { return op + std::to_string(g.spatial) + "d"; }

// torch's rule: channels_last where the input, or for convolution the weight, is laid out so.
bool prefers_channels_last(const at::Tensor& t) {
  const auto format = t.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

at::MemoryFormat memory_format(Layout layout, int spatial) {
  if (layout == Layout::contiguous) return at::MemoryFormat::Contiguous;
  return spatial == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

// The tensor itself where it is already laid out so, else a copy.
at::Tensor laid_out(const at::Tensor& t, Layout layout, int spatial) {
  return t.contiguous(memory_format(layout, spatial));
}

void do_poison(const at::Tensor& t) {
  if (!poison.load(std::memory_order_relaxed)) return;
  if (t.is_floating_point())
    t.fill_(std::numeric_limits<double>::quiet_NaN());
  else
    t.fill_(t.scalar_type() == at::kByte ? 0xA5 : 99);
}

// Memory, past the dispatcher on the CPU, where that is a sixth of a small call.
at::Tensor new_tensor(at::IntArrayRef shape, at::ScalarType type, const at::Tensor& like, at::MemoryFormat format) {
  at::Tensor out = like.is_cpu() ? at::Tensor(at::detail::empty_cpu(shape, type, /*pin_memory=*/false, format))
                                 : at::empty(shape, like.options().dtype(type).memory_format(format));
  prefer_huge_pages(out);
  do_poison(out);
  return out;
}

at::Tensor new_output(at::IntArrayRef shape, const at::Tensor& like, Layout layout, int spatial) {
  return new_tensor(shape, like.scalar_type(), like, memory_format(layout, spatial));
}

bool logs() {
  static const bool on = [] {
    const char* level = std::getenv("CONVEXT_LOG");
    return level != nullptr && std::string(level) == "debug";
  }();
  return on;
}

template <typename Geometry>
void log_choice(std::string_view asked, const char* chosen, const Geometry& geometry, DType dtype, const char* what) {
  if (logs())
    std::fprintf(stderr, "convext: %s %s %s: %s (asked: %.*s)\n", describe(geometry).c_str(), name_of(dtype), what,
                 chosen, int(asked.size()), asked.data());
}

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

Layout layout_of(const at::Tensor& a, const at::Tensor& b) {
  return prefers_channels_last(a) || prefers_channels_last(b) ? Layout::channels_last : Layout::contiguous;
}

// Chooses, packs the weight (null: there is none) or lays it out, allocates the workspace, runs. args has its other
// pointers.
void run_conv(ConvArguments& args, const at::Tensor& like, const at::Tensor* weight, std::string_view asked,
              Direction direction) {
  const Device device = device_of(like.device(), "conv");
  const Asked wanted = parse_algorithm(asked);
  args.geometry.winograd = wanted.winograd;
  const ConvAlgorithm& algorithm = resolve_conv(device, wanted.name, args.geometry, args.dtype, direction);
  log_choice(asked, algorithm.name, args.geometry, args.dtype, name_of(direction));
  at::Tensor w;
  if (weight != nullptr && algorithm.packing != nullptr &&
      algorithm.packing(args.geometry, args.dtype, direction).bytes > 0) {
    w = packed_weight(algorithm, args.geometry, args.dtype, direction, *weight);
    args.packed_weight = aligned(w);
  } else if (weight != nullptr) {
    w = weight->contiguous();
    args.weight = w.data_ptr();
  }
  const at::Tensor workspace = new_workspace(algorithm.workspace_bytes(args.geometry, args.dtype, direction), like);
  args.workspace = aligned(workspace);
  const DeviceScope scope(like);
  args.stream = scope.stream();
  algorithm.kernel(direction)(args);
}

at::Tensor conv_forward(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                        std::string_view padding_mode, bool flip_kernel, std::string_view algorithm) {
  check_same(input, "Input", weight, "weight");
  const Layout layout = layout_of(input, weight);
  if (bias.has_value()) check_same(input, "Input", *bias, "bias");
  ConvArguments args{conv_geometry(sizes_of(input), sizes_of(weight),
                                   conv_call(stride, padding, dilation, groups, padding_mode, flip_kernel), layout),
                     dtype_of(input.scalar_type(), "conv")};
  const ConvGeometry& g = args.geometry;
  TORCH_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == g.out_channels), "conv", g.spatial,
              "d: given weight of size ", weight.sizes(), ", expected bias to be 1-dimensional with ", g.out_channels,
              " elements, got bias of size ", bias.has_value() ? bias->sizes() : at::IntArrayRef());
  const at::Tensor output = new_output(conv_output_shape(g), input, layout, g.spatial);
  const at::Tensor b = bias.has_value() ? bias->contiguous() : at::Tensor();
  if (output.numel() == 0) return output;
  if (g.in_channels == 0) {  // an empty sum
    if (!b.defined()) return output.zero_();
    std::vector<int64_t> broadcast(input.dim(), 1);
    broadcast[1] = g.out_channels;
    return output.copy_(b.view(broadcast).expand_as(output));
  }
  const at::Tensor x = laid_out(input, layout, g.spatial);
  args.input = x.data_ptr();
  args.bias = b.defined() ? b.data_ptr() : nullptr;
  args.output = output.data_ptr();
  run_conv(args, input, &weight, algorithm, Direction::forward);
  return output;
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
  args.output = output.data_ptr();
  run_conv(args, grad_output, &weight, algorithm, Direction::backward_input);
  return output;
}

at::Tensor conv_backward_weight(const at::Tensor& grad_output, const at::Tensor& input, at::IntArrayRef weight_size,
                                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                int64_t groups, std::string_view padding_mode, bool flip_kernel,
                                std::string_view algorithm) {
  check_same(grad_output, "grad_output", input, "input");
  const Layout layout = layout_of(input, grad_output);
  ConvArguments args{conv_geometry(sizes_of(input), weight_size,
                                   conv_call(stride, padding, dilation, groups, padding_mode, flip_kernel), layout),
                     dtype_of(grad_output.scalar_type(), "conv")};
  const ConvGeometry& g = args.geometry;
  check_grad_output(grad_output, g);
  const at::Tensor output = new_output(weight_size, input, Layout::contiguous, g.spatial);
  if (output.numel() == 0) return output;
  if (g.batch == 0) return output.zero_();
  const at::Tensor dy = laid_out(grad_output, layout, g.spatial), x = laid_out(input, layout, g.spatial);
  args.grad_output = dy.data_ptr();
  args.input = x.data_ptr();
  args.output = output.data_ptr();
  run_conv(args, input, nullptr, algorithm, Direction::backward_weight);
  return output;
}

// Not one of the algorithms' directions: a plain sum, in an order that does not depend on the number of threads.
at::Tensor conv_backward_bias(const at::Tensor& grad_output) {
  TORCH_CHECK(grad_output.dim() >= 3 && grad_output.dim() <= 5,
              "conv: grad_output must have 3 to 5 dimensions, got size ", grad_output.sizes());
  const int spatial = int(grad_output.dim()) - 2;
  const Layout layout = prefers_channels_last(grad_output) ? Layout::channels_last : Layout::contiguous;
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
  const at::Tensor output = at::empty({grad_output.size(1)}, grad_output.options());
  do_poison(output);
  if (grad_output.numel() == 0) return output.zero_();
  const at::Tensor dy = laid_out(grad_output, layout, spatial);
  args.grad_output = dy.data_ptr();
  args.output = output.data_ptr();
  cpu::conv_backward_bias(args);
  return output;
}

PoolGeometry pool_geometry(const char* op, Sizes input, const PoolCall& call, Layout layout) {
  PoolGeometry g;
  const std::string error = make_pool_geometry(op, input, call, &g);
  TORCH_CHECK(error.empty(), error);
  g.layout = layout;
  return g;
}

Layout layout_of(const at::Tensor& t) { return layout_of(t, t); }

void run_pool(PoolArguments& args, const at::Tensor& like, const char* op, std::string_view asked, PoolPass pass) {
  const PoolAlgorithm& algorithm = resolve_pool(device_of(like.device(), op), asked, args.geometry, args.dtype, pass);
  log_choice(asked, algorithm.name, args.geometry, args.dtype, op);
  const DeviceScope scope(like);
  args.stream = scope.stream();
  switch (pass) {
    case PoolPass::max_forward: algorithm.max_forward(args); break;
    case PoolPass::max_backward: algorithm.max_backward(args); break;
    case PoolPass::max_indices: algorithm.max_indices(args); break;
    case PoolPass::avg_forward: algorithm.avg_forward(args); break;
    case PoolPass::avg_backward: algorithm.avg_backward(args); break;
  }
}

at::ScalarType places_type(const PoolGeometry& g) { return g.byte_places() ? at::kByte : at::kInt; }

void check_floating(const at::Tensor& t, const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(t.is_floating_point(), op, ": input must be floating-point, got ", t.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& input, at::IntArrayRef kernel_size,
                                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                            bool ceil_mode, bool with_places, std::string_view algorithm) {
  const Layout layout = layout_of(input);
  const PoolCall call{kernel_size, stride, padding, dilation, ceil_mode};
  PoolArguments args{pool_geometry("max_pool", sizes_of(input), call, layout),
                     dtype_of(input.scalar_type(), "max_pool")};
  const PoolGeometry& g = args.geometry;
  const Shape shape = pool_output_shape(g);
  const at::Tensor output = new_output(shape, input, layout, g.spatial);
  const at::Tensor places = with_places ? new_tensor(shape, places_type(g), input, memory_format(layout, g.spatial))
                                        : new_tensor({0}, places_type(g), input, at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return {output, places};
  const at::Tensor x = laid_out(input, layout, g.spatial);
  args.input = x.data_ptr();
  args.output = output.data_ptr();
  args.places_out = with_places ? places.data_ptr() : nullptr;
  run_pool(args, input, "max_pool", algorithm, PoolPass::max_forward);
  return {output, places};
}

void check_pooled(const char* op, const char* what, const at::Tensor& t, const PoolGeometry& g) {
  TORCH_CHECK(t.sizes() == at::IntArrayRef(pool_output_shape(g)), op_name(op, g), ": ", what, " has size ", t.sizes(),
              " (expected ", to_string(pool_output_shape(g)), ")");
}

void check_places(const at::Tensor& places, const PoolGeometry& g) {
  check_pooled("max_pool", "places", places, g);
  TORCH_CHECK(places.scalar_type() == places_type(g), op_name("max_pool", g), ": places must be ", places_type(g),
              " for a window of ", g.window(), " places, got ", places.scalar_type());
}

at::Tensor max_pool_backward(const at::Tensor& grad_output, const at::Tensor& places, at::IntArrayRef input_size,
                             at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, bool ceil_mode, std::string_view algorithm) {
  check_floating(grad_output, "max_pool_backward");
  const Layout layout = layout_of(places);
  const PoolCall call{kernel_size, stride, padding, dilation, ceil_mode};
  PoolArguments args{pool_geometry("max_pool", input_size, call, layout),
                     dtype_of(grad_output.scalar_type(), "max_pool_backward")};
  const PoolGeometry& g = args.geometry;
  check_pooled("max_pool", "grad_output", grad_output, g);
  check_places(places, g);
  TORCH_CHECK(grad_output.device() == places.device(), op_name("max_pool", g), ": grad_output is on ",
              grad_output.device(), ", places on ", places.device());
  const at::Tensor output = new_output(input_size, grad_output, layout, g.spatial);
  if (output.numel() == 0) return output;
  const at::Tensor dy = laid_out(grad_output, layout, g.spatial), at = laid_out(places, layout, g.spatial);
  args.grad_output = dy.data_ptr();
  args.places = at.data_ptr();
  args.output = output.data_ptr();
  run_pool(args, grad_output, "max_pool", algorithm, PoolPass::max_backward);
  return output;
}

at::Tensor max_pool_indices(const at::Tensor& places, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Layout layout = layout_of(places);
  const PoolCall call{kernel_size, stride, padding, dilation, ceil_mode};
  PoolArguments args{pool_geometry("max_pool", input_size, call, layout), DType::float32};
  const PoolGeometry& g = args.geometry;
  check_places(places, g);
  const at::Tensor output = new_tensor(places.sizes(), at::kLong, places, memory_format(layout, g.spatial));
  if (output.numel() == 0) return output;
  const at::Tensor at = laid_out(places, layout, g.spatial);
  args.places = at.data_ptr();
  args.output = output.data_ptr();
  run_pool(args, places, "max_pool", "auto", PoolPass::max_indices);
  return output;
}

at::Tensor avg_pool(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                    at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool count_include_pad,
                    std::optional<int64_t> divisor_override, std::string_view algorithm) {
  TORCH_CHECK(divisor_override != 0, "avg_pool: divisor must be not zero, got divisor_override=0");
  const Layout layout = layout_of(input);
  const PoolCall call{
      kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override.value_or(0)};
  PoolArguments args{pool_geometry("avg_pool", sizes_of(input), call, layout),
                     dtype_of(input.scalar_type(), "avg_pool")};
  check_floating(input, "avg_pool");
  const PoolGeometry& g = args.geometry;
  const at::Tensor output = new_output(pool_output_shape(g), input, layout, g.spatial);
  if (output.numel() == 0) return output;
  const at::Tensor x = laid_out(input, layout, g.spatial);
  args.input = x.data_ptr();
  args.output = output.data_ptr();
  run_pool(args, input, "avg_pool", algorithm, PoolPass::avg_forward);
  return output;
}

at::Tensor avg_pool_backward(const at::Tensor& grad_output, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                             bool count_include_pad, std::optional<int64_t> divisor_override,
                             std::string_view algorithm) {
  TORCH_CHECK(divisor_override != 0, "avg_pool: divisor must be not zero, got divisor_override=0");
  check_floating(grad_output, "avg_pool_backward");
  const Layout layout = layout_of(grad_output);
  const PoolCall call{
      kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override.value_or(0)};
  PoolArguments args{pool_geometry("avg_pool", input_size, call, layout),
                     dtype_of(grad_output.scalar_type(), "avg_pool_backward")};
  const PoolGeometry& g = args.geometry;
  check_pooled("avg_pool", "grad_output", grad_output, g);
  const at::Tensor output = new_output(input_size, grad_output, layout, g.spatial);
  if (output.numel() == 0) return output;
  const at::Tensor dy = laid_out(grad_output, layout, g.spatial);
  args.grad_output = dy.data_ptr();
  args.output = output.data_ptr();
  run_pool(args, grad_output, "avg_pool", algorithm, PoolPass::avg_backward);
  return output;
}

// "'auto', 'im2col', ...": what may be asked for.
template <typename Table>
std::string names_in(const Table& table) {
  std::string names = "'auto'";
  for (const auto* algorithm : table) names += std::string(", '") + algorithm->name + "'";
  return names;
}

// Whether a call that names the algorithm leaves this direction to "auto": a gradient that it has not, of a convolution
// that it can do.
bool lacks(const ConvAlgorithm& algorithm, const ConvGeometry& geometry, DType dtype, Direction direction) {
  return direction != Direction::forward && algorithm.unsupported(geometry, dtype, direction) != nullptr &&
         algorithm.unsupported(geometry, dtype, Direction::forward) == nullptr;
}
bool lacks(const PoolAlgorithm&, const PoolGeometry&, DType, PoolPass) { return false; }

// of: the direction or the pass.
template <typename Table, typename Geometry, typename Of, typename Choose>
auto& resolve(const Table& table, const char* op, std::string_view name, const Geometry& geometry, DType dtype, Of of,
              const Choose& choose) {
  if (name == "auto") return choose();
  const auto found = std::find_if(table.begin(), table.end(), [&](const auto* a) { return name == a->name; });
  TORCH_CHECK_VALUE(found != table.end(), op, ": algorithm must be one of ", names_in(table), ", got '", name, "'");
  const auto* algorithm = *found;
  if (lacks(*algorithm, geometry, dtype, of)) return choose();
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
  const size_t colon = algorithm.find(':');
  if (colon == std::string_view::npos) return {algorithm, winograd_mode()};
  return {algorithm.substr(0, colon), parse_winograd_mode(algorithm.substr(colon + 1))};
}

void set_poison(bool on) { poison.store(on); }

at::Tensor new_workspace(int64_t bytes, const at::Tensor& like) {
  if (bytes <= 0) return at::Tensor();
  return new_tensor({bytes + kAlignment}, at::kByte, like, at::MemoryFormat::Contiguous);
}

void* aligned(const at::Tensor& workspace) {
  if (!workspace.defined()) return nullptr;
  const auto address = reinterpret_cast<uintptr_t>(workspace.data_ptr());
  return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
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

const ConvAlgorithm& resolve_conv(Device device, std::string_view name, const ConvGeometry& geometry, DType dtype,
                                  Direction direction) {
  return resolve(conv_algorithms(device), "conv", name, geometry, dtype, direction,
                 [&]() -> const ConvAlgorithm& { return choose_conv(device, geometry, dtype, direction); });
}

const PoolAlgorithm& resolve_pool(Device device, std::string_view name, const PoolGeometry& geometry, DType dtype,
                                  PoolPass pass) {
  return resolve(pool_algorithms(device), "pool", name, geometry, dtype, pass,
                 [&]() -> const PoolAlgorithm& { return choose_pool(device, geometry, dtype, pass); });
}

// Padding has two entries per spatial dimension: before, after. The three convolutions are each other's derivatives.
TORCH_LIBRARY(convext, m) {
  const std::string conv =
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode, "
      "bool flip_kernel, str algorithm) -> Tensor";
  const std::string window =
      "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode";
  const std::string average = window + ", bool count_include_pad, int? divisor_override, str algorithm) -> Tensor";
  const std::string schemas[] = {
      "conv_forward(Tensor input, Tensor weight, Tensor? bias, " + conv,
      "conv_backward_input(Tensor grad_output, Tensor weight, SymInt[] input_size, " + conv,
      "conv_backward_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, " + conv,
      "conv_backward_bias(Tensor grad_output) -> Tensor",
      "max_pool(Tensor input, " + window + ", bool with_places, str algorithm) -> (Tensor output, Tensor places)",
      "max_pool_backward(Tensor grad_output, Tensor places, SymInt[] input_size, " + window +
          ", str algorithm) -> Tensor",
      "max_pool_indices(Tensor places, SymInt[] input_size, " + window + ") -> Tensor",
      "avg_pool(Tensor input, " + average,
      "avg_pool_backward(Tensor grad_output, SymInt[] input_size, " + average,
  };
  for (const std::string& schema : schemas) m.def(schema.c_str());
}

// CUDA is registered in every build: without kernels, device_of says so in one sentence.
#define CONVEXT_REGISTER(key)                             \
  TORCH_LIBRARY_IMPL(convext, key, m) {                   \
    m.impl("conv_forward", conv_forward);                 \
    m.impl("conv_backward_input", conv_backward_input);   \
    m.impl("conv_backward_weight", conv_backward_weight); \
    m.impl("conv_backward_bias", conv_backward_bias);     \
    m.impl("max_pool", max_pool);                         \
    m.impl("max_pool_backward", max_pool_backward);       \
    m.impl("max_pool_indices", max_pool_indices);         \
    m.impl("avg_pool", avg_pool);                         \
    m.impl("avg_pool_backward", avg_pool_backward);       \
  }
CONVEXT_REGISTER(CPU)
CONVEXT_REGISTER(CUDA)

}  // namespace convext
