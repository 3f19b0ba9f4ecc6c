// How implicit_gemm cuts a call that makes places (outputs, or the gradient of the input) into launches, and its sums
// into segments: geometry only, on the host. conv_implicit_gemm.cu says why.
#pragma once
#include <numeric>
#include <vector>

#include "implicit_gemm.cuh"

namespace convext::cuda {

#if !defined(CONVEXT_IMPLICIT_GEMM_FOLD_BYTES)
#define CONVEXT_IMPLICIT_GEMM_FOLD_BYTES (64 << 20)
#endif
constexpr int64_t kFoldBytes = CONVEXT_IMPLICIT_GEMM_FOLD_BYTES;  // of padded gradients, unless one image has more
constexpr int64_t kMostSegments = 16, kMostPhases = 64;

// The places made that read along the same lines, through the same taps.
struct Phase {
  Lines lines;
  int64_t made_first[kMaxSpatial], made_step[kMaxSpatial], counts[kMaxSpatial];  // of the places made
  int64_t tap_first[kMaxSpatial], tap_step[kMaxSpatial], taps[kMaxSpatial];

  int64_t places() const { return counts[0] * counts[1] * counts[2]; }
  int64_t all_taps() const { return taps[0] * taps[1] * taps[2]; }
};

// Of the gradient of the input: the remainders of a place by the stride, along one axis.
inline int64_t remainders(const ConvGeometry& g, int axis) {
  return g.stride[axis] < g.input[axis] ? g.stride[axis] : g.input[axis];
}
inline int64_t phase_count(const ConvGeometry& g) { return remainders(g, 0) * remainders(g, 1) * remainders(g, 2); }

inline Phase forward_phase(const ConvGeometry& g) {
  Phase phase{forward_lines(g), {}, {1, 1, 1}, {}, {}, {1, 1, 1}, {}};
  for (int i = 0; i < kMaxSpatial; ++i) phase.counts[i] = g.output[i], phase.taps[i] = g.kernel[i];
  return phase;
}

// Place f + stride u is seen through the taps t with f + before - dilation t a multiple of the stride, by the output of
// that multiple: along lines, each tap a step back.
inline Phase backward_phase(const ConvGeometry& g, const int64_t* remainder) {
  Phase phase{};
  for (int i = 0; i < kMaxSpatial; ++i) {
    const int64_t stride = g.stride[i], at = remainder[i] + g.pad_before[i];
    const int64_t step = stride / std::gcd(stride, g.dilation[i]);
    int64_t first = 0;
    while (first < g.kernel[i] && first < step && (at - first * g.dilation[i]) % stride != 0) ++first;
    const bool any = first < g.kernel[i] && first < step;
    phase.taps[i] = any ? ceil_div(g.kernel[i] - first, step) : 0;
    phase.tap_first[i] = first, phase.tap_step[i] = phase.taps[i] > 1 ? step : 0;
    phase.made_first[i] = remainder[i], phase.made_step[i] = stride;
    phase.counts[i] = ceil_div(g.input[i] - remainder[i], stride);
    phase.lines.first[i] = any ? int((at - first * g.dilation[i]) / stride) : 0;
    phase.lines.step[i] = 1, phase.lines.tap_step[i] = -int(phase.tap_step[i] * g.dilation[i] / stride);
    phase.lines.size[i] = int(g.output[i]), phase.lines.edges[i] = Edges(g.output[i], PaddingMode::zeros);
    if (phase.counts[i] == 1) phase.made_step[i] = 0;
  }
  phase.lines.by_height = Divide(phase.counts[1]), phase.lines.by_width = Divide(phase.counts[2]);
  phase.lines.by_tap_height = Divide(phase.taps[1] > 0 ? phase.taps[1] : 1);
  phase.lines.by_tap_width = Divide(phase.taps[2] > 0 ? phase.taps[2] : 1);
  phase.lines.place_stride = output_strides(g).place;
  return phase;
}

// Whether padding shows places again, so that the gradient of the input is that of the padded input, folded.
inline bool folds(const ConvGeometry& g, Direction direction) {
  return direction == Direction::backward_input && g.padding_mode != PaddingMode::zeros && g.padded();
}
inline ConvGeometry padded_geometry(const ConvGeometry& g) {
  ConvGeometry padded = g;
  padded.padding_mode = PaddingMode::zeros;
  for (int i = 0; i < kMaxSpatial; ++i) {
    padded.input[i] += g.pad_before[i] + g.pad_after[i];
    padded.pad_before[i] = padded.pad_after[i] = 0;
  }
  return padded;
}

// How a call is cut up.
struct PlacesPlan {
  ConvGeometry geometry;  // folds: with the padding as input
  bool fold = false;
  int64_t columns = 0, channels = 0, filled = 0;  // made and read per group, and the latter in whole chunks
  int64_t images = 0;                             // at once
  int64_t image_elements = 0;                     // made
  int64_t segments = 1, parts = 1;                // of a sum; those that have blocks of their own
  int64_t segment = 0;                            // slices
  int64_t weight_bytes = 0, part_bytes = 0;
  std::vector<Phase> phases;

