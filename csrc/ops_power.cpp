// Power averages that cpu::power_pool takes: tensors to pointers and geometry. No operator: an eager call comes here
// from calls.cpp, with its gradient from autograd_pool.cpp; any other is composed in convext/autograd.
#include <c10/util/Exception.h>

#include <string>

#include "autograd.h"
#include "ops.h"
#include "other_pools.h"
#include "tensors.h"

namespace convext {
namespace {

// The call, but for pointers, if cpu::power_pool takes it.
std::optional<PowerArguments> power_arguments(const at::Tensor& input, int power, const PoolOptions& o) {
  if (!input.is_cpu() || !input.is_floating_point() || power < 2 || power > 4 || o.algorithm != "auto")
    return std::nullopt;
  const PoolCall call{o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, /*count_include_pad=*/true, 0};
  PowerArguments args{};
  PoolGeometry& g = args.pool.geometry;
  const std::string error = make_pool_geometry("avg_pool", sizes_of(input), call, &g);
  TORCH_CHECK(error.empty(), error);
  g.layout = layout_of(input);
  args.pool.dtype = dtype_of(input.scalar_type(), "avg_pool");
  args.power = power;
  const PoolAlgorithm& average = resolve_pool(Device::cpu, o.algorithm, g, args.pool.dtype, PoolPass::avg_forward);
  if (std::string_view(average.name) != "direct" || g.output_elements() == 0) return std::nullopt;
  log_choice(o.algorithm, average.name, g, args.pool.dtype, "lp_pool");
  return args;
}

}  // namespace

std::optional<at::Tensor> power_pool(const at::Tensor& input, int power, const PoolOptions& options) {
  std::optional<PowerArguments> args = power_arguments(input, power, options);
  if (!args.has_value()) return std::nullopt;
  const PoolGeometry& g = args->pool.geometry;
  at::Tensor output = new_output(pool_output_shape(g), input, g.layout, g.spatial);
  const at::Tensor x = laid_out(input, g.layout, g.spatial);
  args->pool.input = x.data_ptr();
  args->pool.output = output.data_ptr();
  log_choice(options.algorithm, "direct", g, args->pool.dtype, "avg_pool");
  cpu::power_pool(*args);
  return output;
}

at::Tensor power_pool_gradient(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& output,
                               int power, const PoolOptions& options) {
  std::optional<PowerArguments> args = power_arguments(input, power, options);
  TORCH_CHECK(args.has_value(), "lp_pool: \"auto\" has been changed since the forward pass");
  const PoolGeometry& g = args->pool.geometry;
  at::Tensor result = new_output(input.sizes(), input, g.layout, g.spatial);
  const at::Tensor x = laid_out(input, g.layout, g.spatial), y = laid_out(output, g.layout, g.spatial);
  const at::Tensor dy = laid_out(grad_output, g.layout, g.spatial);
  args->pool.input = x.data_ptr();
  args->pool.grad_output = dy.data_ptr();
  args->pool.output = result.data_ptr();
  args->y = y.data_ptr();
  cpu::power_pool_backward(*args);
  return result;
}

}  // namespace convext
