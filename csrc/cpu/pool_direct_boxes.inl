// The kernels of pool_direct_boxes.cpp.

#include "pool_direct.inl"

#include "pool_direct_boxes_lanes.inl"
#include "pool_direct_boxes_max.inl"
#include "pool_direct_boxes_small.inl"

#include "pool_direct_boxes_reduce.inl"

#include "pool_direct_boxes_windows.inl"

#include "pool_direct_boxes_average.inl"
