// Which layers of a chain run together, and the tensors they need. Errors are those of the layers one by one: whatever
// is not as it should be is left to them.
#include "chain.h"

#include "cpu/layer_chain.h"
#include "cpu/parallel.h"
#include "epilogue_torch.h"
#include "ops.h"
#include "packed_weights.h"
#include "tensors.h"
#include "tuning.h"

namespace convext {
namespace {

using at::Tensor;
using std::optional;

bool has_kernels(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// A convolution of an input of such sizes; false where it must speak for itself.
bool describe_conv(const ChainCall& call, Sizes input, at::ScalarType type, cpu::ChainLayer* layer) {
  const ConvOptions& o = call.conv;
  ConvGeometry& g = layer->conv_args.geometry;
  if (!call.weight.is_cpu() || call.weight.scalar_type() != type || call.weight.dim() != 4) return false;
  const ConvCall sizes = {o.stride, o.padding, o.dilation, o.groups, o.padding_mode, o.flip_kernel};
  if (!make_conv_geometry(input, sizes_of(call.weight), sizes, &g).empty() || g.in_channels == 0) return false;
  if (call.bias.has_value() && (!call.bias->is_cpu() || call.bias->scalar_type() != type || call.bias->dim() != 1 ||
                                call.bias->size(0) != g.out_channels))
    return false;
  g.layout = Layout::channels_last;
  const Asked asked = parse_algorithm(o.algorithm);
  g.winograd = asked.winograd;
  const EpilogueOptions& e = call.epilogue;
  layer->conv_args.dtype = dtype_of(type, "conv");
  layer->conv_args.epilogue = {nullptr, e.residual_last, parse_activation(e.activation), e.a, e.b};
  layer->conv = &resolve_conv(Device::cpu, asked, g, layer->conv_args.dtype, Direction::forward);
  return true;
}

bool describe_pool(const ChainCall& call, Sizes input, at::ScalarType type, cpu::ChainLayer* layer) {
  const PoolOptions& o = call.pool;
  PoolGeometry& g = layer->pool_args.geometry;
  const PoolCall sizes = {o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode};
  if (!make_pool_geometry("max_pool", input, sizes, &g).empty()) return false;
  g.layout = Layout::channels_last;
  layer->pool_args.dtype = dtype_of(type, "max_pool");
  layer->pool = &resolve_pool(Device::cpu, o.algorithm, g, layer->pool_args.dtype, PoolPass::max_forward);
  return true;
}

Shape output_shape(const cpu::ChainLayer& layer) {
  return layer.conv != nullptr ? conv_output_shape(layer.conv_args.geometry)
                               : pool_output_shape(layer.pool_args.geometry);
}

// The layers as kernels see them, as far as they can be run together with others.
std::vector<cpu::ChainLayer> describe(const Tensor& input, const std::vector<ChainCall>& calls) {
  std::vector<cpu::ChainLayer> layers;
  const at::ScalarType type = input.scalar_type();
  const Layout layout = calls[0].pools ? layout_of(input) : layout_of(input, calls[0].weight);
  if (!input.is_cpu() || !has_kernels(type) || input.dim() != 4 || input.numel() == 0 ||
      layout != Layout::channels_last)
    return layers;
  Shape shape = {{input.size(0), input.size(1), input.size(2), input.size(3)}, 4};
  for (const ChainCall& call : calls) {
    cpu::ChainLayer layer;
    const bool plain = call.pools ? describe_pool(call, shape, type, &layer) : describe_conv(call, shape, type, &layer);
    if (!plain) break;
    shape = output_shape(layer);
    if (c10::multiply_integers(at::IntArrayRef(shape)) == 0) break;
    layers.push_back(layer);
  }
  return layers;
}

Tensor run_one(const Tensor& input, const ChainCall& call, const optional<Tensor>& residual) {
  if (call.pools) return std::get<0>(max_pool(input, call.pool, /*with_indices=*/false));
  return conv_fused(input, call.weight, call.bias, residual, call.conv, call.epilogue);
}

// How many layers from `first` on run together, and how; one: alone.
size_t together(const std::vector<cpu::ChainLayer>& layers, size_t first, cpu::ChainPlan* plan) {
  std::vector<cpu::ChainLayer> some;
  for (size_t i = first; i < layers.size() && cpu::suits_chain(layers[i]); ++i) {
    some.push_back(layers[i]);
    if (some.size() == 1) continue;
    cpu::ChainPlan longer = cpu::plan_chain(some);
    if (longer.rows == 0 || longer.thread_bytes > workspace_limit() / cpu::max_threads()) break;
    *plan = std::move(longer);
  }
  return std::max<size_t>(plan->most.size(), 1);
}

Tensor run_together(const Tensor& input, std::vector<cpu::ChainLayer> layers, const ChainCall* calls,
                    const cpu::ChainPlan& plan, const optional<Tensor>& residual) {
  constexpr Layout layout = Layout::channels_last;
  const Tensor x = laid_out(input, layout, 2);
  const Tensor output = new_output(output_shape(layers.back()), input, layout, 2);
  std::vector<Tensor> held;
  const auto hold = [&](const Tensor& t) { return held.emplace_back(t).data_ptr(); };
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].conv == nullptr) {
      const PoolArguments& args = layers[i].pool_args;
      log_choice(calls[i].pool.algorithm, layers[i].pool->name, args.geometry, args.dtype, "max_pool, in a chain");
      continue;
    }
    ConvArguments& args = layers[i].conv_args;
    const ConvAlgorithm& algorithm = *layers[i].conv;
    log_choice(calls[i].conv.algorithm, algorithm.name, args.geometry, args.dtype, "forward, in a chain");
    held.push_back(give_weight(args, algorithm, Direction::forward, calls[i].weight, /*packed=*/true));
    if (calls[i].bias.has_value()) args.bias = hold(calls[i].bias->contiguous());
    if (i + 1 == layers.size() && residual.has_value()) args.epilogue.residual = hold(laid_out(*residual, layout, 2));
  }
  const auto end = [](cpu::ChainLayer& layer, const void* from, void* to) {
    if (from != nullptr) (layer.conv != nullptr ? layer.conv_args.input : layer.pool_args.input) = from;
    if (to != nullptr) (layer.conv != nullptr ? layer.conv_args.output : layer.pool_args.output) = to;
  };
  end(layers.front(), x.data_ptr(), nullptr);
  end(layers.back(), nullptr, output.data_ptr());
  const Tensor workspace = new_workspace(cpu::max_threads() * plan.thread_bytes, input);
  cpu::run_chain(layers, plan, aligned(workspace));
  return output;
}

bool fits(const optional<Tensor>& residual, const Tensor& input, const cpu::ChainLayer& last) {
  return !residual.has_value() ||
         (last.conv != nullptr && residual->is_cpu() && residual->scalar_type() == input.scalar_type() &&
          residual->sizes() == at::IntArrayRef(output_shape(last)));
}

}  // namespace

Tensor run_layers(const Tensor& input, const std::vector<ChainCall>& calls, const optional<Tensor>& residual) {
  std::vector<cpu::ChainLayer> layers = describe(input, calls);
  if (layers.size() == calls.size() && !fits(residual, input, layers.back())) layers.pop_back();
  Tensor x = input;
  for (size_t i = 0; i < calls.size();) {
    cpu::ChainPlan plan;
    const size_t count = together(layers, i, &plan);
    const optional<Tensor> last = i + count == calls.size() ? residual : std::nullopt;
    x = count == 1 ? run_one(x, calls[i], last)
                   : run_together(x, {layers.begin() + i, layers.begin() + i + count}, calls.data() + i, plan, last);
    i += count;
  }
  return x;
}

}  // namespace convext
