// What simd.inl needs from outside an instruction set's namespace. Include before for_each_isa.inl.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dtype.h"
#include "isa.h"

#define CONVEXT_INLINE inline __attribute__((always_inline))
