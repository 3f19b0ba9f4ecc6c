#include "isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace convext::cpu {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

bool available(Isa isa) {
#if defined(CONVEXT_EMULATE_AVX512)
  return isa >= Isa::avx512;
#elif defined(CONVEXT_ONLY_ISA)
  return isa == (CONVEXT_ONLY_ISA == 3 ? Isa::avx512 : CONVEXT_ONLY_ISA == 2 ? Isa::avx2 : Isa::baseline);
#elif defined(__x86_64__)
  if (isa == Isa::baseline) return true;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return avx512 && (isa == Isa::avx512 || __builtin_cpu_supports("avx512bf16"));
#else
  return isa == Isa::baseline;
#endif
}

// Empty text and *isa set, or what is wrong with the name.
std::string parse(const std::string& name, Isa* isa) {
  std::string have;
  for (Isa candidate : available_isas()) {
    if (name == name_of(candidate)) {
      *isa = candidate;
      return "";
    }
    have += std::string(have.empty() ? "" : ", ") + name_of(candidate);
  }
  return "instruction set '" + name + "' is not available here (expected one of " + have + ")";
}

Isa initial() {
  Isa isa = available_isas().back();
  if (const char* wanted = std::getenv("CONVEXT_ISA")) {
    const std::string error = parse(wanted, &isa);
    if (!error.empty()) std::fprintf(stderr, "convext: CONVEXT_ISA: %s; using %s\n", error.c_str(), name_of(isa));
  }
  return isa;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

Isa active_isa() { return active().load(std::memory_order_relaxed); }

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> result;
  for (Isa isa : kAll)
    if (available(isa)) result.push_back(isa);
  return result;
}

std::string set_isa(const std::string& name) {
  Isa isa;
  const std::string error = parse(name, &isa);
  if (error.empty()) active().store(isa);
  return error;
}

}  // namespace convext::cpu
