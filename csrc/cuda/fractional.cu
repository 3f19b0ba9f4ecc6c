// Fractional max pooling: see other_pools.h. A thread per output looks at its window; a thread per input place gathers,
// in their order, the dy of the outputs that it won: along an axis those whose windows show it are neighbours, found
// from its place by division and then by looking. No atomics. Starts are computed where they are needed.
#include "../other_pools.h"
#include "dtype.cuh"
#include "launch.cuh"
#include "naive.cuh"
#include "pool.cuh"

namespace convext::cuda {
namespace {

template <typename T>
struct Rounded {
  __device__ __forceinline__ Accumulate<T> operator()(Accumulate<T> x) const {
    return to_accumulate(from_accumulate<T>(x));
  }
};

template <typename T>
struct Task {
  PoolGeometry g;
  Unravel input, output;
  Divide64 by_kernel_height, by_kernel_width;
  const T* samples;

  explicit Task(const FractionalArguments& args)
      : g(args.geometry),
        input(g.channels, g.input, Layout::contiguous),
        output(g.channels, g.output, Layout::contiguous),
        by_kernel_height(g.kernel[1]),
        by_kernel_width(g.kernel[2]),
        samples(static_cast<const T*>(args.samples)) {}

  __device__ __forceinline__ int64_t start(int64_t plane, int axis, int64_t out) const {
    if (axis < kMaxSpatial - g.spatial) return 0;
    const auto sample = to_accumulate(samples[plane * g.spatial + fractional_sample(g.spatial, axis)]);
    return fractional_start(out, sample, g.input[axis], g.kernel[axis], g.output[axis], Rounded<T>());
  }
  __device__ __forceinline__ Place starts(int64_t plane, Place out) const {
    return {start(plane, 0, out.d), start(plane, 1, out.h), start(plane, 2, out.w)};
  }
  // The outputs that may show input place i of an axis, a few more included: starts lie within two of the straight
  // line, but for what 16 bits round off.
  __device__ __forceinline__ Range near(int axis, int64_t i) const {
    const int64_t room = g.input[axis] - g.kernel[axis], steps = g.output[axis] - 1;
    if (steps == 0 || room == 0) return {0, g.output[axis]};
    const int64_t slack = 2 + 2 * steps / room + (sizeof(T) == 2 ? steps / 32 : 0);
    const int64_t first = (i - g.kernel[axis] + 1) * steps / room - slack, last = i * steps / room + slack + 1;
    return {first > 0 ? first : 0, last < steps ? last : g.output[axis]};
  }
};

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void forward_kernel(const Task<T> task, const T* __restrict__ x,
                                                              T* __restrict__ y, void* places) {
  using A = Accumulate<T>;
  const PoolGeometry& g = task.g;
  for_each_element(g.output_elements(), [&](int64_t element) {
    const Element e = task.output.element(element);
    const int64_t plane = e.n * g.channels + e.c;
    const Place start = task.starts(plane, e.at);
    A best = kLowest<A>;
    int64_t winner = 0, tap = 0;
    for (int64_t t = 0; t < g.kernel[0]; ++t)
      for (int64_t r = 0; r < g.kernel[1]; ++r)
        for (int64_t s = 0; s < g.kernel[2]; ++s, ++tap) {
          const Place in = {start.d + t, start.h + r, start.w + s};
          const A value = to_accumulate(x[plane * g.input_places() + ravel(in, g.input)]);
          if (wins(value, best)) best = value, winner = tap;
        }
    y[element] = from_accumulate<T>(best);
    if (places != nullptr) store_place(places, g.byte_places(), element, winner);
  });
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void backward_kernel(const Task<T> task, const T* __restrict__ dy,
                                                               const void* __restrict__ places, T* __restrict__ dx) {
  const PoolGeometry& g = task.g;
  for_each_element(g.input_elements(), [&](int64_t element) {
    const Element e = task.input.element(element);
    const int64_t plane = e.n * g.channels + e.c;
    const Range os = task.near(0, e.at.d), ps = task.near(1, e.at.h), qs = task.near(2, e.at.w);
    Accumulate<T> sum = 0;
    for (int64_t o = os.first; o < os.last; ++o) {
      const int64_t t = e.at.d - task.start(plane, 0, o);
      if (t < 0 || t >= g.kernel[0]) continue;
      for (int64_t p = ps.first; p < ps.last; ++p) {
        const int64_t r = e.at.h - task.start(plane, 1, p);
        if (r < 0 || r >= g.kernel[1]) continue;
        for (int64_t q = qs.first; q < qs.last; ++q) {
          const int64_t s = e.at.w - task.start(plane, 2, q);
          if (s < 0 || s >= g.kernel[2]) continue;
          const int64_t at = plane * g.output_places() + ravel({o, p, q}, g.output);
          if (load_place(places, g.byte_places(), at) == (t * g.kernel[1] + r) * g.kernel[2] + s)
            sum += to_accumulate(dy[at]);
        }
      }
    }
    dx[element] = from_accumulate<T>(sum);
  });
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void indices_kernel(const Task<T> task, const void* __restrict__ places,
                                                              int64_t* __restrict__ indices) {
  const PoolGeometry& g = task.g;
  for_each_element(g.output_elements(), [&](int64_t element) {
    const Element e = task.output.element(element);
    const Place start = task.starts(e.n * g.channels + e.c, e.at);
    int64_t s = load_place(places, g.byte_places(), element), r = split(s, task.by_kernel_width);
    const int64_t t = split(r, task.by_kernel_height);
    indices[element] = ravel({start.d + t, start.h + r, start.w + s}, g.input);
  });
}

}  // namespace

void fractional_max_pool(const FractionalArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("fractional_forward", forward_kernel<T>, grid_for_elements(args.geometry.output_elements()), kThreads, 0,
           args.stream, Task<T>(args), static_cast<const T*>(args.input), static_cast<T*>(args.output),
           args.places_out);
  });
}
void fractional_max_pool_backward(const FractionalArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("fractional_backward", backward_kernel<T>, grid_for_elements(args.geometry.input_elements()), kThreads, 0,
           args.stream, Task<T>(args), static_cast<const T*>(args.grad_output), args.places,
           static_cast<T*>(args.output));
  });
}
void fractional_max_pool_indices(const FractionalArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("fractional_indices", indices_kernel<T>, grid_for_elements(args.geometry.output_elements()), kThreads, 0,
           args.stream, Task<T>(args), args.places, static_cast<int64_t*>(args.output));
  });
}

}  // namespace convext::cuda
