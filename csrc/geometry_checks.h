// Building a geometry from a call's sizes, and saying what is wrong with it. Every front end (CPU and CUDA ops, fakes,
// explain) builds through here, so all speak with one voice. A returned text is empty when all is well.
//
// Every call comes through here, the smallest too: sizes are looked at where they lie (spans), and no text is built nor
// memory taken unless something is wrong.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "geometry.h"

namespace convext {

using Sizes = std::span<const int64_t>;

// The shape of a tensor, by value.
struct Shape {
  int64_t sizes[2 + kMaxSpatial];
  size_t dims;

  const int64_t* data() const { return sizes; }
  size_t size() const { return dims; }
  const int64_t* begin() const { return sizes; }
  const int64_t* end() const { return sizes + dims; }
};

// What the caller's arguments say, dimension by dimension as the caller gave them (spatial entries each; padding has
// two per dimension: before, after). Refers to the caller's arrays.
struct ConvCall {
  Sizes stride, padding, dilation;
  int64_t groups = 1;
  std::string_view padding_mode = "zeros";
  bool flip_kernel = false;
};

// A pooling with an empty stride is adaptive: `kernel` then is how many windows there are, not how large; padding and
// dilation are empty too.
struct PoolCall {
  Sizes kernel, stride, padding, dilation;
  bool ceil_mode = false, count_include_pad = true;
  int64_t divisor_override = 0;
};

// input n c ..., weight k c/g ...; fills `geometry` but for its layout.
std::string make_conv_geometry(Sizes input, Sizes weight, const ConvCall& call, ConvGeometry* geometry);
std::string make_pool_geometry(const char* op, Sizes input, const PoolCall& call, PoolGeometry* geometry);

Shape conv_output_shape(const ConvGeometry& geometry);
Shape pool_output_shape(const PoolGeometry& geometry);
std::string describe(const ConvGeometry& geometry);
std::string describe(const PoolGeometry& geometry);
std::string to_string(Sizes sizes);

const char* name_of(PaddingMode mode);
bool parse_padding_mode(std::string_view name, PaddingMode* mode);  // false for an unknown name
const char* name_of(DType dtype);
const char* name_of(Direction direction);
int64_t size_of(DType dtype);

}  // namespace convext
