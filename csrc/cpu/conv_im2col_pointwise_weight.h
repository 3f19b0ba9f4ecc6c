// What the driver of the gradient of a pointwise weight and its kernels share.
#pragma once
#include "dtype.h"

namespace convext::cpu::im2col {

// `rows` and `lanes` are channels of either operand; places follow each other `step` elements apart (channels_last), or
// channels do (contiguous).
template <typename T>
struct PointwiseKernels {
  using A = Accumulate<T>;
  // channels_last: to[panel][place][row] for `panels` panels of `width` rows, panels `stride` elements apart. At each
  // place `readable` elements may be read, but no more. Writes up to a vector past a panel's end.
  void (*pack_rows)(const T* from, int64_t step, int64_t readable, int64_t places, int64_t panels, int64_t width, A* to,
                    int64_t stride);
  // contiguous: to[row][place], rows `pitch` elements apart, from every `stride`-th element. Writes up to a vector past
  // a row's end.
  void (*copy_rows)(const T* from, int64_t step, int64_t stride, int64_t rows, int64_t places, A* to, int64_t pitch);
  // to[panel][place][lane], panels of `width` lanes, `stride` elements apart.
  void (*pack_lanes)(const T* from, bool channels_last, int64_t step, int64_t lanes, int64_t places, A* to,
                     int64_t width, int64_t stride);
  // sums[i] += the same of `parts` - 1 other parts, `apart` elements from one to the next, in order.
  void (*add_parts)(A* sums, int64_t count, int64_t parts, int64_t apart);
  // Rounds sums[row][lane] to to[row][lane]; turned: to[lane][row].
  void (*write)(const A* sums, int64_t sums_step, int64_t rows, int64_t lanes, bool turned, T* to, int64_t step);
};

}  // namespace convext::cpu::im2col
