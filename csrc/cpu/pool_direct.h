// How pool_direct cuts its work: sizes of buffers, parts of the output, bands of the input; and its entries.
#pragma once
#include <cstdint>

#include "../algorithms.h"
#include "isa.h"
#include "parallel.h"

namespace convext::cpu {

constexpr int64_t kPoolRow = 4096;       // elements of the padded row: 16 kB of float, 32 kB of double
constexpr int64_t kPoolColumns = 512;    // output columns taken at once, at most
constexpr int64_t kPoolWide = 6;         // from this width and stride on, few windows to a row are reduced one by one
constexpr int64_t kPoolSlack = 32;       // two of the longest vectors, read or written past the end of a row
constexpr int64_t kPoolTaps = 5;         // runs joined at once, at most
constexpr int64_t kPoolPart = 16384;     // input elements of a task, about, where an image is cut
constexpr int64_t kPoolJoined = 4096;    // elements of rows joined along their windows: 16 kB of float
constexpr int64_t kPoolBatch = 1024;     // of them at once, if that is enough: reading and writing overlap
constexpr int64_t kPoolPlanes = 4;       // contiguous planes that a gradient takes at once
constexpr int64_t kPoolScatter = 16384;  // elements a gradient is added up in
constexpr int64_t kPoolWon = 16;         // channels whose sums lie side by side
constexpr int64_t kPoolWonPlanes = 8;    // contiguous planes whose outputs add in turns
constexpr int64_t kPoolEven = 512;       // places of rows that are taken as one, about
constexpr int64_t kPoolSpare = 2;        // rows of sums that rest before they are written out
constexpr int64_t kPoolOffsets = 1024;   // places of a window, at most, whose distances are looked up
constexpr int64_t kPoolRows = 6;         // as many rows of outputs at once
constexpr int64_t kPoolSparse = 8;       // places of a disjoint window from which on the gradient is mostly zeros
constexpr int64_t kPoolExpanded = 27;    // places of such a channels_last window, up to which all are written out
constexpr int64_t kPoolStreamed = 16;    // places of a channels_last window, from which it may be read as a stream
constexpr int64_t kPoolChannels = 1024;  // channels of such a window at once
constexpr int64_t kPoolLooking = 32;  // outputs in a row, from which on looking at 5x5 pays; at stride 2 half as many
constexpr int64_t kPoolSeen = 32;  // channels_last: places of a window, up to which the outputs that see one are listed
constexpr int64_t kPoolSeers = 16;  // channels_last: as many outputs are looked at for an input place, at most

// A task: rows ps of the outputs at depths os, of some channels of one image; for gradients, of the inputs.
struct Part {
  int64_t image;
  Range channels, os, ps;
};

// Output columns per chunk such that stride * pitch <= kPoolRow (see Columns); less than one if there is no room.
inline int64_t pool_row_columns(const PoolGeometry& g) {
  const int64_t stride = g.stride[2], reach = (g.kernel[2] - 1) * g.dilation[2];
  const int64_t room = kPoolRow / stride - reach / stride - (stride <= 2 ? kPoolSlack / 2 : 0);
  return room < kPoolColumns ? room : kPoolColumns;
}

// Of one size, without dilation, and with no window wholly outside the input.
inline bool plain_windows(const PoolGeometry& g) {
  if (g.adaptive) return false;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    if (g.dilation[axis] != 1 && g.kernel[axis] > 1) return false;
    if (g.place(axis, 0, g.kernel[axis] - 1) < 0 || g.place(axis, g.output[axis] - 1, 0) >= g.input[axis]) return false;
  }
  return true;
}
// The output columns whose windows lie inside the input.
inline Range inside_columns(const PoolGeometry& g) {
  const int64_t first = ceil_div(g.pad_before[2], g.stride[2]), room = g.input[2] + g.pad_before[2] - g.kernel[2];
  int64_t last = room < 0 ? 0 : room / g.stride[2] + 1;
  if (last > g.output[2]) last = g.output[2];
  return {first < g.output[2] ? first : g.output[2], last > first ? last : first < g.output[2] ? first : g.output[2]};
}
// Whether all outputs of an average have the same factor of the divisor along one axis, and along all.
inline bool uniform_axis(const PoolGeometry& g, int axis) {
  if (g.divisor_override != 0) return true;
  if (g.adaptive) return false;
  const int64_t end = g.place(axis, g.output[axis] - 1, g.kernel[axis] - 1);
  if (g.count_include_pad) return end < g.input[axis] + g.pad_after[axis];
  return g.place(axis, 0, 0) >= 0 && end < g.input[axis];
}
inline bool uniform_divisor(const PoolGeometry& g) {
  return uniform_axis(g, 0) && uniform_axis(g, 1) && uniform_axis(g, 2);
}

