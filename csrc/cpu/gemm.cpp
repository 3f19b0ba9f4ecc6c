// gemm.inl for every instruction set, and the choice among them.
#include "gemm.h"

#include "simd.h"
#define CONVEXT_KERNELS "gemm.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

template <>
const Gemm<float>& gemm<float>() {
  return CONVEXT_SELECT_ISA(kGemm<float>);
}
template <>
const Gemm<double>& gemm<double>() {
  return CONVEXT_SELECT_ISA(kGemm<double>);
}

}  // namespace convext::cpu
