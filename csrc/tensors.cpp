#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_ops.h>
#include <c10/core/AutogradState.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/graph_task.h>

#include <atomic>
#include <cstdlib>
#include <limits>

#ifdef CONVEXT_WITH_CUDA
#include "cuda/stream.h"
#endif
#include "arena.h"
#include "cpu/interleave.h"
#include "huge_pages.h"
#include "ops.h"

namespace convext {
namespace {

std::atomic<bool> poison{false};

constexpr int64_t kAlignment = 64;

// A contiguous image of few channels: torch lays it out channels_last a number at a time.
bool interleaves(const at::Tensor& t, int spatial) {
  return spatial >= 2 && t.dim() == spatial + 2 && t.is_cpu() && t.scalar_type() == at::kFloat && t.numel() > 0 &&
         cpu::interleaves(t.size(1)) && t.is_contiguous();
}

bool prefers_channels_last(const at::Tensor& t) {
  const auto format = t.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

// Whether an operator runs in the forward pass of an autograd Function, which is how compiled graphs that are trained
// run too (unlike no_grad, it has forward mode off as well), or in a backward pass.
bool in_training() {
  const c10::AutogradState& state = c10::AutogradState::get_tls_state();
  const bool in_function = !state.get_grad_mode() && !state.get_fw_grad_mode() && !state.get_inference_mode();
  return in_function || torch::autograd::get_current_graph_task_id() >= 0;
}

}  // namespace

DeviceScope::DeviceScope(const at::Tensor& tensor) {
#ifdef CONVEXT_WITH_CUDA
  if (tensor.is_cuda()) {
    previous_ = cuda::exchange_device(tensor.get_device());
    stream_ = cuda::current_stream(tensor.get_device());
  }
#else
  (void)tensor;
#endif
}
DeviceScope::~DeviceScope() {
#ifdef CONVEXT_WITH_CUDA
  if (previous_ >= 0) cuda::exchange_device(previous_);
#endif
}

Layout layout_of(const at::Tensor& a, const at::Tensor& b) {
  return prefers_channels_last(a) || prefers_channels_last(b) ? Layout::channels_last : Layout::contiguous;
}

at::MemoryFormat memory_format(Layout layout, int spatial) {
  if (layout == Layout::contiguous) return at::MemoryFormat::Contiguous;
  return spatial == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

at::Tensor laid_out(const at::Tensor& t, Layout layout, int spatial) {
  const at::MemoryFormat format = memory_format(layout, spatial);
  if (layout == Layout::channels_last && interleaves(t, spatial) && !t.is_contiguous(format)) {
    const at::Tensor out = new_output(t.sizes(), t, layout, spatial);
    const int64_t places = t.numel() / (t.size(0) * t.size(1));
    cpu::interleave(t.size(0), t.size(1), places, t.const_data_ptr<float>(), out.mutable_data_ptr<float>());
    return out;
  }
  return t.contiguous(format);
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
  if (like.is_cpu()) {
    const int64_t bytes = c10::multiply_integers(shape) * int64_t(c10::elementSize(type));
    if (bytes >= kArenaFrom && (arena_is_on() || in_training())) {
      at::Tensor out = at::Tensor(
          at::detail::empty_generic(shape, arena(), c10::DispatchKeySet(c10::DispatchKey::CPU), type, format));
      do_poison(out);
      return out;
    }
  }
  at::Tensor out = like.is_cpu()
                       ? at::Tensor(at::detail::empty_cpu(shape, type, /*pin_memory=*/false, format))
                       : at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), type, like.layout(),
                                                             like.device(), /*pin_memory=*/false, format);
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

}  // namespace convext