constexpr int64_t kPoolTurned = 8192;    // elements of rows of several planes, turned into places of lanes
constexpr int64_t kPoolTurnedRows = 12;  // of a window, up to which turning pays
constexpr int64_t kPoolSmall = 256;      // places of a plane too small for the kernels that go along its rows
constexpr int64_t kPoolStride = 3;       // from this stride on, windows are cut out of reduced rows one by one

// Wide windows that overlap little, few to a row: reduced one by one.
inline bool wide_windows(const PoolGeometry& g) {
  return g.dilation[2] == 1 && g.kernel[2] >= kPoolWide && g.kernel[2] >= g.output[2] && g.stride[2] >= kPoolWide;
}
// One window, which is the input.
inline bool over_all(const PoolGeometry& g) {
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if (g.output[axis] != 1 || g.kernel[axis] != g.input[axis] || g.pad_before[axis] != 0 ||
        (g.dilation[axis] != 1 && g.kernel[axis] > 1))
      return false;
  return !g.adaptive;
}
// Whether all windows lie inside the input.
inline bool inside_input(const PoolGeometry& g) {
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if (g.place(axis, 0, 0) < 0 || g.place(axis, g.output[axis] - 1, g.kernel[axis] - 1) >= g.input[axis]) return false;
  return true;
}
// Whether there is no dilation, and windows are wide or far enough apart to be cut out one by one.
inline bool boxes_pay(const PoolGeometry& g) {
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if (g.dilation[axis] != 1 && g.kernel[axis] > 1) return false;
  return wide_windows(g) || g.stride[2] >= kPoolStride;
}
// Whether no input place is seen by two outputs.
inline bool disjoint(const PoolGeometry& g) {
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if (g.dilation[axis] != 1 || g.stride[axis] < g.kernel[axis]) return false;
  return !g.adaptive;
}
// Boxes that are made with planes as lanes (pool_direct_boxes_lanes.inl): of few rows, and such that a window of
// `lanes` planes has room.
inline bool lanes_fit(const PoolGeometry& g, int lanes) {
  return g.channels >= lanes && g.kernel[0] * g.kernel[1] <= kPoolTurnedRows && g.window() * lanes <= kPoolTurned &&
         (g.adaptive || inside_input(g));
}
// Windows without gaps whose maxima pool_direct_boxes.cpp makes, and whose averages: those of unequal sizes, and wide
// ones.
inline bool max_boxes_fit(const PoolGeometry& g) {
  return g.adaptive || over_all(g) || (boxes_pay(g) && inside_input(g));
}
inline bool boxes_fit(const PoolGeometry& g) {
  return g.adaptive || over_all(g) || boxes_pay(g) || (disjoint(g) && g.input_places() <= kPoolSmall);
}
// channels_last windows so large that reading one a few channels at a time would jump through memory, and that share
// little: taken place by place (pool_direct_streams.inl).
inline bool streams_fit(const PoolGeometry& g) {
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if (!g.adaptive && g.stride[axis] * 2 < g.kernel[axis] && g.output[axis] > 1) return false;
  return g.window() >= kPoolStreamed && g.window() * g.channels >= kPoolPart;
}
// Channels of a task: one of a contiguous image; of channels_last all, or as many as streams take at once.
inline int64_t part_channels(const PoolGeometry& g) {
  if (g.layout == Layout::contiguous) return 1;
  return streams_fit(g) && g.channels > kPoolChannels ? kPoolChannels : g.channels;
}
// Disjoint windows so large that few places win: the gradient of a maximum is zeros and a number here and there.
inline bool sparse_winners(const PoolGeometry& g) {
  return disjoint(g) && inside_input(g) && g.window() >= kPoolSparse;
}

