// Stand-in for <cuda_fp16.h>: the type and the conversions that csrc/cuda uses.
#pragma once
#include "../../csrc/cpu/dtype.h"

struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return convext::cpu::to_float(convext::cpu::Half{x.bits}); }
inline __half __float2half_rn(float x) { return {convext::cpu::to_half(x).bits}; }
