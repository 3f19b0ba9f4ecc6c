// Pooling, vectorised. Maximum and average, forward and gradient, over any window, stride, dilation and padding.
//
// Fast, for the windows that networks have: rows first, then across rows (pool_direct_rows.inl: small windows where
// they
//   lie; pool_direct_bands.inl: large ones, widened step by step in a padded copy, in both layouts). Those do not
//   honour NaN: a part that holds one, and every other geometry, is made by the following.
// contiguous: a row is copied once into a padded buffer on the stack, widened to the
//   accumulate type and split by phase of the stride (row[i % stride][i / stride]), so that for any stride and dilation
//   every tap of a vector of neighbouring outputs is one load, without edges. The average sums the rows of the window
//   first, then along the row; the maximum goes along the row first and then merges rows, which keeps the row-major
//   order that decides ties.
// channels_last: vectors of channels, up to four at a time.
// Windows of unequal sizes (adaptive), wide ones of the average and one over all are boxes: pool_direct_boxes.cpp.
// Gradients. Windows that do not overlap are expanded, contiguous ones where they have two columns
//   (pool_direct_halves.inl). Maximum: input places look at the outputs that see them, where windows are small
//   (contiguous: pool_direct_gather.inl), else outputs add to the places they won (pool_direct_winners.inl; volumes,
//   dilated windows and those of more than 256 places: pool_direct_scatter.inl). Average:
//   at stride 1 it is an average itself; else sums of dy over columns are spread over a padded row in the manner of the
//   forward pass; channels_last places gather.
// A task is a part of a plane, of a few planes or of an image, or a row of input places. Sums are in the
// accumulate type, their order depends on the geometry of a plane alone. Maxima and places are naive's bit for bit; an
// average may be rounded differently, and differ in the sign of a zero. Traffic: input and output once from memory, the
// rows of a window again from cache; up to 200 kB of stack. Limits: floating types; contiguous: a window row and a
// stride that fit kPoolRow.
#include "pool_direct.h"

#include "dtype.h"

namespace convext::cpu {
namespace {

const char* unsupported(const PoolGeometry& g, DType dtype) {
  if (dtype != DType::float32 && dtype != DType::float64 && dtype != DType::float16 && dtype != DType::bfloat16)
    return "integer elements";
  if (!g.adaptive && !over_all(g) && g.layout == Layout::contiguous && pool_row_columns(g) < 1)
    return "a window or stride of more than about 4000 columns in the contiguous layout";
  return nullptr;
}

}  // namespace

const PoolAlgorithm pool_direct = {
    "direct",
    unsupported,
    pool_direct_max,
    pool_direct_max_backward,
    pool_direct_indices,
    pool_direct_average,
    pool_direct_average_backward,
};

}  // namespace convext::cpu
