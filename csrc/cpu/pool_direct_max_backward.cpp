// The gradient of max pooling: see pool_direct.cpp.
#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_max_backward.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
// A task has some planes of a contiguous image; of a channels_last one some channels, or a row of places where so few
// outputs see one that looking at all of them is faster.
void pool_direct_max_backward(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  if (g.adaptive || over_all(g)) return pool_boxes_max_backward(args);
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int inner = band_channels(sizeof(Accumulate<T>)), lanes = CONVEXT_SELECT_ISA(max_backward_lanes<T>);
    const bool expanded =
        g.layout == Layout::contiguous ? g.byte_places() && halves_fit(g, lanes) : g.window() <= kPoolExpanded;
    if (sparse_winners(g) && !expanded) return pool_boxes_max_backward(args);
    if (winners_pay(g)) {
      if (g.layout == Layout::contiguous)
        return run_parts(args, kPoolWonPlanes, g.input, CONVEXT_SELECT_ISA(max_backward_winners_planes<T>));
      return run_parts(args, kPoolWon, g.input, CONVEXT_SELECT_ISA(max_backward_winners_channels<T>));
    }
    if (g.layout == Layout::contiguous)
      run_parts(args, kPoolPlanes, g.input, CONVEXT_SELECT_ISA(max_backward_planes<T>));
    else if (most_seers(g) > kPoolSeers && scatter_of(g, inner).columns > 0)
      run_parts(args, inner, g.input, CONVEXT_SELECT_ISA(max_backward_channels<T>));
    else
      run_rows(args, CONVEXT_SELECT_ISA(max_backward_row<T>));
  });
}

}  // namespace convext::cpu
