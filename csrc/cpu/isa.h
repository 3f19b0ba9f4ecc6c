// Instruction sets. Kernel sources (*.inl) are compiled once for each by for_each_isa.inl, every time in a namespace of
// that name; which one runs is decided at the call by active_isa(): the best the processor has, or what CONVEXT_ISA or
// set_isa() ask for. avx512_bf16 is avx512 but for products of bfloat16, see bfloat16_pairs.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace convext::cpu {

enum class Isa { baseline, avx2, avx512, avx512_bf16 };  // each has what those before it have
constexpr int64_t kWidestVector = 16;                    // lanes of float32 in the widest vector of any of them

Isa active_isa();
const char* name_of(Isa isa);
std::vector<Isa> available_isas();
// By name; empty text when done, else what is wrong.
std::string set_isa(const std::string& name);

// CONVEXT_ONLY_ISA (0 baseline, 2 AVX2, 3 AVX-512) leaves the others out, to compile in a third of the time.
#if defined(CONVEXT_ONLY_ISA) && CONVEXT_ONLY_ISA == 2
#define CONVEXT_SELECT_ISA(object) (avx2::object)
#elif defined(CONVEXT_ONLY_ISA) && CONVEXT_ONLY_ISA == 3
#define CONVEXT_SELECT_ISA(object) (avx512::object)
#elif defined(__x86_64__) && !defined(CONVEXT_ONLY_ISA)
#define CONVEXT_SELECT_ISA(object)                                              \
  (::convext::cpu::active_isa() >= ::convext::cpu::Isa::avx512 ? avx512::object \
   : ::convext::cpu::active_isa() == ::convext::cpu::Isa::avx2 ? avx2::object   \
                                                               : baseline::object)
#else
#define CONVEXT_SELECT_ISA(object) (baseline::object)
#endif

}  // namespace convext::cpu
