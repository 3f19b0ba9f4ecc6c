// Direct convolution: fast paths of the forward pass, in a translation unit of their own.
#include "conv_direct.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct_forward.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

DirectKernel direct_forward(const ConvGeometry& geometry, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    return CONVEXT_SELECT_ISA(direct_forward_kernel<typename decltype(type)::type>(geometry));
  });
}

}  // namespace convext::cpu