// How many output rows pool_direct_rows.inl makes at once; none where it does not apply.
inline int64_t rows_fit(const PoolGeometry& g) {
  const int64_t kernel = g.kernel[2], stride = g.stride[2], width = g.output[2];
  const bool taken = kernel == 3 ? stride <= 2 : (kernel == 2 && stride == 2) || (kernel == 5 && stride == 1);
  if (!taken || g.kernel[0] * g.kernel[1] > kPoolTaps) return 0;
  const Range inside = inside_columns(g);
  if (!plain_windows(g) || (g.input[2] != stride * width && inside.last - inside.first < kPoolSlack)) return 0;
  const int64_t most = kPoolJoined / (width * g.kernel[0]);
  if (most < 2 * g.kernel[1]) return 0;
  int64_t rows = g.kernel[1] > g.stride[1] ? 4 * g.kernel[1] : g.kernel[1];  // where they overlap, some are made twice
  if (rows < kPoolBatch / width) rows = kPoolBatch / width;
  if (g.kernel[0] > 1) rows = most;  // depths in long turns: each is a stream of its own
  return ((rows < most ? rows : most) - g.kernel[1]) / g.stride[1] + 1;
}

// A band of pool_direct_bands.inl whose columns are `inner` elements: how much of it there is, and how many output
// columns and rows it makes; none where the kernels do not apply.
constexpr int band_channels(int bytes) { return 64 / bytes; }
constexpr int64_t band_elements(int inner) { return inner == 1 ? 4096 : 16384; }
struct BandShape {
  int64_t outputs, output_rows;
};
inline BandShape band_of(const PoolGeometry& g, int inner) {
  const BandShape none = {0, 0};
  if (g.kernel[0] != 1 || !g.byte_places() || !plain_windows(g)) return none;
  const int64_t kernel = g.kernel[2], stride = g.stride[2], columns = band_elements(inner) / inner;
  const int64_t rows = (g.output[1] - 1) * g.stride[1] + g.kernel[1];  // all that are read
  const int64_t few = g.kernel[1] + (g.kernel[1] > 4 * g.stride[1] ? g.kernel[1] : 4 * g.stride[1]);
  int64_t outputs = (columns / (few < rows ? few : rows) / stride * stride - kernel) / stride + 1;
  if (outputs > g.output[2]) outputs = g.output[2];
  if (outputs > kPoolColumns) outputs = kPoolColumns;
  if (outputs < 1 || (outputs < g.output[2] && outputs * stride < kernel)) return none;
  const int64_t fitting = columns / (ceil_div((outputs - 1) * stride + kernel, stride) * stride);
  return {outputs, ((fitting < rows ? fitting : rows) - g.kernel[1]) / g.stride[1] + 1};
}

// Who makes a maximum. Wide windows that overlap little are nobody's but pool_direct_max.inl's, and so are
// channels_last windows that share too little for the copy to pay.
enum class MaxKernel { any, rows, bands, channel_bands };
inline MaxKernel choose_max_kernel(const PoolGeometry& g, int inner) {
  if (g.layout == Layout::channels_last) {
    const bool shared = g.stride[1] == 1 && g.stride[2] == 1 && g.kernel[1] * g.kernel[2] >= 9;
    return shared && band_of(g, inner).outputs > 0 ? MaxKernel::channel_bands : MaxKernel::any;
  }
  if (rows_fit(g) > 0) return MaxKernel::rows;
  return !wide_windows(g) && band_of(g, 1).outputs > 0 ? MaxKernel::bands : MaxKernel::any;
}

// Whether pool_direct_gather.inl applies.
inline bool gather_fits(const PoolGeometry& g) {
  const int64_t kernel = g.kernel[2], stride = g.stride[2];
  if (kernel == 3 ? stride > 2 : kernel != 5 || stride != 1) return false;
  return plain_windows(g) && g.byte_places() &&
         ceil_div(g.kernel[0], g.stride[0]) * ceil_div(g.kernel[1], g.stride[1]) <= kPoolRows;
}

