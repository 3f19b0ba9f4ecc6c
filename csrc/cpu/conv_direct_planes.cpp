// conv_direct_planes.inl for every instruction set, in a translation unit of its own.
#include "conv_direct.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_direct_planes.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

DirectKernel direct_planes(const ConvGeometry& geometry, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    return CONVEXT_SELECT_ISA(direct_planes_kernel<typename decltype(type)::type>(geometry));
  });
}

}  // namespace convext::cpu
