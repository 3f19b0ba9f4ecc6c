// The door to torch of channel_scale.h. float64, and devices without a kernel, are served by torch's own operations.
#include <ATen/ops/cat.h>
#include <torch/library.h>

#include "channel_scale.h"
#include "epilogue_torch.h"
#include "ops.h"
#include "tensors.h"

namespace convext {
namespace {

at::Tensor by_torch(const std::vector<at::Tensor>& inputs, const at::Tensor& scale, const at::Tensor& shift,
                    const Epilogue& epilogue, at::MemoryFormat format) {
  std::vector<int64_t> per_channel(inputs[0].dim(), 1);
  per_channel[1] = -1;
  const at::Tensor joined = (inputs.size() == 1 ? inputs[0] : at::cat(inputs, 1)).contiguous(format);
  const at::Tensor y = joined.mul(scale.view(per_channel)).add_(shift.view(per_channel));
  finish_with_torch(epilogue, y, at::Tensor());
  return y;
}

at::Tensor channel_scale(at::TensorList inputs, const at::Tensor& scale, const at::Tensor& shift,
                         std::string_view activation, double a, double b) {
  TORCH_CHECK_VALUE(!inputs.empty(), "channel_scale: expected at least one input, got none");
  const at::Tensor& like = inputs[0];
  const Epilogue epilogue = {nullptr, false, parse_activation(activation), a, b};
  TORCH_CHECK(like.dim() >= 3 && like.dim() <= 5, "channel_scale: inputs must have 3 to 5 dimensions, got size ",
              like.sizes());
  std::vector<int64_t> shape = like.sizes().vec(), channels;
  shape[1] = 0;
  Layout layout = Layout::contiguous;  // channels_last where one of them is
  const int spatial = int(like.dim()) - 2;
  for (const at::Tensor& x : inputs) {
    std::vector<int64_t> own = x.sizes().vec();
    TORCH_CHECK(
        x.dim() == like.dim() && x.scalar_type() == like.scalar_type() && x.device() == like.device() &&
            [&] {
              own[1] = like.size(1);
              return at::IntArrayRef(own) == like.sizes();
            }(),
        "channel_scale: inputs must agree in all but their channels, got ", x.scalar_type(), " ", x.sizes(), " on ",
        x.device(), " (expected ", like.scalar_type(), " ", like.sizes(), " on ", like.device(), ")");
    channels.push_back(x.size(1));
    shape[1] += x.size(1);
    if (layout_of(x) == Layout::channels_last) layout = Layout::channels_last;
  }
  for (const at::Tensor* t : {&scale, &shift})
    TORCH_CHECK(t->dim() == 1 && t->size(0) == shape[1] && t->scalar_type() == like.scalar_type() &&
                    t->device() == like.device(),
                "channel_scale: scale and shift must be ", like.scalar_type(), " of size [", shape[1], "] on ",
                like.device(), ", got ", t->scalar_type(), " of size ", t->sizes(), " on ", t->device());
  const at::ScalarType type = like.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(type), "channel_scale: dtype ", type, " is not supported");
  if (!like.is_cpu() || type == at::kDouble)
    return by_torch(inputs.vec(), scale, shift, epilogue, memory_format(layout, spatial));
  std::vector<at::Tensor> held;
  std::vector<const void*> pointers;
  for (const at::Tensor& x : inputs) {
    held.push_back(laid_out(x, layout, spatial));
    pointers.push_back(held.back().data_ptr());
  }
  const at::Tensor output = new_output(shape, like, layout, spatial);
  if (output.numel() == 0) return output;
  const at::Tensor s = scale.to(at::kFloat).contiguous(), t = shift.to(at::kFloat).contiguous();
  cpu::channel_scale({dtype_of(type, "channel_scale"), layout, shape[0], output.numel() / (shape[0] * shape[1]),
                      shape[1], pointers.data(), channels.data(), int64_t(channels.size()), s.data_ptr<float>(),
                      t.data_ptr<float>(), epilogue.activation, float(a), float(b), output.data_ptr()});
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(convext, m) {
  m.def("channel_scale(Tensor[] inputs, Tensor scale, Tensor shift, str activation, float a, float b) -> Tensor");
}
TORCH_LIBRARY_IMPL(convext, CPU, m) { m.impl("channel_scale", channel_scale); }
TORCH_LIBRARY_IMPL(convext, CUDA, m) { m.impl("channel_scale", channel_scale); }

}  // namespace convext
