// Direct convolution: the fast path of the gradient of the weight, in a translation unit of its own.
#include "conv_direct.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct_group_weight.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

DirectKernel direct_backward_weight(const ConvGeometry& geometry, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    return CONVEXT_SELECT_ISA(direct_group_weight_kernel<typename decltype(type)::type>(geometry));
  });
}

}  // namespace convext::cpu
