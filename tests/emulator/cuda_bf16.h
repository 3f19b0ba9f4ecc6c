// Stand-in for <cuda_bf16.h>: the type and the conversions that csrc/cuda uses.
#pragma once
#include "../../csrc/cpu/dtype.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return convext::cpu::to_float(convext::cpu::BFloat16{x.bits}); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {convext::cpu::to_bfloat16(x).bits}; }
