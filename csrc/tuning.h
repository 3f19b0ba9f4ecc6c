// What the user laid down for "auto": a cap on workspaces, and choices measured on this machine (convext/tuning.py).
// Both hold for the whole process. Where nothing was laid down, asking costs one load.
#pragma once
#include "algorithms.h"

namespace convext {

// How many bytes of workspace an algorithm may ask for; the largest int64_t where there is no cap.
int64_t workspace_limit();
void set_workspace_limit(int64_t bytes);

// The algorithm that was measured fastest for calls whose images look like the geometry's (its batch is not looked at),
// or nullptr. A nullptr given to set_tuned takes the choice back.
const ConvAlgorithm* tuned(Device device, const ConvGeometry& geometry, DType dtype, Direction direction);
const PoolAlgorithm* tuned(Device device, const PoolGeometry& geometry, DType dtype, PoolPass pass);
void set_tuned(Device device, const ConvGeometry& geometry, DType dtype, Direction direction,
               const ConvAlgorithm* best);
void set_tuned(Device device, const PoolGeometry& geometry, DType dtype, PoolPass pass, const PoolAlgorithm* best);
void clear_tuned();

}  // namespace convext
