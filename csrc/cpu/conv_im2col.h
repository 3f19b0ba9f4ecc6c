// What the directions of im2col share.
#pragma once
#include <vector>

#include "../algorithms.h"
#include "bfloat16_pairs.h"
#include "blocking.h"
#include "gemm.h"
#include "input_gradient.h"

namespace convext::cpu::im2col {

// T: what tensors hold. E: what gemm's panels hold, a number of the type of the sums, or a pair.
template <typename T, typename E>
struct Elements {
  using Stored = T;
  using Packed = E;
};
template <typename E>
constexpr bool kPairs = std::is_same_v<E, BFloat16Pair>;

// f(Elements) for a type of tensors; pairs: wherever they are to be had.
template <typename F>
auto dispatch_elements(DType dtype, F&& f, bool pairs = true) {
  if (pairs && dtype == DType::bfloat16 && pairs_bfloat16()) return f(Elements<BFloat16, BFloat16Pair>());
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return f(Elements<T, Accumulate<T>>());
  });
}

// Tap i of an axis: the outputs whose place through it is one of the input, and that of the first.
struct Reached {
  Span outputs;
  int64_t place;
  Reached(const ConvGeometry& g, int axis, int64_t i) : outputs(reached_outputs(g, axis, i)) {
    place = g.padded_place(axis, outputs.begin, i);
  }
};

// How a weight of one tap lies that comes as it is: an output's inputs side by side, or an input's outputs.
enum class WeightIs { plain, transposed };
void forward(const ConvArguments& args, WeightIs weight = WeightIs::plain);
bool forward_packs_on_the_way(const ConvGeometry& geometry, DType dtype);
int64_t forward_bytes(const ConvGeometry& geometry, DType dtype);
// Lanes of a panel of the packed weight.
int64_t weight_width(const ConvGeometry& geometry, DType dtype);

void backward_input(const ConvArguments& args);
int64_t backward_input_bytes(const ConvGeometry& geometry, DType dtype);
bool backward_input_packs_on_the_way(const ConvGeometry& geometry, DType dtype);
Packing backward_input_packing(const ConvGeometry& geometry, DType dtype);
void pack_backward_input(const PackArguments& args);
// The same the other way round, of a gradient_geometry (conv_im2col_col2im.cpp); pays: is it faster?
bool col2im_pays(const ConvGeometry& geometry, DType dtype);
void col2im(const ConvArguments& args);
int64_t col2im_bytes(const ConvGeometry& geometry, DType dtype);
Packing col2im_packing(const ConvGeometry& geometry, DType dtype);
void pack_col2im(const PackArguments& args);
// A forward convolution of stride 1 as the gradient of the input of another one, its `reversed`.
ConvGeometry reversed(const ConvGeometry& geometry);
bool forward_by_col2im(const ConvGeometry& geometry, DType dtype);
void convolve_by_col2im(const ConvArguments& args);
void pack_forward_col2im(const PackArguments& args);

// Windows that do not overlap, contiguous (conv_im2col_patches.cpp): as a pointwise convolution, in all directions.
bool is_patches(const ConvGeometry& geometry, Direction direction);
ConvGeometry patches_geometry(const ConvGeometry& geometry);
void run_patches(const ConvArguments& args, Direction direction);
int64_t patches_bytes(const ConvGeometry& geometry, DType dtype, Direction direction);
// The weight as that convolution's; `moved` holds it where it lies otherwise.
PackArguments patches_weight(const PackArguments& args, std::vector<char>* moved);

int64_t backward_weight_bytes(const ConvGeometry& geometry, DType dtype);
void backward_weight(const ConvArguments& args);
// Of a 1x1 kernel that sees every place without padding (conv_im2col_pointwise_weight.cpp).
bool is_pointwise_weight(const ConvGeometry& geometry);
int64_t pointwise_weight_bytes(const ConvGeometry& geometry, DType dtype);
void pointwise_weight(const ConvArguments& args);

}  // namespace convext::cpu::im2col
