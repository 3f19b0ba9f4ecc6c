// Max pooling, forward: see pool_direct.cpp.
#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_max.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

void pool_direct_max(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  if (g.layout == Layout::contiguous && max_boxes_fit(g)) return pool_boxes_max(args);
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int inner = band_channels(sizeof(Accumulate<T>));
    int64_t channels = part_channels(g);
    if (choose_max_kernel(g, inner) == MaxKernel::channel_bands) channels = inner;
    run_parts(args, channels, g.output, CONVEXT_SELECT_ISA(max_forward<T>));
  });
}

}  // namespace convext::cpu
