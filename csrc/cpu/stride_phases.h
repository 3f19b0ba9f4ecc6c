// The gradient of the input through zero padding, as forward convolutions of the output gradient.
//
//   dx[c][w] = sum over k, s of dy[k][q] w[k, c, s]  with  q stride + s dilation = w + before
//
// Places w of one phase, (w + before) mod stride, are seen by the same taps, those with s dilation mod stride = phase,
// and from place to place, as from tap to tap, q moves evenly. So each phase is a convolution of dy with stride 1:
// channels exchanged, some of the taps, the last first. What the forward pass has learned serves the gradient too.
//
// With stride 1 there is one phase and it is dx. Otherwise phases are computed one by one for a few images and then
// spread over dx, row by row. Traffic: dy once per phase, dx written, read and written again.
// Padding that mirrors or repeats has no phases.
#pragma once
#include <vector>

#include "../algorithms.h"
#include "../geometry_checks.h"
#include "parallel.h"

namespace convext::cpu {

inline bool has_stride_phases(const ConvGeometry& g) { return g.padding_mode == PaddingMode::zeros || !g.padded(); }

// Padding of `geometry` may be below zero: then it starts or ends inside of dy.
struct StridePhase {
  ConvGeometry geometry;                            // dy -> the phase's places of dx
  int64_t first[kMaxSpatial];                       // of them; the next is one stride on
  int64_t tap[kMaxSpatial], tap_step[kMaxSpatial];  // kernel place u of the phase is the kernel's tap + u tap_step

  bool sees_nothing() const { return geometry.taps() == 0; }
  // The kernel's tap, row-major, that is tap `u` of the phase.
  int64_t kernel_tap(const ConvGeometry& g, int64_t u) const;
};

class StridePhases {
 public:
  explicit StridePhases(const ConvGeometry& geometry);

  int64_t count() const { return count_[0] * count_[1] * count_[2]; }
  StridePhase operator[](int64_t i) const;  // phases of the width follow each other
  // The convolution with the most taps.
  ConvGeometry largest() const;
  bool strided() const { return geometry_.stride[0] * geometry_.stride[1] * geometry_.stride[2] > 1; }

  // What run needs for results that are not yet spread; zero with stride 1.
  int64_t result_bytes(DType dtype) const;
  // The most that bytes(geometry) gives for the convolutions of run.
  template <typename Bytes>
  int64_t most(DType dtype, const Bytes& bytes) const;
  // convolve(arguments, phase) for each phase that sees something: arguments have the phase's geometry, its input (a
  // part of dy) and output; weight, workspace and the rest are convolve's to fill in.
  template <typename Convolve>
  void run(const ConvArguments& args, void* results, const Convolve& convolve) const;

 private:
  int64_t images_at_once(DType dtype) const;
  int64_t part_bytes(DType dtype) const;  // of one phase of the width, all images at once
  void spread(const ConvArguments& args, const void* results, int64_t phase, int64_t image, int64_t images) const;

  ConvGeometry geometry_;
  int64_t count_[kMaxSpatial];
};

template <typename Bytes>
int64_t StridePhases::most(DType dtype, const Bytes& bytes) const {
  const int64_t at_once = images_at_once(dtype), rest = geometry_.batch % at_once;
  int64_t most = 0;
  for (int64_t i = 0; i < count(); ++i) {
    StridePhase phase = (*this)[i];
    if (phase.sees_nothing()) continue;
    for (int64_t batch : {at_once, rest == 0 ? at_once : rest}) {
      phase.geometry.batch = batch;
      const int64_t needed = bytes(phase.geometry);
      most = needed > most ? needed : most;
    }
  }
  return most;
}

template <typename Convolve>
void StridePhases::run(const ConvArguments& args, void* results, const Convolve& convolve) const {
  const ConvGeometry& g = geometry_;
  const int64_t element = size_of(args.dtype), at_once = images_at_once(args.dtype);
  for (int64_t n = 0; n < g.batch; n += at_once)
    for (int64_t first = 0; first < count(); first += count_[kWidth]) {
      const int64_t images = at_once < g.batch - n ? at_once : g.batch - n;
      for (int64_t i = first; i < first + count_[kWidth]; ++i) {
        const StridePhase phase = (*this)[i];
        if (phase.sees_nothing()) continue;
        ConvArguments part;
        part.geometry = phase.geometry;
        part.geometry.batch = images;
        part.dtype = args.dtype;
        part.input = static_cast<const char*>(args.grad_output) + g.output_offset(n, 0, 0) * element;
        part.output = strided() ? static_cast<char*>(results) + (i - first) * part_bytes(args.dtype)
                                : static_cast<char*>(args.output) + g.input_offset(n, 0, 0) * element;
        part.stream = args.stream;
        convolve(part, phase, i);
      }
      if (strided()) spread(args, results, first, n, images);
    }
}

}  // namespace convext::cpu
