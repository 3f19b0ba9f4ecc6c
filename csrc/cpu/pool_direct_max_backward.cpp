// The gradient of max pooling: see pool_direct.cpp.
#include <memory>

#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_max_backward.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

// A task has `lanes` channels of an image; where these are stored in halves they are added up in memory of their own.
template <typename T>
void backward_adaptive(const PoolArguments& args, int64_t lanes) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const int64_t blocks = ceil_div(g.channels, lanes);
  parallel_for(g.batch * blocks, [&](int64_t task, int) {
    const int64_t first = task % blocks * lanes;
    const std::unique_ptr<A[]> sum(sizeof(T) == sizeof(A) ? nullptr : new A[g.input_places() * lanes]);
    CONVEXT_SELECT_ISA(max_backward_boxes<T>)
    (args, task / blocks, {first, first + lanes < g.channels ? first + lanes : g.channels}, sum.get());
  });
}

}  // namespace

// A task has some planes of a contiguous image; of a channels_last one some channels, or a row of places where so few
// outputs see one that looking at all of them is faster.
void pool_direct_max_backward(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int inner = band_channels(sizeof(Accumulate<T>));
    if (g.adaptive)
      backward_adaptive<T>(args, g.layout == Layout::contiguous ? 1 : inner);
    else if (g.layout == Layout::contiguous)
      run_parts(args, kPoolPlanes, g.input, CONVEXT_SELECT_ISA(max_backward_planes<T>));
    else if (most_seers(g) > kPoolSeers && scatter_of(g, inner).columns > 0)
      run_parts(args, inner, g.input, CONVEXT_SELECT_ISA(max_backward_channels<T>));
    else
      run_rows(args, CONVEXT_SELECT_ISA(max_backward_row<T>));
  });
}

}  // namespace convext::cpu
