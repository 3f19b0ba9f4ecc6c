// The index arithmetic of implicit_gemm's Hopper variant: what a tile's copies ask for, where products find it in
// shared memory, and where results go. Kernels and the tests on the CPU (tests/emulator/check_hopper.cpp) share it.
//
// A copy brings rows of kChunk = 64 values, 128 bytes. Two kinds of product:
//
//   pixels   y[pixel, k]   = sum over tap, c of  x[corner(pixel) + offset(tap), c] * w[k, tap, c]     K-major both
//   weights  dw[k, tap c]  = sum over pixel  of  dy[pixel, k] * x[corner(pixel) + offset(tap), c]     MN-major both
//
// The gradient of the input at stride 1 is of the first kind: a convolution of dy with the weight's channels exchanged
// and its taps reversed.
#pragma once
#include "conv_implicit_gemm.cuh"
#include "hopper.cuh"
#include "tensor_map.cuh"

namespace convext::cuda {

constexpr int kChunk = kRowBytes / 2;        // values of a row
constexpr int kSteps = kChunk / kStepDepth;  // wgmmas of a stage, one after the other
constexpr int kConsumers = 2;                // warpgroups that multiply; one more warp copies
constexpr int kHopperThreads = kConsumers * kWarpgroup + 32;
constexpr int kMaxStageRoom = 200 << 10;    // of a multiprocessor's 227 kB of shared memory
constexpr int kLeastChannels = kChunk / 2;  // with fewer, most of a copy's rows would be zeros

// Of an H100 or H200: how sums are cut depends on it, and so it must not vary. Tests make it small.
#if !defined(CONVEXT_HOPPER_MULTIPROCESSORS)
#define CONVEXT_HOPPER_MULTIPROCESSORS 132
#endif
constexpr int kMultiprocessors = CONVEXT_HOPPER_MULTIPROCESSORS;

// The weight in the order that products read it in: rows (k, or for the gradient of the input g c), then taps as they
// are met, then what is summed over (c, or k of the group).
struct WeightOrder {
  Divide group_rows;
  int group_stride, row_stride, depth_stride, taps, depth, rows;
  bool flip;

  WeightOrder(const ConvGeometry& g, Direction direction)
      : group_stride(int(g.group_outputs() * g.group_inputs() * g.taps())), taps(int(g.taps())) {
    const bool input = direction == Direction::backward_input;
    const int whole = int(g.group_inputs() * g.taps());
    group_rows = Divide(input ? g.group_inputs() : g.group_outputs());
    row_stride = input ? taps : whole, depth_stride = input ? whole : taps;
    depth = int(input ? g.group_outputs() : g.group_inputs());
    rows = int(input ? g.in_channels : g.out_channels);
    flip = g.flip_kernel != input;
  }
  // Where the weight (k, c, t r s) of a row and a value summed over lies for tap 0 ..
  __device__ __forceinline__ int base(int row, int d) const {
    const int group = split(row, group_rows);
    return group * group_stride + row * row_stride + d * depth_stride;
  }
  // .. and how far on for another.
  __device__ __forceinline__ int tap_offset(int tap) const { return flip ? taps - 1 - tap : tap; }
};

// The convolution that the gradient of the input is, at stride 1.
inline ConvGeometry input_gradient_as_forward(const ConvGeometry& g) {
  ConvGeometry f = g;
  f.in_channels = g.out_channels, f.out_channels = g.in_channels;
  f.padding_mode = PaddingMode::zeros;
  for (int i = 0; i < kMaxSpatial; ++i) {
    const int64_t reach = (g.kernel[i] - 1) * g.dilation[i];
    f.input[i] = g.output[i], f.output[i] = g.input[i];
    f.pad_before[i] = reach - g.pad_before[i], f.pad_after[i] = reach - g.pad_after[i];
    f.stride[i] = 1;
  }
  return f;
}

// Whether geometry and dtype suit. Groups must not meet in a row of a copy that is summed over.
inline bool hopper_fits(const ConvGeometry& g, DType dtype, Direction direction) {
  if (dtype != DType::float16 && dtype != DType::bfloat16) return false;
  if (g.layout != Layout::channels_last || (g.padded() && g.padding_mode != PaddingMode::zeros)) return false;
  if (too_large(g) != nullptr || g.batch == 0 || g.input_places() == 0 || g.output_places() == 0) return false;
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs();
  if (inputs % 8 != 0 || outputs % 8 != 0 || inputs < kLeastChannels || outputs < kLeastChannels) return false;
  if (direction == Direction::backward_weight) return g.batch * g.output_places() <= kMaxElements && im2col_fits(g);
  const bool forward = direction == Direction::forward;
  if (g.groups > 1 && (forward ? inputs : outputs) % kChunk != 0) return false;
  if (!forward && (g.stride[0] != 1 || g.stride[1] != 1 || g.stride[2] != 1)) return false;
  return im2col_fits(forward ? g : input_gradient_as_forward(g));
}

// Tiles of kPixels pixels and kOutputs output channels, of a forward convolution. A stage holds kPixels rows of x, then
// kOutputs rows of the weight.
template <int kPixels_, int kOutputs_>
struct PixelTiles {
  static constexpr int kPixels = kPixels_, kOutputs = kOutputs_;
  // Of a multiprocessor: of two, one stores while the other multiplies.
  static constexpr int kBlocks = kPixels <= 128 ? 2 : 1;
  static constexpr int kRowBlocks = kPixels / (64 * kConsumers);  // of 64 pixels, of each consumer
  static constexpr int kInputBytes = kPixels * kRowBytes, kStageBytes = kInputBytes + kOutputs * kRowBytes;
  static constexpr int kStages = kMaxStageRoom / kBlocks / kStageBytes;
  static_assert(kPixels % (64 * kConsumers) == 0 && kPixels <= 256, "whole blocks of 64 rows; a copy's limit");
  static_assert(kOutputs == 64 || kOutputs == 128, "the wgmmas there are, and groups of four column blocks");
  static_assert(kInputBytes % kAtomBytes == 0 && kStageBytes % kAtomBytes == 0, "tiles start at atoms");
  static_assert(kStages >= 3, "one being multiplied, one being released, one under way");

