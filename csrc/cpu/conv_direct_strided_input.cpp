// Direct convolution: the gradient of the input of strided depthwise layers, in a translation unit of its own.
#include <algorithm>

#include "conv_direct.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct_strided_input.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

int64_t bytes_of(int64_t elements, DType dtype) {
  return ceil_div(elements * (dtype == DType::float64 ? 8 : 4), 64) * 64;
}
// Of a contiguous plane's rows, and of the weight by taps, in the accumulate type.
int64_t plane_bytes(const ConvGeometry& g, DType dtype) {
  return bytes_of(g.group_outputs() * g.output[1] * StridedRows(g).pitch, dtype);
}
int64_t weight_bytes(const ConvGeometry& g, DType dtype) {
  return bytes_of(g.taps() * g.in_channels + kWidestVector, dtype);
}

// What a task of turned planes takes, if there are such tasks.
int64_t turned_elements(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    return CONVEXT_SELECT_ISA(turned_strided_channels<typename decltype(type)::type>)(g) * turned_strided_places(g);
  });
}

template <typename T>
void run_channels(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const T* weight = static_cast<const T*>(args.weight);
  auto* turned = static_cast<Accumulate<T>*>(args.workspace);
  const int64_t taps = g.taps();
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t c = 0; c < g.in_channels; ++c)
      turned[tap * g.in_channels + c] = to_accumulate(weight[c * taps + g.weight_tap(tap)]);
  const auto kernel = CONVEXT_SELECT_ISA(strided_input_row<T>);
  parallel_for(g.batch * g.input[1], [&](int64_t row, int) { kernel(args, row, turned); });
}

}  // namespace

bool strided_input_fits(const ConvGeometry& g, DType dtype) {
  const bool plane = g.input[0] == 1 && g.kernel[0] == 1 && g.output[0] == 1;
  const bool dense = (g.dilation[1] == 1 || g.kernel[1] == 1) && (g.dilation[2] == 1 || g.kernel[2] == 1);
  if (!plane || !dense || g.group_inputs() != 1 || g.padding_mode != PaddingMode::zeros ||
      g.group_outputs() * g.taps() > kStridedTaps)
    return false;
  if (g.layout == Layout::channels_last) return g.group_outputs() == 1 && (g.stride[1] > 1 || g.stride[2] > 1);
  return g.stride[2] == 2 && plane_bytes(g, dtype) <= kStridedBytes;
}

int64_t strided_input_bytes(const ConvGeometry& g, DType dtype) {
  if (g.layout == Layout::channels_last) return weight_bytes(g, dtype);
  return max_threads() * std::max(plane_bytes(g, dtype), bytes_of(turned_elements(g, dtype), dtype));
}

void run_strided_input(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    if (g.layout == Layout::channels_last) return run_channels<typename decltype(type)::type>(args);
    using T = typename decltype(type)::type;
    const int64_t together = CONVEXT_SELECT_ISA(turned_strided_channels<T>)(g);
    const bool turned = together > 0;
    const auto kernel = turned ? CONVEXT_SELECT_ISA(strided_input_turned<T>) : CONVEXT_SELECT_ISA(strided_input<T>);
    const int64_t bytes = turned ? bytes_of(turned_elements(g, args.dtype), args.dtype) : plane_bytes(g, args.dtype);
    parallel_for(g.batch * g.groups / (turned ? together : 1), [&](int64_t task, int thread) {
      kernel(args, task, static_cast<char*>(args.workspace) + thread * bytes);
    });
  });
}

}  // namespace convext::cpu
