// The contract of an algorithm, and the tables of who exists.
//
// An algorithm is a name, a predicate and its kernels. `unsupported` answers with a reason or nullptr; supported means
// correct, never fast. Kernels get raw pointers, a geometry and a workspace, and know nothing of torch. What an
// algorithm must hold to:
//   * every element of its output is written (it arrives poisoned in tests), nothing else is;
//   * the workspace has exactly workspace_bytes(...) bytes, 64-byte aligned, with arbitrary contents;
//   * bits do not depend on the number of threads nor on what else is in the batch;
//   * float16 and bfloat16 are stored as such and accumulated in float32;
//   * batch, channels and places may be zero only as far as ops.cpp lets them: it never calls a kernel for an empty
//     output, and fills the gradient with zeros itself where the sum is empty.
// To add one: write its file, declare it below, add one line to its table in algorithms.cpp.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "epilogue.h"
#include "geometry.h"

namespace convext {

enum class Device { cpu, cuda };

// forward:          input, weight, bias (may be null) -> output
// backward_input:   grad_output, weight -> output, the gradient of the input (shaped as the input)
// backward_weight:  grad_output, input -> output, the gradient of the weight (shaped as the weight)
struct ConvArguments {
  ConvGeometry geometry;
  DType dtype;
  const void* input = nullptr;
  const void* weight = nullptr;  // k, c/g, t r s; null where packed_weight is given
  // The weight, or its gradient, is k, t r s, c/g: of algorithms that pack on the way, or that write it so.
  bool weight_channels_last = false;
  const void* packed_weight = nullptr;  // given to algorithms that pack, in the directions that they pack for
  const void* bias = nullptr;
  const void* grad_output = nullptr;
  void* output = nullptr;
  void* workspace = nullptr;
  bool workspace_packed = false;  // direct: a call of this geometry and weight has left its packed weight there
  void* stream = nullptr;         // cudaStream_t; unused on the CPU
  Epilogue epilogue = {};         // forward on the CPU: what comes between the sum and the store

  // Where the gradient of the weight of one pair of channels lies, k over all groups, c within the group: tap i at
  // first + i * step.
  struct Taps {
    int64_t first, step;
  };
  Taps gradient_taps(int64_t k, int64_t c) const {
    const int64_t taps = geometry.taps(), inputs = geometry.group_inputs();
    const int64_t step = weight_channels_last ? inputs : 1;
    const int64_t first = k * inputs * taps + c * (weight_channels_last ? 1 : taps);
    return geometry.flip_kernel ? Taps{first + (taps - 1) * step, -step} : Taps{first, step};
  }
};

// A weight in the order an algorithm reads it in, or transformed. It is made by `pack` and kept while the weight is
// unchanged (packed_weights.h). Two calls may share it if weight, groups, flip_kernel, layout, dtype, direction,
// instruction set and all of Packing are equal.
struct Packing {
  int64_t bytes = 0;        // 0: nothing to pack
  int64_t arrangement = 0;  // what else its order depends on
};
// The weight to pack: k, c/g, t r s, or with channels last k, t r s, c/g.
struct PackArguments {
  ConvGeometry geometry;
  DType dtype;
  Direction direction;
  const void* weight;
  bool channels_last;
  void* packed;  // 64-byte aligned
};

struct ConvAlgorithm {
  using Kernel = void (*)(const ConvArguments&);
  const char* name;
  const char* (*unsupported)(const ConvGeometry&, DType, Direction);
  int64_t (*workspace_bytes)(const ConvGeometry&, DType, Direction);  // on the CPU: for max_threads() threads
  // A gradient may be null: then `unsupported` says so. A call that names the algorithm leaves to "auto" what gradients
  // it cannot do of a convolution that it can.
  Kernel forward, backward_input, backward_weight;
  Packing (*packing)(const ConvGeometry&, DType, Direction) = nullptr;
  void (*pack)(const PackArguments&) = nullptr;
  bool finishes = false;  // forward applies the epilogue itself; else it is applied to the whole output afterwards
  // Whether a weight that serves one call is better not packed beforehand: the kernel is then given it as it lies.
  bool (*packs_on_the_way)(const ConvGeometry&, DType, Direction) = nullptr;
  bool writes_channels_last = false;  // the gradient of the weight, where that is wanted; else it is copied