  PlacesPlan(const ConvGeometry& g, DType dtype, Direction direction)
      : geometry(folds(g, direction) ? padded_geometry(g) : g), fold(folds(g, direction)) {
    const bool backward = direction == Direction::backward_input;
    columns = backward ? g.group_inputs() : g.group_outputs();
    channels = backward ? g.group_outputs() : g.group_inputs();
    filled = round_up(channels, chunk_of(dtype));
    if (!backward) {
      phases.push_back(forward_phase(g));
    } else {
      int64_t at[kMaxSpatial];
      for (at[0] = 0; at[0] < remainders(geometry, 0); ++at[0])
        for (at[1] = 0; at[1] < remainders(geometry, 1); ++at[1])
          for (at[2] = 0; at[2] < remainders(geometry, 2); ++at[2]) phases.push_back(backward_phase(geometry, at));
    }
    int64_t places = 0, taps = 0;
    for (const Phase& phase : phases) {
      if (phase.places() > places) places = phase.places();
      if (phase.all_taps() > taps) taps = phase.all_taps();
      weight_bytes += g.groups * columns * phase.all_taps() * filled * bytes_of(dtype);
    }
    weight_bytes = round_up(weight_bytes, 64);

    image_elements = columns * g.groups * (backward ? geometry.input_places() : g.output_places());
    const int64_t read = channels * g.groups * (backward ? g.output_places() : g.input_places());
    images = images_at_once(g.batch, read > image_elements ? read : image_elements);
    if (fold) {
      const int64_t most = kFoldBytes / (image_elements * int64_t(sizeof(float)));
      if (images > most) images = most > 1 ? most : 1;
    }
    const int64_t slices = ceil_div(taps * filled, slice_of(dtype));
    segments = kEnoughBlocks / tiles_of(places, columns, g.groups, kSmallTile);
    if (segments > slices / kShortestSegment) segments = slices / kShortestSegment;
    if (segments > kMostSegments) segments = kMostSegments;
    if (segments < 1) segments = 1;
    segment = ceil_div(slices > 0 ? slices : 1, segments);
    segments = ceil_div(slices > 0 ? slices : 1, segment);
    if (tiles_of(images * places, columns, g.groups, kSmallTile) < kEnoughBlocks) parts = segments;
    if (fold || parts > 1) part_bytes = parts * images * image_elements * int64_t(sizeof(float));
  }
  bool large(const Phase& phase) const {
    const int64_t rows = images * phase.places();
    return parts == 1 && rows > kSmallTile && columns > kSmallTile &&
           tiles_of(rows, columns, geometry.groups, kLargeTile) >= kEnoughBlocks;
  }
};

}  // namespace convext::cuda
