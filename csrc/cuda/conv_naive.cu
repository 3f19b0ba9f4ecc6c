// Convolution as its definition, on the GPU: the first step of the staircase and the reference of the others.
//
//   y[n, k, o p q] = bias[k] + sum over c, t r s of  x[n, c, source(o p q, t r s)] * w[k, c, t r s]
//
// and its two gradients. A thread per output element in the order of memory, so that a warp writes one line and mostly
// reads one; plain loops in 64 bits, no workspace, no shared memory, everything accepted. Each element is summed by one
// thread in the order of the loops, which is the order of csrc/cpu/conv_naive.cpp. Traffic: two loads and dozens of
// instructions of index arithmetic per multiplication; only the caches stand between that and memory.
#include "../algorithms.h"
#include "dtype.cuh"
#include "launch.cuh"
#include "naive.cuh"

namespace convext::cuda {
namespace {

// The geometry, and what would otherwise be divided for in every thread.
struct Shape {
  ConvGeometry g;
  int64_t inputs, outputs, taps;  // of one group
  Unravel input, output;
  Divide64 by_inputs, by_outputs, by_taps, by_kernel_height, by_kernel_width, by_stride[kMaxSpatial];

  explicit Shape(const ConvGeometry& geometry)
      : g(geometry),
        inputs(g.group_inputs()),
        outputs(g.group_outputs()),
        taps(g.taps()),
        input(g.in_channels, g.input, g.layout),
        output(g.out_channels, g.output, g.layout),
        by_inputs(inputs),
        by_outputs(outputs),
        by_taps(taps),
        by_kernel_height(g.kernel[1]),
        by_kernel_width(g.kernel[2]),
        by_stride{g.stride[0], g.stride[1], g.stride[2]} {}

