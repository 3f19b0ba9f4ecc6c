// The gradient of a convolution's bias: per output channel k, the sum of dy[n, k, o p q] over images and places.
//
// contiguous: a task is a channel; its planes are summed by vectors, and the lanes of one vector at the end.
// channels_last: a task is kBiasChannels channels, a vector a few of them; all images and places go by as rows.
// Several sums run side by side, for speed, and in two levels, blocks and their total, for accuracy; float16 and
// bfloat16 are summed in float32. The order depends on the shape and the instruction set, never on threads. Traffic:
// one read of dy, no workspace.
#include "../algorithms.h"
#include "isa.h"
#include "parallel.h"
#include "simd.h"

namespace convext::cpu {
namespace {

constexpr int64_t kBiasChannels = 32;  // two of the longest vectors

}  // namespace
}  // namespace convext::cpu

#define CONVEXT_KERNELS "conv_bias.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

void conv_backward_bias(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool contiguous = g.layout == Layout::contiguous;
    const auto kernel = contiguous ? CONVEXT_SELECT_ISA(sum_planes<T>) : CONVEXT_SELECT_ISA(sum_columns<T>);
    parallel_for(contiguous ? g.out_channels : ceil_div(g.out_channels, kBiasChannels),
                 [&](int64_t task, int) { kernel(args, task); });
  });
}

}  // namespace convext::cpu
