// The gradient of max pooling: see pool_direct.cpp.
#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_max_backward.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

void pool_direct_max_backward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run_backward(args, CONVEXT_SELECT_ISA(max_backward_plane<T>), CONVEXT_SELECT_ISA(max_backward_row<T>));
  });
}

}  // namespace convext::cpu
