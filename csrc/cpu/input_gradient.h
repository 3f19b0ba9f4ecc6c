// The gradient of the input as forward convolutions of the output gradient: what the forward pass has learned serves it
// too.
//
//   dx[c][w] = sum over k, s of dy[k][q] w[k, c, s]  with  q stride + s dilation = w + before
//
// Places w of one phase, (w + before) mod stride, are seen by the same taps, those with s dilation mod stride = phase,
// and from place to place, as from tap to tap, q moves evenly. So each phase is a convolution of dy with stride 1:
// channels exchanged, some of the taps, the last first. With stride 1 there is one phase and it is dx. Otherwise phases
// are computed one by one for a few images and then spread over dx, row by row. Traffic: dy once per phase, dx written,
// read and written again.
//
// Padding that mirrors or repeats the input: the gradient of the padded input is computed (which has no padding), for a
// few images, and what its places receive is added onto the places they show. 16-bit types are widened for it and
// rounded at the end. Traffic: dx and its padding written and read once more.
#pragma once
#include <vector>

#include "../algorithms.h"
#include "../geometry_checks.h"
#include "parallel.h"
#include "unfold.h"

namespace convext::cpu {

inline bool repeats_padding(const ConvGeometry& g) { return g.padding_mode != PaddingMode::zeros && g.padded(); }

// The convolution whose gradient of the input is computed: of the padded input where padding repeats.
ConvGeometry gradient_geometry(const ConvGeometry& geometry);

// Padding of `geometry` may be below zero: then it starts or ends inside of dy.
struct StridePhase {
  ConvGeometry geometry;                            // dy -> the phase's places of dx
  int64_t first[kMaxSpatial];                       // of them; the next is one stride on
  int64_t tap[kMaxSpatial], tap_step[kMaxSpatial];  // kernel place u of the phase is the kernel's tap + u tap_step

  bool sees_nothing() const { return geometry.taps() == 0; }
  // The kernel's tap, row-major, that is tap `u` of the phase.
  int64_t kernel_tap(const ConvGeometry& g, int64_t u) const;
};

// Of the outputs along an axis, those that see a place of the input through a tap, and not padding.
Span reached_outputs(const ConvGeometry& g, int axis, int64_t tap);

// Of a geometry whose padding does not repeat.
class StridePhases {
 public:
  explicit StridePhases(const ConvGeometry& geometry);

  int64_t count() const { return count_[0] * count_[1] * count_[2]; }
  StridePhase operator[](int64_t i) const;  // phases of the width follow each other
  // The convolution with the most taps.
  ConvGeometry largest() const;
  // How many products the convolutions take for one that is needed: they multiply places that no output sees, too, and
  // padding.
  double excess() const;
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

// Of a batch, as many images as take `bytes` together, an image's `each` bytes; at least one.
inline int64_t images_within(int64_t bytes, int64_t each, int64_t batch) {
  const int64_t images = bytes / (each > 0 ? each : 1), most = images < batch ? images : batch;
  return most > 1 ? most : 1;
}

// Images are taken `at_once` images at a time: the largest of bytes(batch) for the batches that occur.
template <typename Bytes>
int64_t most_of_batches(int64_t batch, int64_t at_once, const Bytes& bytes) {
  const int64_t rest = batch % at_once, whole = batch < at_once ? 0 : bytes(at_once),
                part = rest == 0 ? 0 : bytes(rest);
  return whole > part ? whole : part;
}

template <typename Bytes>
int64_t StridePhases::most(DType dtype, const Bytes& bytes) const {
  int64_t most = 0;
  for (int64_t i = 0; i < count(); ++i) {
    StridePhase phase = (*this)[i];
    if (phase.sees_nothing()) continue;
    const int64_t needed = most_of_batches(geometry_.batch, images_at_once(dtype), [&](int64_t batch) {
      phase.geometry.batch = batch;
      return bytes(phase.geometry);
    });
    most = needed > most ? needed : most;
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

// Padding that repeats, around an algorithm that computes the gradient of the input of a gradient_geometry.
struct RepeatedPadding {
  RepeatedPadding(const ConvGeometry& geometry, DType dtype);

  ConvGeometry geometry, padded;  // the call's, and its gradient_geometry, for images_at_once images
  DType dtype, wide;              // the call's, and what is computed in
  int64_t images_at_once;

  // The pieces of a workspace; without a start only measured.
  struct Pieces {
    void *gradient, *grad_output, *weight, *rest;
    int64_t used;
  };
  Pieces pieces(void* workspace) const;
  // Grad_output and weight in the wide type; as they are where that is their own.
  const void* widened(const void* from, int64_t elements, void* to) const;
  // The padded gradient onto `output`.
  void fold(const void* gradient, void* output, int64_t images) const;
};

// bytes(geometry, dtype): what the algorithm needs.
template <typename Bytes>
int64_t input_gradient_bytes(const ConvGeometry& g, DType dtype, const Bytes& bytes) {
  if (!repeats_padding(g)) return bytes(g, dtype);
  RepeatedPadding padding(g, dtype);
  return padding.pieces(nullptr).used + most_of_batches(g.batch, padding.images_at_once, [&](int64_t batch) {
           padding.padded.batch = batch;
           return bytes(padding.padded, padding.wide);
         });
}

// compute(arguments): the algorithm, for arguments of a gradient_geometry.
template <typename Compute>
void compute_input_gradient(const ConvArguments& args, const Compute& compute) {
  const ConvGeometry& g = args.geometry;
  if (!repeats_padding(g)) return compute(args);
  const RepeatedPadding padding(g, args.dtype);
  const RepeatedPadding::Pieces own = padding.pieces(args.workspace);
  ConvArguments part = args;
  part.geometry = padding.padded;
  part.dtype = padding.wide;
  part.output = own.gradient;
  part.workspace = own.rest;
  if (args.weight != nullptr) part.weight = padding.widened(args.weight, g.weight_elements(), own.weight);
  for (int64_t n = 0; n < g.batch; n += padding.images_at_once) {
    const int64_t images = padding.images_at_once < g.batch - n ? padding.images_at_once : g.batch - n;
    part.geometry.batch = images;
    const void* dy = static_cast<const char*>(args.grad_output) + g.output_offset(n, 0, 0) * size_of(args.dtype);
    part.grad_output = padding.widened(dy, images * g.output_offset(1, 0, 0), own.grad_output);
    compute(part);
    padding.fold(own.gradient, static_cast<char*>(args.output) + g.input_offset(n, 0, 0) * size_of(args.dtype), images);
  }
}

}  // namespace convext::cpu
