// interleave.inl for every instruction set, and its tasks: some places of an image.
#include "interleave.h"

#include <algorithm>

#include "blocking.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "interleave.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

constexpr int64_t kInterleavedPlaces = 8192;  // of a task

}  // namespace

void interleave(int64_t images, int64_t channels, int64_t places, const float* x, float* y) {
  const auto run = CONVEXT_SELECT_ISA(kInterleave)[channels - 2];
  const int64_t parts = ceil_div(places, kInterleavedPlaces);
  parallel_for(images * parts, [&](int64_t task, int) {
    const int64_t from = task % parts * kInterleavedPlaces, image = task / parts * channels * places;
    run(x + image + from, places, std::min(kInterleavedPlaces, places - from), y + image + from * channels);
  });
}

}  // namespace convext::cpu
