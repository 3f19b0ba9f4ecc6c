// The door to torch for pooling: operator schemas, checks of tensors, tensors to pointers and geometry. Device-neutral,
// no arithmetic, as in ops.cpp.
#include <torch/library.h>

#include <type_traits>

#include "ops.h"
#include "other_pools.h"
#include "tensors.h"

namespace convext {
namespace {

std::string op_name(const char* op, const PoolGeometry& g) { return op + std::to_string(g.spatial) + "d"; }

PoolGeometry pool_geometry(const char* op, Sizes input, const PoolCall& call, Layout layout) {
  PoolGeometry g;
  const std::string error = make_pool_geometry(op, input, call, &g);
  TORCH_CHECK(error.empty(), error);
  g.layout = layout;
  return g;
}

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

void check_places(const char* op, const at::Tensor& places, const PoolGeometry& g) {
  check_pooled(op, "places", places, g);
  TORCH_CHECK(places.scalar_type() == places_type(g), op_name(op, g), ": places must be ", places_type(g),
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
  check_places("max_pool", places, g);
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
  check_places("max_pool", places, g);
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

// Pools without a table
// -------------------------------------------------------------------------------------------------

// Calls the function of the device, on its stream.
template <typename Arguments>
void run_on_device(Arguments& args, const at::Tensor& like, const char* op,
                   std::type_identity_t<void (*)(const Arguments&)> on_cpu,
                   std::type_identity_t<void (*)(const Arguments&)> on_cuda) {
  const Device device = device_of(like.device(), op);
  const DeviceScope scope(like);
  args.stream = scope.stream();
  (device == Device::cpu ? on_cpu : on_cuda)(args);
}
#ifdef CONVEXT_WITH_CUDA
#define CONVEXT_ON_CUDA(function) cuda::function
#else
#define CONVEXT_ON_CUDA(function) nullptr  // device_of has refused the call
#endif

void check_planes(const at::Tensor& input, const char* op) {
  TORCH_CHECK(input.dim() >= 3 && input.dim() <= 2 + kMaxSpatial, op,
              ": expected an input with 1 to 3 spatial dimensions, got size ", input.sizes());
}
int64_t places_of(at::IntArrayRef sizes) { return c10::multiply_integers(sizes.slice(2)); }

void check_inside(std::optional<int64_t> outside, at::IntArrayRef output_size) {
  TORCH_CHECK(!outside.has_value(), "max_unpool: Found an invalid max index: ", *outside, " (an output of size ",
              output_size, " has ", c10::multiply_integers(output_size), " places)");
}

at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, at::IntArrayRef output_size) {
  check_planes(input, "max_unpool");
  TORCH_CHECK(indices.scalar_type() == at::kLong,
              "max_unpool: elements in indices should be type int64 but got: ", indices.scalar_type());
  TORCH_CHECK(indices.sizes() == input.sizes(),
              "max_unpool: Expected shape of indices to be same as that of the input ", "tensor (", input.sizes(),
              ") but got indices tensor with shape: ", indices.sizes());
  TORCH_CHECK(indices.device() == input.device(), "max_unpool: input is on ", input.device(), ", indices on ",
              indices.device());
  const int spatial = int(input.dim()) - 2;
  TORCH_CHECK(int64_t(output_size.size()) == spatial, "max_unpool: output_size has ", output_size.size(),
              " entries (expected ", spatial, ")");
  at::DimVector shape{input.size(0), input.size(1)};
  for (int64_t size : output_size) {
    TORCH_CHECK(size >= 0, "max_unpool: output_size must not be negative, got ", output_size);
    shape.push_back(size);
  }
  const Layout layout = layout_of(input);
  const at::Tensor output = new_output(shape, input, layout, spatial);
  if (output.numel() == 0) return output;
  if (input.numel() == 0) return output.zero_();
  const at::Tensor x = laid_out(input, layout, spatial), at = laid_out(indices, layout, spatial);
  UnpoolArguments args{dtype_of(input.scalar_type(), "max_pool"),
                       layout,
                       input.size(0),
                       input.size(1),
                       places_of(input.sizes()),
                       places_of(shape),
                       x.data_ptr(),
                       at.const_data_ptr<int64_t>(),
                       output.data_ptr(),
                       nullptr,
                       nullptr,
                       places_of(input.sizes()) / input.size(2)};
  if (device_of(input.device(), "max_unpool") == Device::cpu) {
    check_inside(cpu::max_unpool(args), output_size);
    return output;
  }
#ifdef CONVEXT_WITH_CUDA
  const DeviceScope scope(input);
  const at::Tensor workspace = new_workspace(cuda::max_unpool_workspace_bytes(args), input);
  args.workspace = aligned(workspace);
  args.stream = scope.stream();
  cuda::max_unpool(args);
#endif
  return output;
}

std::tuple<at::Tensor, at::Tensor> k_max_pool(const at::Tensor& input, int64_t k) {
  check_planes(input, "k_max_pool");
  const Layout layout = layout_of(input);
  const int64_t places = places_of(input.sizes());
  TORCH_CHECK(k >= 0 && k <= places, "k_max_pool: k must be between 0 and the ", places, " places of an input of size ",
              input.sizes(), ", got k=", k);
  const int spatial = int(input.dim()) - 2;
  const int64_t shape[] = {input.size(0), input.size(1), k};
  const at::Tensor output = new_tensor(shape, input.scalar_type(), input, at::MemoryFormat::Contiguous);
  const at::Tensor indices = new_tensor(shape, at::kLong, input, at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return {output, indices};
  const at::Tensor x = laid_out(input, layout, spatial);
  KMaxArguments args{dtype_of(input.scalar_type(), "max_pool"),
                     layout,
                     input.size(0),
                     input.size(1),
                     places,
                     k,
                     x.data_ptr(),
                     output.data_ptr(),
                     indices.data_ptr<int64_t>(),
                     nullptr};
  run_on_device(args, input, "k_max_pool", cpu::k_max_pool, CONVEXT_ON_CUDA(k_max_pool));
  return {output, indices};
}

// The call's geometry, but for pointers, after all checks.
FractionalArguments fractional_arguments(at::IntArrayRef input_size, const at::Tensor& like, const at::Tensor& samples,
                                         at::IntArrayRef kernel_size, at::IntArrayRef output_size) {
  const char* op = "fractional_max_pool";
  check_floating(like, op);
  const int64_t spatial = int64_t(input_size.size()) - 2;
  TORCH_CHECK(spatial == 2 || spatial == 3, op, ": expected an input with 2 or 3 spatial dimensions, got size ",
              input_size);
  TORCH_CHECK(int64_t(kernel_size.size()) == spatial && int64_t(output_size.size()) == spatial, op, spatial,
              "d: kernel_size and output_size must have ", spatial, " entries, got ", kernel_size, " and ",
              output_size);
  FractionalArguments args{};
  args.dtype = dtype_of(like.scalar_type(), op);
  PoolGeometry& g = args.geometry;
  g.spatial = int(spatial);
  g.batch = input_size[0];
  g.channels = input_size[1];
  for (int64_t i = 0; i < spatial; ++i) {
    const int axis = int(kMaxSpatial - spatial + i);
    g.input[axis] = input_size[2 + i], g.kernel[axis] = kernel_size[i], g.output[axis] = output_size[i];
    TORCH_CHECK(g.kernel[axis] > 0 && g.output[axis] > 0, op, spatial,
                "d: kernel_size and output_size must be greater than zero, got ", kernel_size, " and ", output_size);
    TORCH_CHECK(g.input[axis] > 0 && g.channels > 0, op, spatial,
                "d: Expected input to have non-zero size for non-batch dimensions, got size ", input_size);
    TORCH_CHECK(g.output[axis] + g.kernel[axis] - 1 <= g.input[axis], op, spatial, "d: a window of ", g.kernel[axis],
                " places and ", g.output[axis], " outputs are too large relative to input of ", g.input[axis],
                " places");
  }
  const int64_t expected[] = {g.batch, g.channels, spatial};
  TORCH_CHECK(samples.sizes() == at::IntArrayRef(expected), op, spatial,
              "d: random samples must have one number per image, channel and dimension, size ",
              at::IntArrayRef(expected), ", got ", samples.sizes());
  TORCH_CHECK(samples.scalar_type() == like.scalar_type() && samples.device() == like.device(), op, spatial,
              "d: Expect _random_samples to have the same dtype and device as input, got ", samples.scalar_type(),
              " on ", samples.device());
  return args;
}

std::tuple<at::Tensor, at::Tensor> fractional_max_pool(const at::Tensor& input, const at::Tensor& samples,
                                                       at::IntArrayRef kernel_size, at::IntArrayRef output_size,
                                                       bool with_places) {
  FractionalArguments args = fractional_arguments(input.sizes(), input, samples, kernel_size, output_size);
  const PoolGeometry& g = args.geometry;
  const Shape shape = pool_output_shape(g);
  const at::Tensor output = new_output(shape, input, Layout::contiguous, g.spatial);
  const at::Tensor places = new_tensor(with_places ? at::IntArrayRef(shape) : at::IntArrayRef{0}, places_type(g), input,
                                       at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return {output, places};
  const at::Tensor x = input.contiguous(), u = samples.contiguous();
  args.input = x.data_ptr();
  args.samples = u.data_ptr();
  args.output = output.data_ptr();
  args.places_out = with_places ? places.data_ptr() : nullptr;
  run_on_device(args, input, "fractional_max_pool", cpu::fractional_max_pool, CONVEXT_ON_CUDA(fractional_max_pool));
  return {output, places};
}

at::Tensor fractional_max_pool_backward(const at::Tensor& grad_output, const at::Tensor& places,
                                        const at::Tensor& samples, at::IntArrayRef input_size,
                                        at::IntArrayRef kernel_size) {
  FractionalArguments args =
      fractional_arguments(input_size, grad_output, samples, kernel_size, grad_output.sizes().slice(2));
  const PoolGeometry& g = args.geometry;
  check_pooled("fractional_max_pool", "grad_output", grad_output, g);
  check_places("fractional_max_pool", places, g);
  const at::Tensor output = new_output(input_size, grad_output, Layout::contiguous, g.spatial);
  if (output.numel() == 0) return output;
  const at::Tensor dy = grad_output.contiguous(), at = places.contiguous(), u = samples.contiguous();
  args.grad_output = dy.data_ptr();
  args.places = at.data_ptr();
  args.samples = u.data_ptr();
  args.output = output.data_ptr();
  run_on_device(args, grad_output, "fractional_max_pool", cpu::fractional_max_pool_backward,
                CONVEXT_ON_CUDA(fractional_max_pool_backward));
  return output;
}

at::Tensor fractional_max_pool_indices(const at::Tensor& places, const at::Tensor& samples, at::IntArrayRef input_size,
                                       at::IntArrayRef kernel_size) {
  FractionalArguments args = fractional_arguments(input_size, samples, samples, kernel_size, places.sizes().slice(2));
  const PoolGeometry& g = args.geometry;
  check_places("fractional_max_pool", places, g);
  const at::Tensor output = new_tensor(places.sizes(), at::kLong, places, at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return output;
  const at::Tensor at = places.contiguous(), u = samples.contiguous();
  args.places = at.data_ptr();
  args.samples = u.data_ptr();
  args.output = output.data_ptr();
  run_on_device(args, places, "fractional_max_pool", cpu::fractional_max_pool_indices,
                CONVEXT_ON_CUDA(fractional_max_pool_indices));
  return output;
}

}  // namespace

at::Tensor max_unpool_gradient(const at::Tensor& grad_output, const at::Tensor& indices) {
  const int spatial = int(indices.dim()) - 2;
  const Layout layout = layout_of(grad_output);
  at::Tensor output = new_output(indices.sizes(), grad_output, layout, spatial);
  if (output.numel() == 0) return output;
  const at::Tensor dy = laid_out(grad_output, layout, spatial), at = laid_out(indices, layout, spatial);
  const UnpoolArguments args{dtype_of(dy.scalar_type(), "max_pool"),
                             layout,
                             at.size(0),
                             at.size(1),
                             places_of(at.sizes()),
                             places_of(dy.sizes()),
                             dy.data_ptr(),
                             at.const_data_ptr<int64_t>(),
                             output.data_ptr(),
                             nullptr,
                             nullptr};
  check_inside(cpu::max_unpool_backward(args), grad_output.sizes().slice(2));
  return output;
}

// Padding has two entries per spatial dimension: before, after. An empty stride makes windows adaptive: kernel_size
// then says how many there are.
TORCH_LIBRARY_FRAGMENT(convext, m) {
  const std::string window =
      "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode";
  const std::string average = window + ", bool count_include_pad, int? divisor_override, str algorithm) -> Tensor";
  const std::string schemas[] = {
      "max_pool(Tensor input, " + window + ", bool with_places, str algorithm) -> (Tensor output, Tensor places)",
      "max_pool_backward(Tensor grad_output, Tensor places, SymInt[] input_size, " + window +
          ", str algorithm) -> Tensor",
      "max_pool_indices(Tensor places, SymInt[] input_size, " + window + ") -> Tensor",
      "avg_pool(Tensor input, " + average,
      "avg_pool_backward(Tensor grad_output, SymInt[] input_size, " + average,
      "max_unpool(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor",
      "k_max_pool(Tensor input, SymInt k) -> (Tensor output, Tensor indices)",
      "fractional_max_pool(Tensor input, Tensor samples, SymInt[] kernel_size, SymInt[] output_size, bool with_places)"
      " -> (Tensor output, Tensor places)",
      "fractional_max_pool_backward(Tensor grad_output, Tensor places, Tensor samples, SymInt[] input_size, "
      "SymInt[] kernel_size) -> Tensor",
      "fractional_max_pool_indices(Tensor places, Tensor samples, SymInt[] input_size, SymInt[] kernel_size) -> Tensor",
  };
  for (const std::string& schema : schemas) m.def(schema.c_str(), {at::Tag::flexible_layout});
}

#define CONVEXT_REGISTER_POOLS(key)                                       \
  TORCH_LIBRARY_IMPL(convext, key, m) {                                   \
    m.impl("max_pool", max_pool);                                         \
    m.impl("max_pool_backward", max_pool_backward);                       \
    m.impl("max_pool_indices", max_pool_indices);                         \
    m.impl("avg_pool", avg_pool);                                         \
    m.impl("avg_pool_backward", avg_pool_backward);                       \
    m.impl("max_unpool", max_unpool);                                     \
    m.impl("k_max_pool", k_max_pool);                                     \
    m.impl("fractional_max_pool", fractional_max_pool);                   \
    m.impl("fractional_max_pool_backward", fractional_max_pool_backward); \
    m.impl("fractional_max_pool_indices", fractional_max_pool_indices);   \
  }
CONVEXT_REGISTER_POOLS(CPU)
CONVEXT_REGISTER_POOLS(CUDA)

}  // namespace convext