  __device__ __forceinline__ int64_t weight_offset(int64_t k, int64_t c, int64_t tap) const {
    return (k * inputs + c) * taps + (g.flip_kernel ? taps - 1 - tap : tap);
  }
  // The output place that sees padded place i through `tap`, or -1 if none does.
  __device__ __forceinline__ int64_t seen_by(int axis, int64_t i, int64_t tap) const {
    int64_t a = i + g.pad_before[axis] - tap * g.dilation[axis];
    if (a < 0) return -1;
    const int64_t out = split(a, by_stride[axis]);
    return a != 0 || out >= g.output[axis] ? -1 : out;
  }
};

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void forward_kernel(const Shape shape, const T* __restrict__ x,
                                                              const T* __restrict__ w, const T* __restrict__ bias,
                                                              T* __restrict__ y) {
  const ConvGeometry& g = shape.g;
  for_each_element(g.output_elements(), [&](int64_t element) {
    const Element e = shape.output.element(element);
    const int64_t first = shape.by_outputs.quotient(e.c) * shape.inputs;
    Accumulate<T> sum = 0;
    for (int64_t c = 0; c < shape.inputs; ++c)
      for (int64_t t = 0; t < g.kernel[0]; ++t)
        for (int64_t r = 0; r < g.kernel[1]; ++r)
          for (int64_t s = 0; s < g.kernel[2]; ++s) {
            const Place in = {g.source(0, e.at.d, t), g.source(1, e.at.h, r), g.source(2, e.at.w, s)};
            if (in.d < 0 || in.h < 0 || in.w < 0) continue;
            sum += to_accumulate(x[g.input_offset(e.n, first + c, ravel(in, g.input))]) *
                   to_accumulate(w[shape.weight_offset(e.c, c, ravel({t, r, s}, g.kernel))]);
          }
    if (bias != nullptr) sum += to_accumulate(bias[e.c]);
    y[element] = from_accumulate<T>(sum);
  });
}

// The gradient that one padded input place receives; an input place sums over all it is shown at.
template <typename T>
__device__ __forceinline__ Accumulate<T> padded_gradient(const Shape& shape, const T* __restrict__ dy,
                                                         const T* __restrict__ w, int64_t n, int64_t group, int64_t c,
                                                         Place padded) {
  const ConvGeometry& g = shape.g;
  Accumulate<T> sum = 0;
  for (int64_t t = 0; t < g.kernel[0]; ++t)
    for (int64_t r = 0; r < g.kernel[1]; ++r)
      for (int64_t s = 0; s < g.kernel[2]; ++s) {
        const Place out = {shape.seen_by(0, padded.d, t), shape.seen_by(1, padded.h, r), shape.seen_by(2, padded.w, s)};
        if (out.d < 0 || out.h < 0 || out.w < 0) continue;
        for (int64_t k = group * shape.outputs; k < (group + 1) * shape.outputs; ++k)
          sum += to_accumulate(dy[g.output_offset(n, k, ravel(out, g.output))]) *
                 to_accumulate(w[shape.weight_offset(k, c, ravel({t, r, s}, g.kernel))]);
      }
  return sum;
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void backward_input_kernel(const Shape shape, const T* __restrict__ dy,
                                                                     const T* __restrict__ w, T* __restrict__ dx) {
  const ConvGeometry& g = shape.g;
  for_each_element(g.input_elements(), [&](int64_t element) {
    const Element e = shape.input.element(element);
    const Preimages ds = g.preimages(0, e.at.d), hs = g.preimages(1, e.at.h), ws = g.preimages(2, e.at.w);
    int64_t c = e.c;
    const int64_t group = split(c, shape.by_inputs);
    Accumulate<T> sum = 0;
    for (int64_t a = 0; a < ds.count(); ++a)
      for (int64_t b = 0; b < hs.count(); ++b)
        for (int64_t i = 0; i < ws.count(); ++i)
          sum += padded_gradient(shape, dy, w, e.n, group, c, {ds[a], hs[b], ws[i]});
    dx[element] = from_accumulate<T>(sum);
  });
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void backward_weight_kernel(const Shape shape, const T* __restrict__ dy,
                                                                      const T* __restrict__ x, T* __restrict__ dw) {
  const ConvGeometry& g = shape.g;
  for_each_element(g.out_channels * shape.inputs * shape.taps, [&](int64_t element) {
    int64_t tap = element, c = split(tap, shape.by_taps);
    const int64_t k = split(c, shape.by_inputs), channel = shape.by_outputs.quotient(k) * shape.inputs + c;
    int64_t s = tap, r = split(s, shape.by_kernel_width);
    const int64_t t = split(r, shape.by_kernel_height);
    Accumulate<T> sum = 0;
    for (int64_t n = 0; n < g.batch; ++n)
      for (int64_t o = 0; o < g.output[0]; ++o)
        for (int64_t p = 0; p < g.output[1]; ++p)
          for (int64_t q = 0; q < g.output[2]; ++q) {
            const Place in = {g.source(0, o, t), g.source(1, p, r), g.source(2, q, s)};
            if (in.d < 0 || in.h < 0 || in.w < 0) continue;
            sum += to_accumulate(x[g.input_offset(n, channel, ravel(in, g.input))]) *
                   to_accumulate(dy[g.output_offset(n, k, ravel({o, p, q}, g.output))]);
          }
    dw[shape.weight_offset(k, c, tap)] = from_accumulate<T>(sum);
  });
}

template <typename T>
void forward(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  launch("conv_naive_forward", forward_kernel<T>, grid_for_elements(g.output_elements()), kThreads, 0, args.stream,
         Shape(g), static_cast<const T*>(args.input), static_cast<const T*>(args.weight),
         static_cast<const T*>(args.bias), static_cast<T*>(args.output));
}

template <typename T>
void backward_input(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  launch("conv_naive_backward_input", backward_input_kernel<T>, grid_for_elements(g.input_elements()), kThreads, 0,
         args.stream, Shape(g), static_cast<const T*>(args.grad_output), static_cast<const T*>(args.weight),
         static_cast<T*>(args.output));
}

template <typename T>
void backward_weight(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  launch("conv_naive_backward_weight", backward_weight_kernel<T>, grid_for_elements(g.weight_elements()), kThreads, 0,
         args.stream, Shape(g), static_cast<const T*>(args.grad_output), static_cast<const T*>(args.input),
         static_cast<T*>(args.output));
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }
int64_t workspace_bytes(const ConvGeometry&, DType, Direction) { return 0; }

}  // namespace

const ConvAlgorithm conv_naive = {
    "naive",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { forward<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { backward_input<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { backward_weight<typename decltype(type)::type>(args); });
    },
};

}  // namespace convext::cuda
