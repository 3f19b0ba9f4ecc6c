// Vector code of interleave.h.
namespace convext::cpu::CONVEXT_ISA {
namespace {

// Vector kVector of the kChannels that x makes. Element e of all is that of channel e % kChannels at place e /
// kChannels: lanes of each channel from the third on are put among those that are there.
template <int kVector, int kChannels, int... kLane>
CONVEXT_INLINE Vec<float> side_by_side(const Vec<float> (&x)[kChannels], std::integer_sequence<int, kLane...>) {
  constexpr int lanes = kLanes<float>, first = kVector * lanes;
  Vec<float> y = __builtin_shufflevector(
      x[0], x[1], ((first + kLane) % kChannels == 1 ? lanes : 0) + (first + kLane) / kChannels...);
  if constexpr (kChannels > 2)
    y = __builtin_shufflevector(y, x[2],
                                ((first + kLane) % kChannels == 2 ? lanes + (first + kLane) / kChannels : kLane)...);
  if constexpr (kChannels > 3)
    y = __builtin_shufflevector(y, x[3],
                                ((first + kLane) % kChannels == 3 ? lanes + (first + kLane) / kChannels : kLane)...);
  return y;
}

template <int kChannels, int... kVector>
CONVEXT_INLINE void store_side_by_side(const Vec<float> (&x)[kChannels], float* y,
                                       std::integer_sequence<int, kVector...>) {
  (store(y + kVector * kLanes<float>, side_by_side<kVector>(x, LaneSequence<float>())), ...);
}

// x: from plane to plane `apart`.
template <int kChannels>
void interleave_places(const float* x, int64_t apart, int64_t places, float* y) {
  constexpr int64_t lanes = kLanes<float>;
  int64_t i = 0;
  for (; i + lanes <= places; i += lanes, y += kChannels * lanes) {
    Vec<float> plane[kChannels];
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) plane[c] = load(x + c * apart + i);
    store_side_by_side(plane, y, std::make_integer_sequence<int, kChannels>());
  }
  for (; i < places; ++i)
    for (int c = 0; c < kChannels; ++c) *y++ = x[c * apart + i];
}

using Interleave = void (*)(const float* x, int64_t apart, int64_t places, float* y);
constexpr Interleave kInterleave[] = {interleave_places<2>, interleave_places<3>, interleave_places<4>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
