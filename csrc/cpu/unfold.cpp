// unfold.inl for every instruction set, and the choice among them.
#include "unfold.h"

#include <utility>

#include "simd.h"
#define CONVEXT_KERNELS "unfold.inl"
#include "for_each_isa.inl"

namespace convext::cpu {

template <>
const Unfold<float>& unfold<float>() {
  return CONVEXT_SELECT_ISA(kUnfold<float>);
}
template <>
const Unfold<double>& unfold<double>() {
  return CONVEXT_SELECT_ISA(kUnfold<double>);
}
template <>
const Unfold<Half>& unfold<Half>() {
  return CONVEXT_SELECT_ISA(kUnfold<Half>);
}
template <>
const Unfold<BFloat16>& unfold<BFloat16>() {
  return CONVEXT_SELECT_ISA(kUnfold<BFloat16>);
}

}  // namespace convext::cpu
