// Depthwise convolution of a block of channels, as wide as a panel of gemm's, that lies alone in first-level cache:
// rows of places, kBlockVectors vectors each, with their padding on both sides. A register tile is kBlockPlaces output
// places of one vector; every load has a constant distance, and each loaded vector serves all outputs that see it.
// Sums run in the order of conv_direct_lanes.inl's: bits are the same.
#include "finish_registers.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kBlockVectors = 2;

// sum[q] += a kernel row of kTaps.
template <typename A, int kStep, int kTaps>
CONVEXT_INLINE void add_taps(Vec<A> (&sum)[kBlockPlaces], const A* x, const A* w) {
  constexpr int kCount = kLanes<A>, kLoads = (kBlockPlaces - 1) * kStep + kTaps;
  Vec<A> factor[kTaps];
#pragma GCC unroll 8
  for (int s = 0; s < kTaps; ++s) factor[s] = load(w + s * kCount);
#pragma GCC unroll 32
  for (int j = 0; j < kLoads; ++j) {
    Vec<A> value = load(x + j * kBlockVectors * kCount);
    keep(value);
#pragma GCC unroll 8
    for (int q = 0; q < kBlockPlaces; ++q) {
      const int s = j - q * kStep;
      if (s >= 0 && s < kTaps) sum[q] += value * factor[s];
    }
  }
}

template <typename A, int kStep, int kTaps>
void depthwise_rows(const DepthwiseBlock<A>& b) {
  A* y = b.y;
  constexpr int64_t kCount = kLanes<A>, kPlace = kBlockVectors * kCount;
  for (int64_t p = b.begin; p < b.end; ++p, y += b.y_row) {
    const int64_t top = p * b.stride - b.before;
    int64_t first = 0, last = b.kernel;  // the kernel rows that see the image
    while (first < last && top + first * b.dilation < 0) ++first;
    while (first < last && top + (last - 1) * b.dilation >= b.height) --last;
    const A* row = b.x + (top + first * b.dilation - b.x_first) * b.pitch;
    for (int64_t next = 0; next < b.columns; next += kBlockPlaces) {
      const int64_t q = least(next, b.columns - kBlockPlaces);  // the last tile may repeat some
      for (int64_t v = 0; v < b.vectors; ++v) {
        Vec<A> sum[kBlockPlaces];
        const Vec<A> start = b.bias == nullptr ? Vec<A>{} : load(b.bias + v * kCount);
#pragma GCC unroll 8
        for (int i = 0; i < kBlockPlaces; ++i) sum[i] = start;
        const A* x = row + q * kStep * kPlace + v * kCount;
        const A* w = b.w + (v * b.kernel + first) * kTaps * kCount;
        for (int64_t r = first; r < last; ++r, x += b.dilation * b.pitch, w += kTaps * kCount)
          add_taps<A, kStep, kTaps>(sum, x, w);
        if (b.finish != nullptr) {
          const Ends<A> ends(*b.finish);
#pragma GCC unroll 8
          for (int i = 0; i < kBlockPlaces; ++i) sum[i] = ends(sum[i], nullptr, kCount);
        }
        A* to = y + q * b.y_place + v * kCount;
#pragma GCC unroll 8
        for (int i = 0; i < kBlockPlaces; ++i) store(to + i * b.y_place, sum[i]);
      }
    }
  }
}

// Null where there is none.
template <typename A>
DepthwiseRun<A> depthwise_run(int64_t step, int64_t taps) {
  if (taps == 3) return step == 1 ? depthwise_rows<A, 1, 3> : step == 2 ? depthwise_rows<A, 2, 3> : nullptr;
  if (taps == 5) return step == 1 ? depthwise_rows<A, 1, 5> : step == 2 ? depthwise_rows<A, 2, 5> : nullptr;
  return nullptr;
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
