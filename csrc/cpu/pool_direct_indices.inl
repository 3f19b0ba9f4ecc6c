// Indices of winners, a vector at a time: see pool_direct_indices.cpp.

#include "pool_direct.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kIndicesAtOnce = 256;

// tap / divisor for a tap of a byte: that many 2^16ths, rounded up, are exact.
CONVEXT_INLINE IndexVec<float> quotient(IndexVec<float> tap, IndexVec<float> factor) { return (tap * factor) >> 16; }
CONVEXT_INLINE IndexVec<float> factor_of(int32_t divisor) {
  return splat_index<float>(divisor > 256 ? 0 : ((1 << 16) + divisor - 1) / divisor);
}

// What a vector of places is: distances from the window's first. kDeep: windows of several depths.
template <bool kDeep>
struct Distance {
  IndexVec<float> step, row, row_factor, depth, depth_factor;

  CONVEXT_INLINE explicit Distance(const TapDistances& d)
      : step(splat_index<float>(d.step)),
        row(splat_index<float>(d.row)),
        row_factor(factor_of(d.columns)),
        depth(splat_index<float>(d.depth)),
        depth_factor(factor_of(d.places)) {}
  CONVEXT_INLINE IndexVec<float> of(IndexVec<float> tap) const {
    const IndexVec<float> flat = tap * step + quotient(tap, row_factor) * row;
    return kDeep ? flat + quotient(tap, depth_factor) * depth : flat;
  }
};

// `count` outputs, whose windows begin at starts[0], starts[1] and so on, or where kEach is false all at starts[0]. The
// first step makes indices of 32 bits on the stack, the second widens them.
template <bool kEach, bool kDeep>
CONVEXT_INLINE void indices_of(const Distance<kDeep>& distance, int32_t inputs, const int32_t* starts,
                               const uint8_t* places, int64_t count, int64_t* indices) {
  constexpr int64_t kL = kLanes<float>, kHalf = kLanes<double>;
  using Narrow = typename PlacesType<double, int32_t>::type;
  const IndexVec<float> zero = {}, end = splat_index<float>(inputs);
  int32_t found[kIndicesAtOnce];
  for (int64_t first = 0; first < count; first += kIndicesAtOnce) {
    const int64_t some = least(count - first, kIndicesAtOnce);
    for (int64_t i = 0; i < some; i += kL) {
      const IndexVec<float> start = kEach ? load_index<float>(starts + first + i) : splat_index<float>(starts[0]);
      const IndexVec<float> at = start + distance.of(load_places<float>(places + first + i, some - i));
      store_index<float>(found + i, (at >= zero) & (at < end) & at);
    }
    int64_t i = 0;
    for (; i + kHalf <= some; i += kHalf)
      store_index<double>(indices + first + i,
                          __builtin_convertvector(*reinterpret_cast<const Narrow*>(found + i), IndexVec<double>));
    for (; i < some; ++i) indices[first + i] = found[i];
  }
}

template <bool kDeep>
CONVEXT_INLINE void indices_of_places(const TapDistances& distances, const int32_t* starts, const uint8_t* places,
                                      int64_t count, int64_t channels, int64_t* indices) {
  const Distance<kDeep> distance(distances);
  if (channels == 1) return indices_of<true>(distance, distances.inputs, starts, places, count, indices);
  for (int64_t i = 0; i < count; ++i)
    indices_of<false>(distance, distances.inputs, starts + i, places + i * channels, channels, indices + i * channels);
}
// The indices of `count` output places, whose windows begin at `starts`, all channels of one behind each other. What
// would be outside of the plane is 0. starts has kWidestVector elements more.
void find_indices(const TapDistances& distances, const int32_t* starts, const uint8_t* places, int64_t count,
                  int64_t channels, int64_t* indices) {
  distances.depth != 0 ? indices_of_places<true>(distances, starts, places, count, channels, indices)
                       : indices_of_places<false>(distances, starts, places, count, channels, indices);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
