// What the driver of the direct convolution (conv_direct.cpp) and its kernels (conv_direct_*.inl) share: how the work
// is cut into tasks. A plan depends on the geometry and the instruction set only.
#pragma once
#include <utility>

#include "../algorithms.h"
#include "finish.h"
#include "isa.h"

namespace convext::cpu {

// How a tile stores what one axis of a band of outputs sees. Output j sees, through tap i, slot j + (i / period) shift
// of plane i % period: taps whose places differ by a multiple of the stride share a plane. period = number of taps
// and shift = 0 gives every tap a plane of its own, which is smaller where the dilation is large.
struct AxisLayout {
  int64_t period = 1, shift = 0, planes = 1, length = 1;
};

struct DirectPlan {
  int64_t rows = 1, columns = 1;          // output places of a task
  int64_t part = 1;                       // columns of a filled tile, where it has fewer than the task
  int64_t channels = 1;                   // output channels of a task (of each of its groups)
  int64_t groups = 1;                     // groups of a task
  int64_t reduce = 1;                     // channels summed over per filled tile
  int64_t taps[kMaxSpatial] = {1, 1, 1};  // taps per filled tile
  AxisLayout axis[kMaxSpatial];
  int64_t plane = 1;       // elements of the tile per channel
  int64_t sum_stride = 1;  // accumulators per output channel
  int64_t tap_blocks[kMaxSpatial] = {1, 1, 1};
  int64_t depths = 1, row_bands = 1, column_bands = 1, channel_blocks = 1, reduce_blocks = 1;
  bool at_once = false;   // sums go straight to the output
  bool prefetch = false;  // the source is far: ask for a tile's part of it in time
  int64_t tasks = 0, packs = 0;
};

// pack: tasks that come before all others, for kernels that pack the weight into a workspace.
struct DirectKernel {
  DirectPlan (*plan)(const ConvGeometry& geometry) = nullptr;
  void (*run)(const ConvArguments& args, const DirectPlan& plan, int64_t task) = nullptr;
  void (*pack)(const ConvArguments& args, const DirectPlan& plan, int64_t task) = nullptr;
  int64_t (*workspace_bytes)(const ConvGeometry& geometry) = nullptr;
};

// The gradient of the input of strided depthwise layers. Contiguous, with a stride of 2: rows of output gradients with
// zeros on both sides, `front` of them before, and the columns that a row of the input has of each phase.
constexpr int64_t kStridedTaps = 256;          // of all outputs of a group, at most
constexpr int64_t kStridedBytes = 512 * 1024;  // of a plane's rows, about the second-level cache
struct StridedRows {
  int64_t front, columns, pitch;

  explicit StridedRows(const ConvGeometry& g) {
    front = ceil_div(g.kernel[2] / 2, kWidestVector) * kWidestVector;
    columns = (g.input[2] - 1 + g.pad_before[2]) / 2 + 1;
    const int64_t most = columns > g.output[2] ? columns : g.output[2];
    pitch = front + (ceil_div(most, kWidestVector) + 3) * kWidestVector;
  }
};
// One image of some channels of a depthwise layer, channels_last: what planes that are turned come down to.
inline ConvGeometry turned_channels(const ConvGeometry& g, int64_t channels) {
  ConvGeometry some = g;
  some.layout = Layout::channels_last;
  some.batch = 1;
  some.groups = some.in_channels = some.out_channels = channels;
  return some;
}
// Narrow planes are turned: places that a vector of channels has in all, of dy, of dx twice and of the weight.
constexpr int64_t kTurnedStrided = 1800;  // at most
inline int64_t turned_strided_places(const ConvGeometry& g) {
  return g.output_places() + 2 * (ceil_div(g.input_places(), 4) * 4) + g.taps();
}
bool strided_input_fits(const ConvGeometry& geometry, DType dtype);
int64_t strided_input_bytes(const ConvGeometry& geometry, DType dtype);
void run_strided_input(const ConvArguments& args);

// Whether conv_direct_plane_weight.inl makes the gradient of the weight, where it takes the stride. Several inputs:
// rows that fill vectors, and that a band has enough of.
constexpr int kWeightPlaneTaps = 3;
constexpr int64_t kWeightPlaneInputs = 4;  // of a group, at most
constexpr int64_t kWeightPlaneNarrow = 12, kWeightPlaneWide = 64;
inline bool weight_by_planes(const ConvGeometry& g) {
  const bool planes = g.layout == Layout::contiguous || (g.in_channels == 1 && g.out_channels == 1);
  const bool several = g.group_inputs() <= kWeightPlaneInputs && g.stride[2] == 1 && g.input[2] >= kWeightPlaneNarrow &&
                       g.input[2] <= kWeightPlaneWide;
  return planes && (g.group_inputs() == 1 || several) && g.padding_mode == PaddingMode::zeros && g.kernel[0] == 1 &&
         g.kernel[1] == kWeightPlaneTaps && g.kernel[2] == kWeightPlaneTaps && g.input[0] == 1 && g.output[0] == 1 &&
         g.dilation[1] == 1 && g.dilation[2] == 1 && g.stride[1] == g.stride[2] && g.stride[1] <= 2;
}

// The fast path of the forward pass that suits the geometry; without functions where none does.
DirectKernel direct_forward(const ConvGeometry& geometry, DType dtype);
// And that of conv_direct_planes.inl, which comes after it.
DirectKernel direct_planes(const ConvGeometry& geometry, DType dtype);
// The same for the gradient of the weight.
DirectKernel direct_backward_weight(const ConvGeometry& geometry, DType dtype);

}  // namespace convext::cpu
