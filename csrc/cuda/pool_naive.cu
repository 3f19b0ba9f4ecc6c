// Pooling as its definition, on the GPU: the reference of the others. Over the taps t r s of output o p q that lie
// inside the input, in row-major order:
//
//   max:      y = the first greatest, or the last NaN if there is one; place = its tap
//   average:  y = sum / divisor(o p q)
//
// and the gradients, which an input place gathers, output after output, from the windows that cover it: dy where it won
// (max), dy / divisor (average). A thread per element in the order of memory, plain loops in 64 bits, no shared memory,
// everything accepted: 1 to 3 dimensions, any padding and dilation, adaptive windows, both layouts, integers for the
// maximum. Sums run in the order of csrc/cpu/pool_naive.cpp. Traffic: a load per tap, most of them from the caches.
#include "launch.cuh"
#include "naive.cuh"
#include "pool.cuh"

namespace convext::cuda {
namespace {

// The geometry, and what would otherwise be divided for in every thread.
struct Shape {
  PoolGeometry g;
  Unravel input, output;
  Divide64 by_stride[kMaxSpatial], by_dilation[kMaxSpatial], by_kernel_height, by_kernel_width;

  explicit Shape(const PoolGeometry& geometry)
      : g(geometry),
        input(g.channels, g.input, g.layout),
        output(g.channels, g.output, g.layout),
        by_stride{g.stride[0], g.stride[1], g.stride[2]},
        by_dilation{g.dilation[0], g.dilation[1], g.dilation[2]},
        by_kernel_height(g.kernel[1]),
        by_kernel_width(g.kernel[2]) {}

