// Planes of few channels side by side: a contiguous image, as it is read from a file, laid out channels_last.
//
//   y[image][place][channel] = x[image][channel][place]
//
// A vector of each plane becomes as many vectors of y, each by one shuffle for every channel but one. Traffic: x once,
// y once.
#pragma once
#include <cstdint>

namespace convext::cpu {

constexpr bool interleaves(int64_t channels) { return channels >= 2 && channels <= 4; }
void interleave(int64_t images, int64_t channels, int64_t places, const float* x, float* y);

}  // namespace convext::cpu
