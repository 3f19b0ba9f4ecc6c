// Pools that are done in one way on each device: no table, no choice. Kernels keep the contract of algorithms.h.
//
//   max unpooling     y[n c indices[i]] = x[n c i], zero elsewhere; of several with one index the last. Indices
//                     outside of y are passed over, and on the CPU reported.
//   k-max pooling     the k greatest of a plane in the order of their places; of equal ones the first; NaN above all
//   fractional        a maximum over windows whose starts are drawn along each axis, per plane (fractional_start); the
//                     first greatest, or the last NaN, as in max pooling
//   power averages    (m s)^(1 / p), s the average of x^p over a window and m its places: torch's. On the CPU, for p of
//                     2, 3 and 4, as an eager call; other calls are composed of operators (convext/autograd)
#pragma once
#include <optional>

#include "algorithms.h"

namespace convext {

struct UnpoolArguments {
  DType dtype;
  Layout layout;
  int64_t batch, channels, places_in, places_out;  // of the input and its indices; of the output
  const void* input;                               // for the gradient grad_output, and output is the input's
  const int64_t* indices;
  void* output;
  void* workspace;
  void* stream;
  int64_t row = 0;  // places of the input per step of its first axis; 0: not known
};

struct KMaxArguments {
  DType dtype;
  Layout layout;  // of the input; the outputs are contiguous
  int64_t batch, channels, places, k;
  const void* input;
  void* output;
  int64_t* indices;
  void* stream;
};

// Contiguous throughout. samples: one number in [0, 1) per plane and spatial axis, of the input's dtype.
struct FractionalArguments {
  DType dtype;
  PoolGeometry geometry;  // batch, channels, input, kernel, output
  const void* samples;
  const void* input;
  const void* grad_output;
  const void* places;  // as in max pooling
  void* places_out;
  void* output;
  void* stream;
};

struct PowerArguments {
  PoolArguments pool;  // of the average; for the gradient with input, grad_output and output
  int power;           // 2, 3 or 4
  const void* y;       // for the gradient
};

// Graham, "Fractional max-pooling", 2014, in torch's arithmetic: `round` brings a number to the precision of the
// element type, as torch does after each step. The last window ends where the input does.
template <typename A, typename Round>
CONVEXT_HD int64_t fractional_start(int64_t out, A sample, int64_t input, int64_t kernel, int64_t output,
                                    const Round& round) {
  if (out == output - 1) return input - kernel;
  const A alpha = round(round(A(input - kernel)) / round(A(output - 1)));
  const int64_t start = int64_t(round(round(round(A(out)) + sample) * alpha)) - int64_t(round(sample * alpha));
  return start < 0 ? 0 : start < input - kernel ? start : input - kernel;  // whatever the sample is
}
// The sample of a spatial axis: torch draws width first for images, depth first for volumes.
CONVEXT_HD int fractional_sample(int spatial, int axis) { return spatial == 2 ? kWidth - axis : axis; }

namespace cpu {
// An index that lies outside of the output, if there is one.
std::optional<int64_t> max_unpool(const UnpoolArguments& args);
std::optional<int64_t> max_unpool_backward(const UnpoolArguments& args);
void k_max_pool(const KMaxArguments& args);
void fractional_max_pool(const FractionalArguments& args);
void fractional_max_pool_backward(const FractionalArguments& args);
void fractional_max_pool_indices(const FractionalArguments& args);  // output: int64
void power_pool(const PowerArguments& args);
void power_pool_backward(const PowerArguments& args);
}  // namespace cpu

namespace cuda {
int64_t max_unpool_workspace_bytes(const UnpoolArguments& args);
void max_unpool(const UnpoolArguments& args);
void k_max_pool(const KMaxArguments& args);
void fractional_max_pool(const FractionalArguments& args);
void fractional_max_pool_backward(const FractionalArguments& args);
void fractional_max_pool_indices(const FractionalArguments& args);
}  // namespace cuda

}  // namespace convext
