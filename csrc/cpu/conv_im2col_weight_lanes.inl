// What the kernels of im2col's gradients of the weight share: channels turned into lanes, sums turned back.
#include "conv_direct_tile.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kAheadElements = 1024;  // packed from afar: asked for so long before

// to[panel][place][lane] from `channels` channels, the lanes past them zero; panels are `panel` elements apart.
template <typename T>
void pack_lanes(const T* from, bool channels_last, int64_t step, int64_t channels, int64_t places, Accumulate<T>* to,
                int64_t width, int64_t panel) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  if (channels_last) {
    const int64_t whole = channels / width * width;
    const int64_t ahead = ceil_div(kAheadElements, step) * step;
    for (int64_t m = 0; m < places; ++m, from += step, to += width) {
      A* at = to;
      if (width == 2 * kCount)
        for (int64_t k = 0; k < whole; k += 2 * kCount, at += panel) {
          __builtin_prefetch(from + ahead + k);
          store(at, load(from + k));
          store(at + kCount, load(from + k + kCount));
        }
      else
        for (int64_t k = 0; k < whole; k += kCount, at += panel) store(at, load(from + k));
      for (int64_t k = whole, i = 0; k < channels; k += kCount, i += kCount)
        store(at + i, channels - k >= kCount ? load(from + k) : load_some(from + k, 0, channels - k));
    }
    to -= places * width;
    if (whole < channels)  // the vector without channels
      for (int64_t k = whole + round_up(channels - whole, kCount); k < whole + width; k += kCount)
        for (int64_t m = 0; m < places; ++m) store(to + whole / width * panel + m * width + k - whole, Vec<A>{});
    return;
  }
  for (int64_t k = 0; k < round_up(channels, width); k += kCount, from += kCount * step) {
    A* at = to + k / width * panel + k % width;
    const int64_t some = clamp(channels - k, 0, kCount);
    int64_t m = 0;
    if (some == kCount)
      for (; m + kCount <= places; m += kCount) turn_square<T>(from + m, step, at + m * width, width);
    for (; m < places; m += kCount) turn_rest(from + m, step, some, least(places - m, kCount), at + m * width, width);
  }
}

// to[lane * step + row] = from[row * width + lane]
template <typename T>
void store_turned(const Accumulate<T>* from, int64_t width, int64_t rows, int64_t lanes, T* to, int64_t step) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  for (int64_t k = 0; k < lanes; k += kCount)
    for (int64_t i = 0; i < rows; i += kCount) {
      Vec<A> v[kCount];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kCount; ++j) v[j] = i + j < rows ? load(from + (i + j) * width + k) : Vec<A>{};
      transpose_lanes<A>(v);
      T* corner = to + k * step + i;
      for (int64_t j = 0; j < least(lanes - k, kCount); ++j, corner += step)
        if (i + kCount <= rows)
          store(corner, v[j]);
        else
          store_some(corner, v[j], rows - i, 1);
    }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
