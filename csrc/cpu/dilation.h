// A convolution of stride 1 with a dilation as ordinary ones, for algorithms that know no dilation:
//
//   y[j + d t] = sum over r of xp[j + d (t + r)] w[r]        xp: the padded input
//
// Outputs j, j + d, j + 2 d, ... see places of the padded input that are as far apart. So each of the d_d x d_h x d_w
// phases of the output is a convolution without dilation or padding of one phase of xp, and phases are images: image n
// of the batch is count() of them, one after the other. All have the size of the first; what is more than they hold is
// zeros in the input, and left out of the output. Phases are small maps: where channels fill vectors, they lie side by
// side in them, whatever the layout.
//
// Traffic: what goes in and what comes out, read and written once more.
#pragma once
#include "../algorithms.h"
#include "../geometry_checks.h"

namespace convext::cpu {

// Kernels of one tap along an axis have none there, whatever they say.
bool dilated(const ConvGeometry& geometry);

class DilationPhases {
 public:
  // With stride 1.
  explicit DilationPhases(const ConvGeometry& geometry);

  int64_t count() const { return count_; }
  // All phases of all images.
  const ConvGeometry& undilated() const { return undilated_; }

  // What undilated() sees of the input.
  void split_input(const void* input, void* parts, DType dtype) const;
  // What it makes of the output's places, from the output (a gradient).
  void split_output(const void* output, void* parts, DType dtype) const;
  // The output, of what it has made.
  void join_output(const void* parts, void* output, DType dtype) const;
  int64_t input_bytes(DType dtype) const { return undilated_.input_elements() * size_of(dtype); }
  int64_t output_bytes(DType dtype) const { return undilated_.output_elements() * size_of(dtype); }

 private:
  ConvGeometry geometry_, undilated_;
  int64_t count_ = 1;
};

}  // namespace convext::cpu
