// What the driver of im2col's gradient of the weight and its kernels share.
#pragma once
#include "conv_direct.h"
#include "dtype.h"

namespace convext::cpu::im2col {

// One operand is read as rows, element by element, through every tap; the other as lanes, vector by vector. `view` is
// the convolution whose input the rows come from, and whose output the lanes.
struct WeightPlan {
  ConvGeometry view;
  bool turned;          // rows come from the gradient of the output, lanes from the input
  bool interleaved;     // channels_last: the copy keeps channels side by side, axes are as in memory
  bool lanes_in_place;  // channels_last: lanes are not copied
  AxisLayout axis[kMaxSpatial];
  int64_t plane;                  // elements of a channel in the copy
  int64_t images, rows, columns;  // places of a block: so many images, output rows, columns
  int64_t copied;                 // bands of rows copied together
  int64_t row_bands, column_bands, blocks;
  int64_t parts;                        // the sum over all blocks is cut into so many
  int64_t channels, channel_blocks;     // of the rows' operand, in a task
  int64_t lanes, lane_blocks, width;    // of the lanes' operand, in a task; of one panel
  int64_t tasks;                        // in a part
  int64_t offsets, tile, panels, sums;  // elements
};

template <typename T>
struct WeightThread {
  int64_t* offsets;
  Accumulate<T>*tile, *panels;
};

template <typename T>
struct WeightKernels {
  using A = Accumulate<T>;
  WeightPlan (*plan)(const ConvGeometry& g, int64_t wanted_tasks);
  void (*sum)(const ConvArguments& args, const WeightPlan& plan, int64_t task, int64_t part, const WeightThread<T>& own,
              A* sums);
  // Adds up the sums of all parts, `step` elements apart, and writes them to the weight's gradient.
  void (*write)(const ConvArguments& args, const WeightPlan& plan, int64_t task, A* sums, int64_t step);
};

}  // namespace convext::cpu::im2col
