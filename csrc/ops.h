// What ops.cpp and bindings.cpp share: from torch's words to the kernels'.
#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>

#include "algorithms.h"
#include "geometry_checks.h"

namespace convext {

Device device_of(const at::Device& device, const char* op);
DType dtype_of(at::ScalarType type, const char* op);

// What an `algorithm` argument says: a name, and after a colon, if there is one, the Winograd mode of this call
// ("auto:off", "winograd:fast"). Raises ValueError for an unknown mode. "^T" at the end, which functions of transposed
// convolutions add to a name: the layer's own pass is the gradient of the input, so that one may not be left to "auto".
struct Asked {
  std::string_view name;
  WinogradMode winograd;
  bool transposed = false;
};
constexpr std::string_view kTransposed = "^T";
Asked parse_algorithm(std::string_view algorithm);
const char* name_of(WinogradMode mode);
WinogradMode parse_winograd_mode(std::string_view name);

// Whether float32 may be multiplied as TF32: on a GPU, where torch's flag for convolutions says so.
bool allows_tf32(Device device, DType dtype);

// A named algorithm, or the one "auto" stands for. Raises ValueError for an unknown name and NotImplementedError, with
// the algorithm's own reason, for a call it cannot do.
const ConvAlgorithm& resolve_conv(Device device, const Asked& asked, const ConvGeometry& geometry, DType dtype,
                                  Direction direction);
const PoolAlgorithm& resolve_pool(Device device, std::string_view name, const PoolGeometry& geometry, DType dtype,
                                  PoolPass pass);

// The gradient of max_unpool's input, on the CPU: grad_output at the indices.
at::Tensor max_unpool_gradient(const at::Tensor& grad_output, const at::Tensor& indices);

// For tests: while on, outputs arrive at the kernels full of NaN and workspaces full of 0xA5.
void set_poison(bool on);

}  // namespace convext
