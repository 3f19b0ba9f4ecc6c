// What the CPU pooling algorithms share.
#pragma once
#include "../algorithms.h"

namespace convext::cpu {

// PoolAlgorithm::max_indices: the winner's flat index (d h w) in its input plane, from its place in the window.
void max_pool_indices(const PoolArguments& args);

}  // namespace convext::cpu
