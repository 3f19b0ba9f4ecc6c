// The kernel of fractional.cpp.

#include "pool_direct.inl"

#include "pool_direct_boxes_max.inl"
