// Average pooling and its gradient: see pool_direct.cpp.
#include <memory>

#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_average.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

// At stride 1, where all divisors are one, a gradient is an average of dy: its windows are the mirrored ones.
bool mirrors(const PoolGeometry& g) {
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if (g.stride[axis] != 1 || g.pad_before[axis] > (g.kernel[axis] - 1) * g.dilation[axis]) return false;
  return uniform_divisor(g);
}
PoolArguments mirrored(PoolArguments args) {
  PoolGeometry& g = args.geometry;
  if (g.divisor_override == 0) g.divisor_override = g.window();
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    const int64_t reach = (g.kernel[axis] - 1) * g.dilation[axis], input = g.input[axis];
    g.pad_before[axis] = reach - g.pad_before[axis];
    g.pad_after[axis] = reach - g.pad_after[axis];
    g.input[axis] = g.output[axis];
    g.output[axis] = input;
  }
  args.input = args.grad_output;
  return args;
}

// The average of all places of a channels_last image of few channels: parts of it are summed one by one.
constexpr int64_t kAllChannels = 128;        // so many at most
constexpr int64_t kAllPart = 4 * kPoolPart;  // elements of a part, about
template <typename T>
void average_of_all(const PoolArguments& args) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const int64_t places = g.input_places(), channels = g.channels, pitch = kAllChannels + kWidestVector;
  const int64_t wanted = ceil_div(places * channels, kAllPart), parts = wanted < places ? wanted : places;
  const std::unique_ptr<A[]> sums(new A[g.batch * parts * pitch]);
  const auto sum = CONVEXT_SELECT_ISA(avg_sum_places<T>);
  const auto join = CONVEXT_SELECT_ISA(avg_join_sums<T>);
  parallel_for(g.batch * parts, [&](int64_t task, int) {
    const int64_t image = task / parts, part = task % parts;
    const int64_t first = places * part / parts, last = places * (part + 1) / parts;
    sum(static_cast<const T*>(args.input) + (image * places + first) * channels, last - first, channels,
        sums.get() + task * pitch);
  });
  for (int64_t image = 0; image < g.batch; ++image)
    join(sums.get() + image * parts * pitch, parts, pitch, channels, g.divisor(0, 0, 0),
         static_cast<T*>(args.output) + image * channels);
}

}  // namespace

void pool_direct_average(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  if (g.layout == Layout::contiguous && boxes_fit(g)) return pool_boxes_average(args);
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (over_all(g) && g.channels <= kAllChannels && streams_fit(g)) return average_of_all<T>(args);
    run_parts(args, part_channels(g), g.output, CONVEXT_SELECT_ISA(avg_forward<T>));
  });
}
void pool_direct_average_backward(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  if (g.adaptive || (g.layout == Layout::contiguous && over_all(g))) return pool_boxes_average_backward(args);
  if (mirrors(g)) return pool_direct_average(mirrored(args));
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (g.layout == Layout::contiguous)
      run_parts(args, 1, g.input, CONVEXT_SELECT_ISA(avg_backward_plane<T>));
    else
      run_rows(args, CONVEXT_SELECT_ISA(avg_backward_row<T>));
  });
}
void pool_direct_average_part(const PoolArguments& args, const Part& part) {
  dispatch_floating(args.dtype,
                    [&](auto type) { CONVEXT_SELECT_ISA(avg_forward<typename decltype(type)::type>)(args, part); });
}
void pool_direct_average_backward_row(const PoolArguments& args, int64_t row) {
  dispatch_floating(args.dtype,
                    [&](auto type) { CONVEXT_SELECT_ISA(avg_backward_row<typename decltype(type)::type>)(args, row); });
}

}  // namespace convext::cpu