  CONVEXT_HD static int first_pixel(int consumer, int block) { return (consumer * kRowBlocks + block) * 64; }
  CONVEXT_HD static uint64_t input_descriptor(uint32_t stage, int consumer, int block, int k) {
    return k_major_descriptor(stage + first_pixel(consumer, block) * kRowBytes, k);
  }
  CONVEXT_HD static uint64_t weight_descriptor(uint32_t stage, int k) {
    return k_major_descriptor(stage + kInputBytes, k);
  }
};

struct PixelTile {
  int pixel, output, group;  // the first; outputs within the group
};
struct ChunkOfTap {
  int chunk, tap;
};

struct PixelPlan {
  Corners corners;
  Divide by_output_tiles, by_groups, by_chunks;
  int pixels, outputs, channels, all_outputs, tiles, steps, tile_pixels, tile_outputs;

  PixelPlan(const ConvGeometry& f, int64_t images, int pixels_of_tile, int outputs_of_tile)
      : corners(f),
        by_output_tiles(ceil_div(f.group_outputs(), outputs_of_tile)),
        by_groups(f.groups),
        by_chunks(ceil_div(f.group_inputs(), kChunk)),
        pixels(int(images * f.output_places())),
        outputs(int(f.group_outputs())),
        channels(int(f.group_inputs())),
        all_outputs(int(f.out_channels)),
        steps(int(f.taps()) * by_chunks.divisor),
        tile_pixels(pixels_of_tile),
        tile_outputs(outputs_of_tile) {
    tiles = int(ceil_div(pixels, tile_pixels)) * by_output_tiles.divisor * by_groups.divisor;
  }
  // Output tiles follow each other, so that blocks that run together read the same pixels.
  __device__ __forceinline__ PixelTile tile(int i) const {
    int group = split(i, by_output_tiles);
    const int pixel = split(group, by_groups);
    return {pixel * tile_pixels, i * tile_outputs, group};
  }
  __device__ __forceinline__ ChunkOfTap step(int i) const {
    const int tap = split(i, by_chunks);
    return {i, tap};
  }
  // Where output 8 `block` of a tile and a pixel of it goes, or -1 if there is none.
  __device__ __forceinline__ int64_t position(const PixelTile& tile, int pixel, int block) const {
    const int output = tile.output + block * 8;
    if (tile.pixel + pixel >= pixels || output >= outputs) return -1;
    return int64_t(tile.pixel + pixel) * all_outputs + tile.group * outputs + output;
  }
};

// Tiles of 64 kRows output channels and kBoxes boxes, a box being 64 channels of a tap, of the gradient of the weight.
// A stage holds 64 pixels: tiles of dy (a row a pixel), then boxes. Consumers share the channels of dy, or the boxes
// where there are 64 channels only.
template <int kRows_, int kBoxes_>
struct WeightTiles {
  static constexpr int kRows = kRows_, kBoxes = kBoxes_;
  static constexpr int kTileBytes = kChunk * kRowBytes;
  static constexpr int kStageBytes = (kRows + kBoxes) * kTileBytes, kStages = kMaxStageRoom / kStageBytes;
  static constexpr int kOwnBoxes = kRows == kConsumers ? kBoxes : kBoxes / kConsumers;  // of each consumer
  static constexpr int kWide = kOwnBoxes == 1 ? 1 : 2;                                  // boxes of a wgmma
  static constexpr int kProducts = kOwnBoxes / kWide, kColumns = kWide * kChunk;
  static_assert(kRows == 1 || kRows == kConsumers, "a block of 64 rows for all or for each");
  static_assert(kOwnBoxes >= 1 && kOwnBoxes % kWide == 0 && kStages >= 3 && kTileBytes % kAtomBytes == 0, "");

