// Direct convolution: the gradient of the input of strided depthwise layers, in a translation unit of its own.
#include "conv_direct.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct_strided_input.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

// Of a plane's rows, in the accumulate type.
int64_t plane_bytes(const ConvGeometry& g, DType dtype) {
  const int64_t elements = g.group_outputs() * g.output[1] * StridedRows(g).pitch;
  return ceil_div(elements * (dtype == DType::float64 ? 8 : 4), 64) * 64;
}

}  // namespace

bool strided_input_fits(const ConvGeometry& g, DType dtype) {
  const bool plane = g.input[0] == 1 && g.kernel[0] == 1 && g.output[0] == 1 && g.layout == Layout::contiguous;
  const bool dense = (g.dilation[1] == 1 || g.kernel[1] == 1) && (g.dilation[2] == 1 || g.kernel[2] == 1);
  return plane && dense && g.group_inputs() == 1 && g.stride[2] == 2 && g.padding_mode == PaddingMode::zeros &&
         g.group_outputs() * g.taps() <= kStridedTaps && StridedRows(g).columns <= kStridedColumns &&
         plane_bytes(g, dtype) <= kStridedBytes;
}

int64_t strided_input_bytes(const ConvGeometry& g, DType dtype) { return max_threads() * plane_bytes(g, dtype); }

void run_strided_input(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const int64_t bytes = plane_bytes(g, args.dtype);
  dispatch_floating(args.dtype, [&](auto type) {
    const auto kernel = CONVEXT_SELECT_ISA(strided_input<typename decltype(type)::type>);
    parallel_for(g.batch * g.groups, [&](int64_t task, int thread) {
      kernel(args, task, static_cast<char*>(args.workspace) + thread * bytes);
    });
  });
}

}  // namespace convext::cpu
