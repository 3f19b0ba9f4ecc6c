// Compiles CONVEXT_KERNELS, an .inl file, once per instruction set. Use, after every other include:
//   #define CONVEXT_KERNELS "gemm.inl"
//   #include "for_each_isa.inl"
// The .inl opens `namespace convext::cpu::CONVEXT_ISA { namespace {`, includes nothing, and uses no std:: function and
// no lambda: those would be compiled for one instruction set and shared by all. simd.inl is there already.
// CONVEXT_SELECT_ISA(object) then picks the object of the active instruction set.
//
// CONVEXT_ONLY_ISA compiles the code of that level alone. CONVEXT_EMULATE_AVX512, which implies it, compiles the
// AVX-512 code for AVX2, with tests/emulator/avx512/immintrin.h.
#if !defined(CONVEXT_ONLY_ISA) || CONVEXT_ONLY_ISA == 0
#define CONVEXT_ISA baseline
#define CONVEXT_ISA_LEVEL 0
#define CONVEXT_VECTOR_BYTES 16
#include "simd.inl"
#include CONVEXT_KERNELS
#undef CONVEXT_ISA
#undef CONVEXT_ISA_LEVEL
#undef CONVEXT_VECTOR_BYTES
#endif

#if defined(__x86_64__) && (!defined(CONVEXT_ONLY_ISA) || CONVEXT_ONLY_ISA == 2)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw")
#define CONVEXT_ISA avx2
#define CONVEXT_ISA_LEVEL 2
#define CONVEXT_VECTOR_BYTES 32
#include "simd.inl"
#include CONVEXT_KERNELS
#undef CONVEXT_ISA
#undef CONVEXT_ISA_LEVEL
#undef CONVEXT_VECTOR_BYTES
#pragma GCC pop_options
#endif

#if defined(__x86_64__) && (!defined(CONVEXT_ONLY_ISA) || CONVEXT_ONLY_ISA == 3)
#pragma GCC push_options
#if defined(CONVEXT_EMULATE_AVX512)
#pragma GCC target("avx2,fma,f16c,prfchw")
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,prfchw,prefer-vector-width=512")
#endif
#define CONVEXT_ISA avx512
#define CONVEXT_ISA_LEVEL 3
#define CONVEXT_VECTOR_BYTES 64
#include "simd.inl"
#include CONVEXT_KERNELS
#undef CONVEXT_ISA
#undef CONVEXT_ISA_LEVEL
#undef CONVEXT_VECTOR_BYTES
#pragma GCC pop_options
#endif
#undef CONVEXT_KERNELS
