// What conv_direct_group_weight.inl does with a band: the products of places of dy with what taps see of x, lane by
// lane.
//
//   sums[tap][lane] += sum over places of dy[place][lane] * x[place at tap][lane]
//
// Two ways, to the same bits, for each sum takes its places in their order. Any taps, up to kGroupTaps at a time: a
// load for each multiply-add, and one of dy. Where taps are neighbours and so are places (no stride, no dilation along
// the width), a block of up to 3 x 8 taps: kSlidePlaces places of dy stay in registers while the columns that they see
// pass, and a column meets each of them through another tap: 2 loads for 5 multiply-adds or fewer.
#include "conv_direct_place_weight.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kGroupTaps = 9;  // with as many pointers, and sums in registers

// sums[tap][lane] += x[offset of tap + place] * dy[place], for kTaps taps.
template <typename A, int kTaps>
__attribute__((noinline)) void group_tile(A* sums, const A* x, const int64_t* offset, int64_t x_step, int64_t x_row,
                                          const A* dy, int64_t dy_step, int64_t rows, int64_t columns) {
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kTaps];
#pragma GCC unroll 9
  for (int i = 0; i < kTaps; ++i) sum[i] = load(sums + i * kCount);
  for (int64_t p = 0; p < rows; ++p, x += x_row) {
    const A* from[kTaps];
#pragma GCC unroll 9
    for (int i = 0; i < kTaps; ++i) from[i] = x + offset[i];
    for (int64_t q = 0, at = 0; q < columns; ++q, at += x_step, dy += dy_step) {
      const Vec<A> out = load(dy);
#pragma GCC unroll 9
      for (int i = 0; i < kTaps; ++i) sum[i] += out * load(from[i] + at);
    }
  }
#pragma GCC unroll 9
  for (int i = 0; i < kTaps; ++i) store(sums + i * kCount, sum[i]);
}

template <typename A>
using GroupTile = void (*)(A*, const A*, const int64_t*, int64_t, int64_t, const A*, int64_t, int64_t, int64_t);

template <typename A, int kTaps = kGroupTaps>
GroupTile<A> group_tile_of(int64_t taps) {
  if constexpr (kTaps > 1)
    if (taps < kTaps) return group_tile_of<A, kTaps - 1>(taps);
  return group_tile<A, kTaps>;
}

constexpr int kSlidePlaces = 4;
constexpr int kLeastSlide = 3, kMostSlide = 8;  // taps along the width
constexpr int kMostSlideRows = 3;
constexpr int slide_rows(int wide) {
  return greatest(1, least(kMostSlideRows, (CONVEXT_ISA_LEVEL == 3 ? 24 : 10) / wide));
}

// kPlaces places side by side, and kRows x kWide taps.
template <typename A, int kRows, int kWide, int kPlaces>
CONVEXT_INLINE void slide_places(Vec<A> (&sum)[kRows][kWide], const A* x, int64_t tap_row, const A* dy,
                                 int64_t dy_step) {
  Vec<A> out[kPlaces];
#pragma GCC unroll 4
  for (int i = 0; i < kPlaces; ++i) out[i] = load(dy + i * dy_step);
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < kPlaces + kWide - 1; ++j) {
      Vec<A> in = load(x + r * tap_row + j * kLanes<A>);
      keep(in);
#pragma GCC unroll 4
      for (int i = 0; i < kPlaces; ++i)
        if (j - i >= 0 && j - i < kWide) sum[r][j - i] += out[i] * in;
    }
}

// sums[r][s][lane], rows of taps sums_row apart in sums and tap_row in x; x_row: from a row of dy to the next.
template <typename A, int kRows, int kWide>
__attribute__((noinline)) void slide_tile(A* sums, int64_t sums_row, const A* x, int64_t tap_row, int64_t x_row,
                                          const A* dy, int64_t dy_step, int64_t rows, int64_t columns) {
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kRows][kWide];
#pragma GCC unroll 24
  for (int i = 0; i < kRows * kWide; ++i)
    sum[i / kWide][i % kWide] = load(sums + i / kWide * sums_row + i % kWide * kCount);
  for (int64_t p = 0; p < rows; ++p, x += x_row) {
    const A* from = x;
    int64_t q = 0;
    for (; q + kSlidePlaces <= columns; q += kSlidePlaces, from += kSlidePlaces * kCount, dy += kSlidePlaces * dy_step)
      slide_places<A, kRows, kWide, kSlidePlaces>(sum, from, tap_row, dy, dy_step);
    for (; q < columns; ++q, from += kCount, dy += dy_step)
      slide_places<A, kRows, kWide, 1>(sum, from, tap_row, dy, dy_step);
  }
#pragma GCC unroll 24
  for (int i = 0; i < kRows * kWide; ++i)
    store(sums + i / kWide * sums_row + i % kWide * kCount, sum[i / kWide][i % kWide]);
}

template <typename A>
using SlideTile = void (*)(A*, int64_t, const A*, int64_t, int64_t, const A*, int64_t, int64_t, int64_t);

// rows: at most slide_rows(wide).
template <typename A, int kWide = kMostSlide>
SlideTile<A> slide_tile_of(int64_t rows, int64_t wide) {
  if constexpr (kWide > kLeastSlide)
    if (wide < kWide) return slide_tile_of<A, kWide - 1>(rows, wide);
  constexpr int kMost = slide_rows(kWide);
  return rows == 1   ? slide_tile<A, 1, kWide>
         : rows == 2 ? slide_tile<A, least(2, kMost), kWide>
                     : slide_tile<A, kMost, kWide>;
}

inline bool slides_over(const ConvGeometry& g) {
  return g.stride[2] == 1 && g.dilation[2] == 1 && g.kernel[2] >= kLeastSlide;
}

// The taps of a kernel's chunk, high x wide of them.
struct GroupTaps {
  int64_t high, wide;
  bool slides;            // by the second way
  int64_t tap_row;        // in x, from a row of taps to the next
  const int64_t* offset;  // of each in x

  // Blocks of taps that slide, along the width and the height.
  int64_t across() const { return ceil_div(wide, kMostSlide); }
  int64_t down() const { return ceil_div(high, int64_t(slide_rows(int(ceil_div(wide, across()))))); }
  // Over the places of a band.
  int64_t passes() const { return slides ? across() * down() : ceil_div(high * wide, kGroupTaps); }
};

// All taps: sums[tap][lane].
template <typename A>
void add_taps(const GroupTaps& taps, A* sums, const A* x, int64_t x_step, int64_t x_row, const A* dy, int64_t dy_step,
              int64_t rows, int64_t columns) {
  constexpr int64_t kCount = kLanes<A>;
  if (!taps.slides) {
    const int64_t count = taps.high * taps.wide, chunks = taps.passes();
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = count * i / chunks, some = count * (i + 1) / chunks - first;
      group_tile_of<A>(some)(sums + first * kCount, x, taps.offset + first, x_step, x_row, dy, dy_step, rows, columns);
    }
    return;
  }
  const int64_t down = taps.down(), across = taps.across();
  for (int64_t i = 0; i < down; ++i)
    for (int64_t j = 0; j < across; ++j) {
      const int64_t r = taps.high * i / down, high = taps.high * (i + 1) / down - r;
      const int64_t s = taps.wide * j / across, wide = taps.wide * (j + 1) / across - s;
      slide_tile_of<A>(high, wide)(sums + (r * taps.wide + s) * kCount, taps.wide * kCount,
                                   x + r * taps.tap_row + s * kCount, taps.tap_row, x_row, dy, dy_step, rows, columns);
    }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
