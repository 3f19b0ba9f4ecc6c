// What a convolution should take on a GPU, algorithm by algorithm, and so which one "auto" runs there. A model, no
// measurement: no torch and no CUDA here, so that every build has it and tests ask it for any GPU.
//
//   seconds = max(multiply-adds / (rate * share that the algorithm reaches * filled share of its tiles),
//                 bytes / bandwidth)  +  launches * what a launch costs
//
// of kNominalBatch images, whatever the call's batch: "auto" looks at the geometry of one image.
#pragma once
#include <string_view>
#include <vector>

#include "geometry.h"

namespace convext {

struct Gpu {
  int capability = 90;  // 75, 80, 86, 89, 90, ...: ten times the major number plus the minor
  int multiprocessors = 132;
};

// The current device, whose tensors are about to be computed with; an H200 in builds without CUDA (algorithms.cpp).
Gpu current_gpu();

// The algorithm's time; infinite for a name that the model does not know.
double cuda_seconds(const Gpu& gpu, std::string_view algorithm, const ConvGeometry& geometry, DType dtype,
                    Direction direction);

// Which of the algorithms named should run: the one with the least time, the first of equals. Winograd only where it
// promises a clear gain, where the call's mode allows it, and not for float64, which is asked for to be accurate.
std::string_view cuda_choice(const Gpu& gpu, const std::vector<std::string_view>& able, const ConvGeometry& geometry,
                             DType dtype, Direction direction);

}  // namespace convext
