// Who exists, and who is chosen. One line per algorithm and device, best first; the one that accepts everything last.
#include "algorithms.h"

#include <atomic>
#include <limits>
#include <string_view>

#include "cpu/conv_direct.h"
#include "cpu/input_gradient.h"
#include "cpu/isa.h"
#include "cuda/stream.h"
#include "cuda_choice.h"
#include "tuning.h"

namespace convext {

const std::vector<const ConvAlgorithm*>& conv_algorithms(Device device) {
  static const std::vector<const ConvAlgorithm*> on_cpu = {
      &cpu::conv_winograd,
      &cpu::conv_im2col,
      &cpu::conv_direct,
      &cpu::conv_naive,
  };
  static const std::vector<const ConvAlgorithm*> on_cuda = {
#ifdef CONVEXT_WITH_CUDA
      &cuda::conv_winograd, &cuda::conv_implicit_gemm, &cuda::conv_im2col, &cuda::conv_direct, &cuda::conv_naive,
#endif
  };
  return device == Device::cpu ? on_cpu : on_cuda;
}

const std::vector<const PoolAlgorithm*>& pool_algorithms(Device device) {
  static const std::vector<const PoolAlgorithm*> on_cpu = {
      &cpu::pool_direct,
      &cpu::pool_naive,
  };
  static const std::vector<const PoolAlgorithm*> on_cuda = {
#ifdef CONVEXT_WITH_CUDA
      &cuda::pool_direct,
      &cuda::pool_naive,
#endif
  };
  return device == Device::cpu ? on_cpu : on_cuda;
}

namespace {

// im2col or direct? A GEMM over unfolded places pays where a group has enough channels on both sides to fill its tiles.
// With fewer, unfolding costs more than the product, and direct reads each place where it lies. Thresholds: read off
// the benchmark's layers in both layouts.
namespace on_cpu {

bool forward_suits_im2col(const ConvGeometry& g) {
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs();
  const bool contiguous = g.layout == Layout::contiguous;
  if (inputs == 1 || inputs * g.taps() < 16 || outputs < 8) return false;
  // First layers: direct, which has no vector code for large strides of contiguous rows.
  const bool strided = contiguous && g.stride[2] > 2;
  if (inputs <= 4 && !strided) return false;
  if (inputs <= 8 && !strided && g.taps() > 1 && (!contiguous || outputs <= 32)) return false;
  return g.taps() == 1 || g.output_places() >= 16;  // of fewer, the product is over before packing the weight has paid
}

bool suits_im2col(const ConvGeometry& g, Direction direction) {
  switch (direction) {
    case Direction::forward: return forward_suits_im2col(g);
    case Direction::backward_input:  // forward convolutions of the output gradient
      return forward_suits_im2col(cpu::StridePhases(cpu::gradient_geometry(g)).largest());
    default: {  // unfolds nothing: takes vectors of channels, of whichever side has more, and turns planes for it
      constexpr int64_t kEnough = 8;
      if (cpu::active_isa() >= cpu::Isa::avx512 && cpu::weight_by_planes(g) && g.stride[1] == 1) return false;
      return g.group_inputs() >= kEnough || g.group_outputs() >= kEnough;
    }
  }
}

}  // namespace on_cpu

// The transforms cost more than the estimate where channels are few: then a small gain is none.
constexpr double kWinogradGain = 1.15;

bool suits_winograd(const ConvGeometry& g, DType dtype, Direction direction) {
  return g.winograd != WinogradMode::off && cpu::winograd_gain(g, dtype, direction) > kWinogradGain;
}

std::atomic<WinogradMode> process_mode{WinogradMode::accurate};

bool over_limit(const ConvAlgorithm& a, const ConvGeometry& g, DType dtype, Direction direction) {
  const int64_t limit = workspace_limit();
  return limit < std::numeric_limits<int64_t>::max() && a.workspace_bytes(g, dtype, direction) > limit;
}

bool can(const ConvAlgorithm& a, const ConvGeometry& g, DType dtype, Direction direction) {
  return a.unsupported(g, dtype, direction) == nullptr && !over_limit(a, g, dtype, direction);
}

// On a GPU: the least of the estimates for what is able.
const ConvAlgorithm& choose_on_cuda(const ConvGeometry& geometry, DType dtype, Direction direction) {
  const auto& table = conv_algorithms(Device::cuda);
  std::vector<std::string_view> able;
  for (const ConvAlgorithm* algorithm : table)
    if (can(*algorithm, geometry, dtype, direction)) able.push_back(algorithm->name);
  const std::string_view best = cuda_choice(current_gpu(), able, geometry, dtype, direction);
  for (const ConvAlgorithm* algorithm : table)
    if (algorithm->name == best) return *algorithm;
  return *table.back();
}

}  // namespace

Gpu current_gpu() {
#ifdef CONVEXT_WITH_CUDA
  return cuda::current_gpu();
#else
  return Gpu();
#endif
}

WinogradMode winograd_mode() { return process_mode.load(std::memory_order_relaxed); }
void set_winograd_mode(WinogradMode mode) { process_mode.store(mode); }

std::string refusal(const ConvAlgorithm& a, const ConvGeometry& g, DType dtype, Direction direction) {
  if (const char* reason = a.unsupported(g, dtype, direction)) return reason;
  if (!over_limit(a, g, dtype, direction)) return "";
  return "needs a workspace of " + std::to_string(a.workspace_bytes(g, dtype, direction)) +
         " bytes, convext.set_workspace_limit allows " + std::to_string(workspace_limit());
}

std::string refusal(const PoolAlgorithm& a, const PoolGeometry& g, DType dtype, PoolPass) {
  const char* reason = a.unsupported(g, dtype);
  return reason == nullptr ? "" : reason;
}

const ConvAlgorithm& choose_conv(Device device, const ConvGeometry& geometry, DType dtype, Direction direction) {
  const ConvAlgorithm* measured = tuned(device, geometry, dtype, direction);
  if (measured != nullptr && can(*measured, geometry, dtype, direction)) return *measured;
  if (device == Device::cuda) return choose_on_cuda(geometry, dtype, direction);
  const std::string_view winograd = "winograd";
  const std::string_view preferred = suits_winograd(geometry, dtype, direction)  ? winograd
                                     : on_cpu::suits_im2col(geometry, direction) ? "im2col"
                                                                                 : "direct";
  const auto& table = conv_algorithms(device);
  for (const ConvAlgorithm* algorithm : table)
    if (algorithm->name == preferred && can(*algorithm, geometry, dtype, direction)) return *algorithm;
  for (const ConvAlgorithm* algorithm : table)
    if (algorithm->name != winograd && can(*algorithm, geometry, dtype, direction)) return *algorithm;
  return *table.back();
}

const PoolAlgorithm& choose_pool(Device device, const PoolGeometry& geometry, DType dtype, PoolPass pass) {
  const PoolAlgorithm* measured = tuned(device, geometry, dtype, pass);
  if (measured != nullptr && measured->unsupported(geometry, dtype) == nullptr) return *measured;
  const auto& table = pool_algorithms(device);
  for (const PoolAlgorithm* algorithm : table)
    if (algorithm->unsupported(geometry, dtype) == nullptr) return *algorithm;
  return *table.back();
}

}  // namespace convext
