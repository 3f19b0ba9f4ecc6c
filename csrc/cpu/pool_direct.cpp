// Pooling, vectorised. Maximum and average, forward and gradient, over any window, stride, dilation and padding.
//
// contiguous: a task is a plane (n, c). A row is copied once into a padded buffer on the stack, widened to the
//   accumulate type and split by phase of the stride (row[i % stride][i / stride]), so that for any stride and dilation
//   every tap of a vector of neighbouring outputs is one load, without edges. The average sums the rows of the window
//   first, then along the row; the maximum goes along the row first and then merges rows, which keeps the row-major
//   order that decides ties. Gradients: the average spreads column sums of dy / divisor over a padded row in the same
//   manner; the maximum adds dy to its winner in a band of input rows that fits the stack, output after output.
// channels_last: vectors of channels, four at a time; a task is a row of outputs, for gradients a row of input places,
//   which gather from the outputs that see them.
// Sums are in the accumulate type, their order depends on the shape of a plane alone. Maxima and places are naive's bit
// for bit; an average may be rounded differently, and differ in the sign of a zero.
// Traffic: input and output once from memory, the rows of a window again from cache; up to 100 kB of stack.
// Limits: floating types; contiguous: a window row and a stride that fit kPoolRow.
#include "isa.h"
#include "parallel.h"
#include "pool.h"
#include "simd.h"

namespace convext::cpu {
namespace {

constexpr int64_t kPoolRow = 4096;     // elements of the padded row, or of a band: 16 kB of float, 32 kB of double
constexpr int64_t kPoolColumns = 512;  // output columns taken at once, at most
constexpr int64_t kPoolWide = 6;       // from this width and stride on, few windows to a row are reduced one by one
constexpr int64_t kPoolSlack = 32;     // two of the longest vectors, read or written past the end of a row

// Output columns per chunk such that stride * pitch <= kPoolRow (see Columns); less than one if there is no room.
int64_t pool_row_columns(const PoolGeometry& g) {
  const int64_t stride = g.stride[2], reach = (g.kernel[2] - 1) * g.dilation[2];
  const int64_t room = kPoolRow / stride - reach / stride - (stride <= 2 ? kPoolSlack / 2 : 0);
  return room < kPoolColumns ? room : kPoolColumns;
}

}  // namespace
}  // namespace convext::cpu

#define CONVEXT_KERNELS "pool_direct.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

using Kernel = void (*)(const PoolArguments& args, int64_t task);

// Tasks of the two layouts: planes, or rows of the output (forward) or of the input (backward).
void run(const PoolArguments& args, const int64_t* size, Kernel plane, Kernel row) {
  const PoolGeometry& g = args.geometry;
  const bool contiguous = g.layout == Layout::contiguous;
  const Kernel kernel = contiguous ? plane : row;
  parallel_for(g.batch * (contiguous ? g.channels : size[0] * size[1]), [&](int64_t task, int) { kernel(args, task); });
}

const char* unsupported(const PoolGeometry& g, DType dtype) {
  if (dtype != DType::float32 && dtype != DType::float64 && dtype != DType::float16 && dtype != DType::bfloat16)
    return "integer elements";
  if (g.layout == Layout::contiguous && pool_row_columns(g) < 1)
    return "a window or stride of more than about 4000 columns in the contiguous layout";
  return nullptr;
}

void max_forward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run(args, args.geometry.output, CONVEXT_SELECT_ISA(max_forward_plane<T>), CONVEXT_SELECT_ISA(max_forward_row<T>));
  });
}
void max_backward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run(args, args.geometry.input, CONVEXT_SELECT_ISA(max_backward_plane<T>), CONVEXT_SELECT_ISA(max_backward_row<T>));
  });
}
void avg_forward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run(args, args.geometry.output, CONVEXT_SELECT_ISA(avg_forward_plane<T>), CONVEXT_SELECT_ISA(avg_forward_row<T>));
  });
}
void avg_backward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run(args, args.geometry.input, CONVEXT_SELECT_ISA(avg_backward_plane<T>), CONVEXT_SELECT_ISA(avg_backward_row<T>));
  });
}

}  // namespace

const PoolAlgorithm pool_direct = {
    "direct", unsupported, max_forward, max_backward, max_pool_indices, avg_forward, avg_backward,
};

}  // namespace convext::cpu
