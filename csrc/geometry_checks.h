// Building a geometry from a call's sizes, and saying what is wrong with it. Every front end (CPU and CUDA ops, fakes,
// explain) builds through here, so all speak with one voice. A returned text is empty when all is well.
#pragma once
#include <string>
#include <vector>

#include "geometry.h"

namespace convext {

using Sizes = std::vector<int64_t>;

// What the caller's arguments say, dimension by dimension as the caller gave them (spatial entries each; padding has
// two per dimension: before, after).
struct ConvCall {
  Sizes stride, padding, dilation;
  int64_t groups = 1;
  std::string padding_mode = "zeros";
  bool flip_kernel = false;
};

struct PoolCall {
  Sizes kernel, stride, padding, dilation;
  bool ceil_mode = false, count_include_pad = true;
  int64_t divisor_override = 0;
};

// input n c ..., weight k c/g ...; fills `geometry` but for its layout.
std::string make_conv_geometry(const Sizes& input, const Sizes& weight, const ConvCall& call, ConvGeometry* geometry);
std::string make_pool_geometry(const char* op, const Sizes& input, const PoolCall& call, PoolGeometry* geometry);

Sizes conv_output_shape(const ConvGeometry& geometry);
Sizes pool_output_shape(const PoolGeometry& geometry);
std::string describe(const ConvGeometry& geometry);
std::string describe(const PoolGeometry& geometry);
std::string to_string(const Sizes& sizes);

const char* name_of(DType dtype);
const char* name_of(Direction direction);
int64_t size_of(DType dtype);

}  // namespace convext