// How pool_direct_scatter.inl holds what it adds to: `columns` of the input at once, in a buffer of `rows` rows of
// `width`; no columns where it does not apply.
struct ScatterShape {
  int64_t columns, rows, width;
};
inline ScatterShape scatter_of(const PoolGeometry& g, int lanes) {
  const ScatterShape none = {0, 0, 0};
  if (g.window() > kPoolOffsets) return none;
  const int64_t room = kPoolScatter / lanes;
  int64_t reach[kMaxSpatial], all[kMaxSpatial];  // of a window; of all of them and the input
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    reach[axis] = (g.kernel[axis] - 1) * g.dilation[axis];
    const int64_t end = g.place(axis, g.output[axis] - 1, g.kernel[axis] - 1) + 1;
    all[axis] = g.pad_before[axis] + (end > g.input[axis] ? end : g.input[axis]);
  }
  const int64_t some = 2 * (reach[1] + g.stride[1]), rows = some < all[1] ? some : all[1];
  if (rows > room) return none;
  if (rows * all[2] <= room) return {g.input[2], room / all[2] < all[1] ? room / all[2] : all[1], all[2]};
  const int64_t width = room / rows, columns = width - 2 * reach[2];
  return columns > reach[2] ? ScatterShape{columns, rows, width} : none;
}
// Whether pool_direct_winners.inl applies, and whether it pays: not where few outputs see a place and looking at all of
// them is faster, if rows are long enough.
inline bool winners_fit(const PoolGeometry& g) {
  return plain_windows(g) && g.byte_places() && g.kernel[0] == 1 && !disjoint(g) &&
         g.input_places() <= INT32_MAX / (2 * kPoolWonPlanes) &&
         (g.kernel[1] + kPoolSpare) * g.input[2] * kPoolWon <= kPoolScatter;
}
inline bool winners_pay(const PoolGeometry& g) {
  if (!winners_fit(g)) return false;
  if (g.layout == Layout::channels_last) return g.window() > kPoolSeers;
  return !gather_fits(g) || g.output[2] < (g.kernel[2] == 5 ? kPoolLooking : g.stride[2] == 2 ? kPoolLooking / 2 : 0);
}
// How many outputs see an input place, at most.
inline int64_t most_seers(const PoolGeometry& g) {
  int64_t seers = 1;
  for (int axis = 0; axis < kMaxSpatial; ++axis) seers *= ceil_div(g.kernel[axis], g.stride[axis]);
  return seers;
}
// Windows of two columns at stride 2, of which no two see the same place, and `lanes` outputs in a row whose windows
// show both: pool_direct_halves.inl.
inline bool halves_fit(const PoolGeometry& g, int lanes) {
  for (int axis = 0; axis < 2; ++axis)
    if (g.stride[axis] < g.kernel[axis]) return false;
  const int64_t whole = g.input[2] / 2 < g.output[2] ? g.input[2] / 2 : g.output[2];
  return g.kernel[2] == 2 && g.stride[2] == 2 && g.pad_before[2] == 0 && whole >= lanes && plain_windows(g);
}

using PoolPart = void (*)(const PoolArguments& args, const Part& part);
using PoolRow = void (*)(const PoolArguments& args, int64_t row);

// Cuts every image, that has `sizes` places, into parts: `channels` of them, and the outermost axis that has more than
// one row. A part reads about kPoolPart input elements, as far as one axis goes; how many there are depends on one
// image only.
inline void run_parts(const PoolArguments& args, int64_t channels, const int64_t* sizes, PoolPart run) {
  const PoolGeometry& g = args.geometry;
  const int axis = sizes[0] > 1 ? 0 : 1;
  const int64_t blocks = ceil_div(g.channels, channels), rows = sizes[axis];
  int64_t splits = g.input_places() * channels / kPoolPart;
  splits = splits < 1 ? 1 : splits < rows ? splits : rows;
  parallel_for(g.batch * blocks * splits, [&](int64_t task, int) {
    const int64_t split = task % splits, block = task / splits % blocks, first = block * channels;
    Part part = {task / splits / blocks, {first, 0}, {0, sizes[0]}, {0, sizes[1]}};
    part.channels.last = first + channels < g.channels ? first + channels : g.channels;
    // Not in one: GCC 12's sanitizer reports a division by zero that is none where what it assigns to is chosen.
    Range& some = axis == 0 ? part.os : part.ps;
    some = {rows * split / splits, rows * (split + 1) / splits};
    run(args, part);
  });
}

// Rows of input places of all channels: (n, d, h).
inline void run_rows(const PoolArguments& args, PoolRow run) {
  const PoolGeometry& g = args.geometry;
  parallel_for(g.batch * g.input[0] * g.input[1], [&](int64_t row, int) { run(args, row); });
}

void pool_boxes_max(const PoolArguments& args);
void pool_boxes_max_backward(const PoolArguments& args);
void pool_boxes_average(const PoolArguments& args);
void pool_boxes_average_backward(const PoolArguments& args);

void pool_direct_max(const PoolArguments& args);
void pool_direct_max_backward(const PoolArguments& args);
void pool_direct_indices(const PoolArguments& args);
void pool_direct_average(const PoolArguments& args);
void pool_direct_average_backward(const PoolArguments& args);
// Of channels_last images a part of the output, and of the gradient a row of input places: (n, d, h).
void pool_direct_average_part(const PoolArguments& args, const Part& part);
void pool_direct_average_backward_row(const PoolArguments& args, int64_t row);

}  // namespace convext::cpu
