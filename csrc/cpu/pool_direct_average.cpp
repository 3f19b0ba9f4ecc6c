// Average pooling and its gradient: see pool_direct.cpp.
#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_average.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

void pool_direct_average(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run_forward(args, g.layout == Layout::contiguous ? 1 : g.channels, CONVEXT_SELECT_ISA(avg_forward<T>));
  });
}
void pool_direct_average_backward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run_backward(args, CONVEXT_SELECT_ISA(avg_backward_plane<T>), CONVEXT_SELECT_ISA(avg_backward_row<T>));
  });
}

}  // namespace convext::cpu