  Kernel kernel(Direction direction) const {
    return direction == Direction::forward          ? forward
           : direction == Direction::backward_input ? backward_input
                                                    : backward_weight;
  }
};

// max_forward:   input -> output, and places (may be null: not wanted)
// max_backward:  grad_output, places -> output, the gradient of the input; a place outside the input receives nothing
// max_indices:   places -> output: int64, the winner's flat index in its input plane (d h w), as torch returns it
// avg_forward:   input -> output
// avg_backward:  grad_output -> output, the gradient of the input
// Max pooling follows torch on NaN and ties: the first greatest wins, the last NaN wins over everything. A window
// that lies wholly outside the input gives -infinity (the lowest integer), place 0.
struct PoolArguments {
  PoolGeometry geometry;
  DType dtype;
  const void* input = nullptr;
  const void* grad_output = nullptr;
  const void* places = nullptr;  // uint8 or int32, see PoolGeometry::byte_places
  void* places_out = nullptr;
  void* output = nullptr;
  void* stream = nullptr;
};

enum class PoolPass { max_forward, max_backward, max_indices, avg_forward, avg_backward };

struct PoolAlgorithm {
  const char* name;
  const char* (*unsupported)(const PoolGeometry&, DType);
  void (*max_forward)(const PoolArguments&);
  void (*max_backward)(const PoolArguments&);
  void (*max_indices)(const PoolArguments&);
  void (*avg_forward)(const PoolArguments&);
  void (*avg_backward)(const PoolArguments&);
};

// The ordered tables, best first; naive, which accepts everything, closes each.
const std::vector<const ConvAlgorithm*>& conv_algorithms(Device device);
const std::vector<const PoolAlgorithm*>& pool_algorithms(Device device);

// What set_winograd chose for the process: the mode of calls that name none themselves.
WinogradMode winograd_mode();
void set_winograd_mode(WinogradMode mode);

// Why an algorithm cannot do a call: its own reason, or that its workspace is over the limit (tuning.h). Empty where it
// can.
std::string refusal(const ConvAlgorithm& algorithm, const ConvGeometry& geometry, DType dtype, Direction direction);
std::string refusal(const PoolAlgorithm& algorithm, const PoolGeometry& geometry, DType dtype, PoolPass pass);

// What "auto" means. Depends on the geometry of one image only: never on batch size, threads or a clock. Choices
// measured at the user's wish (tuning.h) go before the rules.
const ConvAlgorithm& choose_conv(Device device, const ConvGeometry& geometry, DType dtype, Direction direction);
const PoolAlgorithm& choose_pool(Device device, const PoolGeometry& geometry, DType dtype, PoolPass pass);

namespace cpu {
extern const ConvAlgorithm conv_naive, conv_im2col, conv_direct, conv_winograd;
extern const PoolAlgorithm pool_naive, pool_direct;
// How many times as fast as a plain product winograd is expected to be; 0 where it cannot do the call. A little more
// than one is none: kWinogradPays is what makes it the choice.
constexpr double kWinogradPays = 1.15;
double winograd_gain(const ConvGeometry& geometry, DType dtype, Direction direction);
// How many times fewer products it takes, padding and what tiles compute in vain counted, without a stride; float32.
double winograd_saving(const ConvGeometry& geometry, Direction direction);
// grad_output (shaped as the output) summed over images and places, per output channel, in a fixed order.
void conv_backward_bias(const ConvArguments& args);
}  // namespace cpu

namespace cuda {
extern const ConvAlgorithm conv_naive, conv_im2col, conv_direct, conv_winograd, conv_implicit_gemm;
extern const PoolAlgorithm pool_naive, pool_direct;
}  // namespace cuda

}  // namespace convext
