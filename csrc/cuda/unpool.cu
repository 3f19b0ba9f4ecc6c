// Max unpooling: see other_pools.h. Two passes without atomics on numbers: the first leaves, at every output place, the
// last input place that names it (owner, in the workspace: a maximum of integers, the same in whatever order); the
// second writes that input's number there, or zero. Elements are moved by their size. Traffic: indices once, owners
// three times.
#include "../other_pools.h"
#include "dtype.cuh"
#include "launch.cuh"
#include "naive.cuh"

namespace convext::cuda {
namespace {

struct Task {
  int64_t in_places, out_places, channels;
  Divide64 by_in_places, by_out_places, by_channels;
  bool contiguous;

  explicit Task(const UnpoolArguments& args)
      : in_places(args.places_in),
        out_places(args.places_out),
        channels(args.channels),
        by_in_places(args.places_in),
        by_out_places(args.places_out),
        by_channels(args.channels),
        contiguous(args.layout == Layout::contiguous) {}

  // The place and the plane of an element of the input (output), and where place `at` of a plane of the other is.
  __device__ __forceinline__ int64_t split_plane(int64_t element, const Divide64& by_places, int64_t* place) const {
    if (contiguous) {
      const int64_t plane = split(element, by_places);
      *place = element;
      return plane;
    }
    int64_t row = split(element, by_channels);
    const int64_t image = split(row, by_places);
    *place = row;
    return image * channels + element;
  }
  __device__ __forceinline__ int64_t offset(int64_t plane, int64_t place, int64_t places) const {
    if (contiguous) return plane * places + place;
    const int64_t image = split(plane, by_channels);
    return (image * places + place) * channels + plane;
  }
};

__global__ __launch_bounds__(kThreads, 1) void clear_kernel(int64_t elements, int64_t* __restrict__ owners) {
  for_each_element(elements, [&](int64_t i) { owners[i] = -1; });
}

__global__ __launch_bounds__(kThreads, 1) void claim_kernel(const Task task, int64_t elements,
                                                            const int64_t* __restrict__ indices,
                                                            int64_t* __restrict__ owners) {
  for_each_element(elements, [&](int64_t i) {
    const int64_t at = indices[i];
    if (at < 0 || at >= task.out_places) return;
    int64_t place;
    const int64_t plane = task.split_plane(i, task.by_in_places, &place);
    atomicMax(reinterpret_cast<long long*>(owners + task.offset(plane, at, task.out_places)),
              static_cast<long long>(place));
  });
}

template <typename E>
__global__ __launch_bounds__(kThreads, 1) void fill_kernel(const Task task, int64_t elements, const E* __restrict__ x,
                                                           const int64_t* __restrict__ owners, E* __restrict__ y) {
  for_each_element(elements, [&](int64_t i) {
    const int64_t owner = owners[i];
    int64_t place;
    const int64_t plane = task.split_plane(i, task.by_out_places, &place);
    y[i] = owner < 0 ? E(0) : x[task.offset(plane, owner, task.in_places)];
  });
}

template <typename E>
void fill(const UnpoolArguments& args, int64_t elements) {
  launch("unpool_fill", fill_kernel<E>, grid_for_elements(elements), kThreads, 0, args.stream, Task(args), elements,
         static_cast<const E*>(args.input), static_cast<const int64_t*>(args.workspace), static_cast<E*>(args.output));
}

}  // namespace

int64_t max_unpool_workspace_bytes(const UnpoolArguments& args) {
  return 8 * args.batch * args.channels * args.places_out;
}

void max_unpool(const UnpoolArguments& args) {
  const int64_t planes = args.batch * args.channels, in = planes * args.places_in, out = planes * args.places_out;
  int64_t* owners = static_cast<int64_t*>(args.workspace);
  launch("unpool_clear", clear_kernel, grid_for_elements(out), kThreads, 0, args.stream, out, owners);
  launch("unpool_claim", claim_kernel, grid_for_elements(in), kThreads, 0, args.stream, Task(args), in, args.indices,
         owners);
  switch (args.dtype) {
    case DType::float64:
    case DType::int64: return fill<uint64_t>(args, out);
    case DType::float32:
    case DType::int32: return fill<uint32_t>(args, out);
    case DType::uint8:
    case DType::int8: return fill<uint8_t>(args, out);
    default: return fill<uint16_t>(args, out);
  }
}

}  // namespace convext::cuda