  CONVEXT_HD static int row_block(int consumer) { return kRows == 1 ? 0 : consumer; }
  CONVEXT_HD static int first_box(int consumer, int product) {
    return (kRows == 1 ? consumer * kOwnBoxes : 0) + product * kWide;
  }
  CONVEXT_HD static uint64_t gradient_descriptor(uint32_t stage, int consumer, int k) {
    return mn_major_descriptor(stage + row_block(consumer) * kTileBytes, k, kTileBytes);
  }
  CONVEXT_HD static uint64_t input_descriptor(uint32_t stage, int consumer, int product, int k) {
    return mn_major_descriptor(stage + (kRows + first_box(consumer, product)) * kTileBytes, k, kTileBytes);
  }
};

// Blocks of 64 output channels, and boxes, of a tile that suits.
inline int weight_tile_rows(const ConvGeometry& g) { return g.group_outputs() <= kChunk ? 1 : 2; }
inline int weight_tile_boxes(const ConvGeometry& g) {
  return g.taps() * ceil_div(g.group_inputs(), kChunk) <= 2 ? 2 : 4;
}

struct WeightTile {
  int part, group, output, box, first, last;  // outputs within the group; steps of 64 pixels
};

struct WeightPlan {
  Corners corners;
  Divide by_row_tiles, by_box_tiles, by_groups, by_chunks;
  int outputs, channels, boxes, row_length, elements, steps, part_steps, parts, tile_rows, tile_boxes;

  WeightPlan(const ConvGeometry& g, int rows, int boxes_of_tile)
      : corners(g),
        by_groups(g.groups),
        by_chunks(ceil_div(g.group_inputs(), kChunk)),
        outputs(int(g.group_outputs())),
        channels(int(g.group_inputs())),
        boxes(int(g.taps()) * by_chunks.divisor),
        row_length(int(g.taps() * g.group_inputs())),
        elements(int(g.weight_elements())),
        steps(int(ceil_div(g.batch * g.output_places(), kChunk))),
        tile_rows(rows),
        tile_boxes(boxes_of_tile) {
    by_row_tiles = Divide(ceil_div(outputs, tile_rows * kChunk));
    by_box_tiles = Divide(ceil_div(boxes, tile_boxes));
    choose_parts();
  }
  int tiles() const { return by_row_tiles.divisor * by_box_tiles.divisor * by_groups.divisor; }

  __device__ __forceinline__ WeightTile tile(int i) const {
    int box = split(i, by_row_tiles), group = split(box, by_box_tiles);
    const int part = split(group, by_groups), first = part * part_steps;
    const int last = first + part_steps < steps ? first + part_steps : steps;
    return {part, group, i * tile_rows * kChunk, box * tile_boxes, first, last};
  }
  // Channels (as a chunk) and tap of a box; past the last, its like, whose results go nowhere.
  __device__ __forceinline__ ChunkOfTap box(int i) const {
    int chunk = i < boxes ? i : boxes - 1;
    const int tap = split(chunk, by_chunks);
    return {chunk, tap};
  }
  // Where in the parts (part, k, tap c) a row and an even column of a tile's box go, or -1 if there is none.
  __device__ __forceinline__ int64_t position(const WeightTile& tile, int row, int box_of_tile, int column) const {
    const ChunkOfTap at = box(tile.box + box_of_tile);
    const int c = at.chunk * kChunk + column;
    if (tile.output + row >= outputs || tile.box + box_of_tile >= boxes || c >= channels) return -1;
    return int64_t(tile.part) * elements + int64_t(tile.group * outputs + tile.output + row) * row_length +
           at.tap * channels + c;
  }

 private:
  // Fewer parts are less to add, more fill the multiprocessors: the number for which the rounds of blocks take the
  // least time, in steps; writing and adding up a round's parts costs about as much as kRoundSteps.
  void choose_parts() {
    constexpr int64_t kRoundSteps = 16, kMostBytes = 64 << 20, kMostParts = kMultiprocessors;
    int64_t best = 0;
    parts = 1;
    for (int64_t some = 1; some <= kMostParts && some <= steps; ++some) {
      if (some > 1 && some * elements * 4 > kMostBytes) break;
      const int64_t cost = ceil_div(tiles() * some, kMultiprocessors) * (ceil_div(steps, some) + kRoundSteps);
      if (some == 1 || cost < best) best = cost, parts = int(some);
    }
    part_steps = int(ceil_div(steps, parts));
    parts = int(ceil_div(steps, part_steps));  // none is empty
  }
};

}  // namespace convext::cuda