  __device__ __forceinline__ bool inside(Place at) const {
    return at.d >= 0 && at.d < g.input[0] && at.h >= 0 && at.h < g.input[1] && at.w >= 0 && at.w < g.input[2];
  }
  __device__ __forceinline__ Place seen(Place out, int64_t t, int64_t r, int64_t s) const {
    return {g.place(0, out.d, t), g.place(1, out.h, r), g.place(2, out.w, s)};
  }
  // How many taps output `out` has along one axis.
  __device__ __forceinline__ int64_t taps(int axis, int64_t out) const {
    return g.adaptive ? g.last_tap(axis, out) : g.kernel[axis];
  }
  // The output place that sees input place i of one axis through `tap`, or -1 if none does.
  __device__ __forceinline__ int64_t seen_by(int axis, int64_t i, int64_t tap) const {
    int64_t a = i + g.pad_before[axis] - tap * g.dilation[axis];
    if (a < 0) return -1;
    const int64_t out = split(a, by_stride[axis]);
    return a != 0 || out >= g.output[axis] ? -1 : out;
  }
  // How many taps of output `out` lie below `limit` along one axis.
  __device__ __forceinline__ int64_t taps_below(int axis, int64_t out, int64_t limit) const {
    const int64_t room = limit - g.place(axis, out, 0) + g.dilation[axis] - 1;
    const int64_t taps = room < 0 ? 0 : by_dilation[axis].quotient(room);
    return taps < g.kernel[axis] ? taps : g.kernel[axis];
  }
  __device__ __forceinline__ int64_t counted(int axis, int64_t out) const {
    if (g.adaptive) return taps(axis, out);
    if (g.count_include_pad) return taps_below(axis, out, g.input[axis] + g.pad_after[axis]);
    return taps_below(axis, out, g.input[axis]) - taps_below(axis, out, 0);
  }
  __device__ __forceinline__ int64_t divisor(Place out) const {  // PoolGeometry::divisor
    if (g.divisor_override != 0) return g.divisor_override;
    return counted(0, out.d) * counted(1, out.h) * counted(2, out.w);
  }
};

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void max_forward_kernel(const Shape shape, const T* __restrict__ x,
                                                                  T* __restrict__ y, void* places) {
  using A = Accumulate<T>;
  const PoolGeometry& g = shape.g;
  for_each_element(g.output_elements(), [&](int64_t element) {
    const Element e = shape.output.element(element);
    A best = kLowest<A>;
    int64_t winner = -1;
    const int64_t depths = shape.taps(0, e.at.d), rows = shape.taps(1, e.at.h), columns = shape.taps(2, e.at.w);
    for (int64_t t = 0; t < depths; ++t)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t s = 0; s < columns; ++s) {
          const Place in = shape.seen(e.at, t, r, s);
          if (!shape.inside(in)) continue;
          const A value = to_accumulate(x[g.input_offset(e.n, e.c, ravel(in, g.input))]);
          if (wins(value, best) || winner < 0) best = value, winner = (t * g.kernel[1] + r) * g.kernel[2] + s;
        }
    y[element] = from_accumulate<T>(best);
    if (places != nullptr) store_place(places, g.byte_places(), element, winner < 0 ? 0 : winner);
  });
}

// run(tap, out): every output that sees input place `in`, and the tap it does so through; outputs in row-major order.
template <typename Run>
__device__ __forceinline__ void for_each_output(const Shape& shape, Place in, const Run& run) {
  const PoolGeometry& g = shape.g;
  if (g.adaptive) {
    const Range os = g.spanning(0, in.d), ps = g.spanning(1, in.h), qs = g.spanning(2, in.w);
    for (int64_t o = os.first; o < os.last; ++o)
      for (int64_t p = ps.first; p < ps.last; ++p)
        for (int64_t q = qs.first; q < qs.last; ++q)
          run(ravel({g.tap_of(0, o, in.d), g.tap_of(1, p, in.h), g.tap_of(2, q, in.w)}, g.kernel), Place{o, p, q});
    return;
  }
  int64_t tap = g.window() - 1;
  for (int64_t t = g.kernel[0] - 1; t >= 0; --t)
    for (int64_t r = g.kernel[1] - 1; r >= 0; --r)
      for (int64_t s = g.kernel[2] - 1; s >= 0; --s, --tap) {
        const Place out = {shape.seen_by(0, in.d, t), shape.seen_by(1, in.h, r), shape.seen_by(2, in.w, s)};
        if (out.d >= 0 && out.h >= 0 && out.w >= 0) run(tap, out);
      }
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void max_backward_kernel(const Shape shape, const T* __restrict__ dy,
                                                                   const void* __restrict__ places,
                                                                   T* __restrict__ dx) {
  const PoolGeometry& g = shape.g;
  for_each_element(g.input_elements(), [&](int64_t element) {
    const Element e = shape.input.element(element);
    Accumulate<T> sum = 0;
    for_each_output(shape, e.at, [&](int64_t tap, Place out) {
      const int64_t offset = g.output_offset(e.n, e.c, ravel(out, g.output));
      if (load_place(places, g.byte_places(), offset) == tap) sum += to_accumulate(dy[offset]);
    });
    dx[element] = from_accumulate<T>(sum);
  });
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void avg_forward_kernel(const Shape shape, const T* __restrict__ x,
                                                                  T* __restrict__ y) {
  using A = Accumulate<T>;
  const PoolGeometry& g = shape.g;
  for_each_element(g.output_elements(), [&](int64_t element) {
    const Element e = shape.output.element(element);
    A sum = 0;
    const int64_t depths = shape.taps(0, e.at.d), rows = shape.taps(1, e.at.h), columns = shape.taps(2, e.at.w);
    for (int64_t t = 0; t < depths; ++t)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t s = 0; s < columns; ++s) {
          const Place in = shape.seen(e.at, t, r, s);
          if (shape.inside(in)) sum += to_accumulate(x[g.input_offset(e.n, e.c, ravel(in, g.input))]);
        }
    y[element] = from_accumulate<T>(sum / A(shape.divisor(e.at)));
  });
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void avg_backward_kernel(const Shape shape, const T* __restrict__ dy,
                                                                   T* __restrict__ dx) {
  using A = Accumulate<T>;
  const PoolGeometry& g = shape.g;
  for_each_element(g.input_elements(), [&](int64_t element) {
    const Element e = shape.input.element(element);
    A sum = 0;
    for_each_output(shape, e.at, [&](int64_t, Place out) {
      sum += to_accumulate(dy[g.output_offset(e.n, e.c, ravel(out, g.output))]) / A(shape.divisor(out));
    });
    dx[element] = from_accumulate<T>(sum);
  });
}

// A place outside the input, that of a window wholly outside it, is moved to the input's nearest.
__global__ __launch_bounds__(kThreads, 1) void max_indices_kernel(const Shape shape, const void* __restrict__ places,
                                                                  int64_t* __restrict__ indices) {
  const PoolGeometry& g = shape.g;
  for_each_element(g.output_elements(), [&](int64_t element) {
    const Element e = shape.output.element(element);
    int64_t s = load_place(places, g.byte_places(), element), r = split(s, shape.by_kernel_width);
    const int64_t t = split(r, shape.by_kernel_height);
    const auto clamp = [&](int64_t i, int axis) { return i < 0 ? 0 : i < g.input[axis] ? i : g.input[axis] - 1; };
    const Place in = shape.seen(e.at, t, r, s);
    indices[element] = ravel({clamp(in.d, 0), clamp(in.h, 1), clamp(in.w, 2)}, g.input);
  });
}

const char* unsupported(const PoolGeometry&, DType) { return nullptr; }

}  // namespace

void max_pool_indices(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  launch("pool_naive_max_indices", max_indices_kernel, grid_for_elements(g.output_elements()), kThreads, 0, args.stream,
         Shape(g), args.places, static_cast<int64_t*>(args.output));
}

const PoolAlgorithm pool_naive = {
    "naive",
    unsupported,
    [](const PoolArguments& args) {
      dispatch_all(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch("pool_naive_max_forward", max_forward_kernel<T>, grid_for_elements(args.geometry.output_elements()),
               kThreads, 0, args.stream, Shape(args.geometry), static_cast<const T*>(args.input),
               static_cast<T*>(args.output), args.places_out);
      });
    },
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch("pool_naive_max_backward", max_backward_kernel<T>, grid_for_elements(args.geometry.input_elements()),
               kThreads, 0, args.stream, Shape(args.geometry), static_cast<const T*>(args.grad_output), args.places,
               static_cast<T*>(args.output));
      });
    },
    max_pool_indices,
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch("pool_naive_avg_forward", avg_forward_kernel<T>, grid_for_elements(args.geometry.output_elements()),
               kThreads, 0, args.stream, Shape(args.geometry), static_cast<const T*>(args.input),
               static_cast<T*>(args.output));
      });
    },
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch("pool_naive_avg_backward", avg_backward_kernel<T>, grid_for_elements(args.geometry.input_elements()),
               kThreads, 0, args.stream, Shape(args.geometry), static_cast<const T*>(args.grad_output),
               static_cast<T*>(args.output));
      });
    },
};

}  // namespace convext::cuda
