// Who exists, and who is chosen. One line per algorithm and device, best first; the one that accepts everything last.
#include "algorithms.h"

#include <atomic>
#include <limits>
#include <string_view>

#include "cpu/conv_direct.h"
#include "cpu/conv_im2col.h"
#include "cpu/dilation.h"
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

// im2col or direct? A product of matrices needs outputs to share what was unfolded for it, and direct, which unfolds
// nothing, to fill its vectors with. So many outputs are enough, of a group, for im2col to win: read off some 10000
// random layers (benchmarks/sweep.py), where it is off by 2% of the time, with AVX2 by 3%.
namespace on_cpu {

constexpr int64_t kFewPlaces = 64, kManyPlaces = 400;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

int64_t enough_outputs_contiguous(const ConvGeometry& g) {
  const int64_t inputs = g.group_inputs();
  const bool many = g.output_places() >= kManyPlaces;
  if (g.stride[2] > 2) return 8;  // direct has no vector code for rows with larger strides
  if (g.kernel[0] > 1) return inputs > 4 ? 12 : many ? 64 : 32;
  if (inputs > 16) return 20;
  if (inputs > 8) return many ? 32 : 20;
  if (inputs > 4) return many ? 96 : 48;
  return many ? 128 : 64;
}

int64_t enough_outputs_channels_last(const ConvGeometry& g) {
  const int64_t inputs = g.group_inputs(), places = g.output_places();
  if (places < kFewPlaces) return inputs > 4 ? 5 : inputs > 1 ? 10 : 96;
  if (places < kManyPlaces) return inputs > 16 ? 9 : inputs > 8 ? 14 : inputs > 4 ? 32 : 96;
  return inputs > 16 ? 14 : inputs > 8 ? 96 : inputs > 4 ? 128 : kNever;
}

bool forward_suits_im2col(const ConvGeometry& g) {
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs();
  const bool contiguous = g.layout == Layout::contiguous;
  if (inputs == 1 && g.groups > 1) return false;  // depthwise
  if (g.taps() == 1) return contiguous || outputs > 4 || (inputs > 4 && inputs <= 16);
  return outputs >= (contiguous ? enough_outputs_contiguous(g) : enough_outputs_channels_last(g));
}

// The gradient of the weight unfolds nothing: it takes vectors of channels, of whichever side has more, and turns
// planes for it.
bool weight_suits_im2col(const ConvGeometry& g) {
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs();
  const bool contiguous = g.layout == Layout::contiguous;
  if (cpu::active_isa() >= cpu::Isa::avx512 && cpu::weight_by_planes(g) && g.stride[1] == 1) return false;
  if (g.groups > 1) return inputs > (contiguous ? 16 : 8);
  return inputs > 8 || outputs > (inputs == 1 ? 8 : contiguous ? 16 : 1);
}

bool suits_im2col(const ConvGeometry& g, DType dtype, Direction direction) {
  switch (direction) {
    case Direction::forward: return cpu::im2col::forward_by_col2im(g, dtype) || forward_suits_im2col(g);
    case Direction::backward_input: {  // forward convolutions of the output gradient, or col2im
      const ConvGeometry gradient = cpu::gradient_geometry(g);
      return cpu::im2col::col2im_pays(gradient, dtype) || forward_suits_im2col(cpu::StridePhases(gradient).largest());
    }
    default: return weight_suits_im2col(g);
  }
}

}  // namespace on_cpu

constexpr double kSplitPays = 1.3;  // products, as many fewer winograd must take of a dilation

bool suits_winograd(const ConvGeometry& g, DType dtype, Direction direction) {
  if (g.winograd == WinogradMode::off) return false;
  const double gain = cpu::winograd_gain(g, dtype, direction);
  if (gain <= cpu::kWinogradPays || direction == Direction::backward_weight) return gain > cpu::kWinogradPays;
  // col2im leaves out zeros, which winograd cannot.
  const bool forward = direction == Direction::forward;
  const ConvGeometry gradient = forward ? cpu::im2col::reversed(g) : cpu::gradient_geometry(g);
  if (!(forward ? cpu::im2col::forward_by_col2im(g, dtype) : cpu::im2col::col2im_pays(gradient, dtype))) return true;
  const double excess = cpu::StridePhases(gradient).excess();
  if (cpu::dilated(g)) return cpu::winograd_saving(g, direction) > kSplitPays * excess;
  return gain > cpu::kWinogradPays * excess;
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
  const std::string_view preferred = suits_winograd(geometry, dtype, direction)         ? winograd
                                     : on_cpu::suits_im2col(geometry, dtype, direction) ? "im2col"
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
