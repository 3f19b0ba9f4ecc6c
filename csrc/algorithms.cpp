// Who exists, and who is chosen. One line per algorithm and device, best first; the one that accepts everything last.
#include "algorithms.h"

namespace convext {

const std::vector<const ConvAlgorithm*>& conv_algorithms(Device device) {
  static const std::vector<const ConvAlgorithm*> on_cpu = {
      &cpu::conv_im2col,
      &cpu::conv_direct,
      &cpu::conv_naive,
  };
  static const std::vector<const ConvAlgorithm*> on_cuda = {
#ifdef CONVEXT_WITH_CUDA
      &cuda::conv_im2col,
      &cuda::conv_direct,
      &cuda::conv_naive,
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

// A GEMM over unfolded places pays when a group has enough channels on both sides to fill its tiles; with fewer,
// the unfolding costs more than the product, and direct reads each place where it lies.
bool suits_gemm(const ConvGeometry& g) { return g.group_inputs() * g.taps() >= 16 && g.group_outputs() >= 8; }

bool is_named(const char* name, const char* wanted) { return std::string(name) == wanted; }

}  // namespace

const ConvAlgorithm& choose_conv(Device device, const ConvGeometry& geometry, DType dtype, Direction) {
  const char* preferred = suits_gemm(geometry) ? "im2col" : "direct";
  const auto& table = conv_algorithms(device);
  for (const ConvAlgorithm* algorithm : table)
    if (is_named(algorithm->name, preferred) && algorithm->unsupported(geometry, dtype) == nullptr) return *algorithm;
  for (const ConvAlgorithm* algorithm : table)
    if (algorithm->unsupported(geometry, dtype) == nullptr) return *algorithm;
  return *table.back();
}

const PoolAlgorithm& choose_pool(Device device, const PoolGeometry& geometry, DType dtype) {
  const auto& table = pool_algorithms(device);
  for (const PoolAlgorithm* algorithm : table)
    if (algorithm->unsupported(geometry, dtype) == nullptr) return *algorithm;
  return *table.back();
}

}  // namespace convext
