// The gradient of a maximum over small windows that overlap, in the contiguous layout: every input place looks at all
// outputs that see it.
//
// For an input row, first across: a vector of outputs at a time, for each column s of the window, dy of those that won
// there in the rows of outputs that see it. One load of dy and of places serves all columns. Then along: an input place
// sums one element of each column's sums, of which those of neighbours come from this vector and the one before or
// behind, all in registers; at stride 2 every other column goes to the even places, every other to the odd. Traffic: dx
// once; dy and places from cache for each row of the window but one. Instructions: a comparison and an addition per
// output and place of its window. Limits: those of gather_fits.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// The outputs that see an input row: where they begin, and the first tap of the kernel row that they see it through.
struct GatherRows {
  int64_t count, at[kPoolRows], tap[kPoolRows];
};

// Those of the lanes from q on that lie in [0, count).
template <typename A>
struct LanesThere {
  int first = 0, last = kLanes<A>;

  CONVEXT_INLINE LanesThere() {}
  CONVEXT_INLINE LanesThere(int64_t q, int64_t count)
      : first(int(least(greatest(-q, int64_t(0)), int64_t(kLanes<A>)))),
        last(int(greatest(least(count - q, int64_t(kLanes<A>)), int64_t(0)))) {}
  CONVEXT_INLINE bool none() const { return first >= last; }
  template <typename T>
  CONVEXT_INLINE Vec<A> load(const T* p) const {
    return load_part(p, first, last);
  }
  CONVEXT_INLINE WonPlaces<A> load_won(const uint8_t* p) const { return WonPlaces<A>(p, first, last); }
};

// The lanes of a after the first `by` of them, followed by b's.
template <int by, typename A>
CONVEXT_INLINE Vec<A> joined_after(Vec<A> a, Vec<A> b) {
  if constexpr (by == kLanes<A>) return b;
#if CONVEXT_ISA_LEVEL == 2
  const __m256i from = reinterpret_cast<__m256i>(a), to = reinterpret_cast<__m256i>(b);
  const __m256i middle = _mm256_permute2x128_si256(from, to, 0x21);
  constexpr int bytes = by * int(sizeof(A));
  if constexpr (bytes < 16) return reinterpret_cast<Vec<A>>(_mm256_alignr_epi8(middle, from, bytes));
  if constexpr (bytes >= 16) return reinterpret_cast<Vec<A>>(_mm256_alignr_epi8(to, middle, bytes - 16));
#endif
  return __builtin_shuffle(a, b, lane_numbers<A>() + by);
}

// Of the outputs [q, q + kL), of which [0, outputs) are there, what each column of the window won in the rows that are
// looked at: kRows, or as many as there are. kWhole: all of them are there.
template <int kKernel, int kRows, bool kWhole, typename T>
CONVEXT_INLINE void sum_columns(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t q, int64_t outputs,
                                Vec<Accumulate<T>>* column) {
  using A = Accumulate<T>;
  const LanesThere<A> there = kWhole ? LanesThere<A>() : LanesThere<A>(q, outputs);
#pragma GCC unroll 5
  for (int s = 0; s < kKernel; ++s) column[s] = Vec<A>{};
  if (!kWhole && there.none()) return;
#pragma GCC unroll 5
  for (int64_t i = 0; i < (kRows > 0 ? kRows : rows.count); ++i) {
    const int64_t at = rows.at[i] + q;
    const Vec<A> value = kWhole ? load(dy + at) : there.load(dy + at);
    const WonPlaces<A> won = (kWhole ? WonPlaces<A>(places + at) : there.load_won(places + at)).minus(int(rows.tap[i]));
#pragma GCC unroll 5
    for (int s = 0; s < kKernel; ++s) column[s] = won.add_where(s, column[s], value);
  }
}

// `width` neighbours of the input at stride 1, seen by `outputs` neighbours. Place w is seen by output w + pad through
// the first column of the window, by the one before through the second.
template <int kKernel, bool kWhole, typename T>
CONVEXT_INLINE void write_along(const Vec<Accumulate<T>>* before, const Vec<Accumulate<T>>* now, int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> sum = now[0] + joined_after<kL - 1, A>(before[1], now[1]);
  sum += joined_after<kL - 2, A>(before[2], now[2]);
  if constexpr (kKernel == 5) {
    sum += joined_after<kL - 3, A>(before[3], now[3]);
    sum += joined_after<kL - 4, A>(before[4], now[4]);
  }
  kWhole ? store(dx, sum) : store_first(dx, sum, n);
}
template <int kKernel, int kRows, typename T>
void gather_row(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t pad, int64_t outputs, int64_t width,
                T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> before[kKernel], now[kKernel];
  sum_columns<kKernel, kRows, false>(dy, places, rows, pad - kL, outputs, before);
  int64_t w = 0;
  for (const int64_t whole = least(outputs - pad, width) - kL; w <= whole; w += kL) {
    sum_columns<kKernel, kRows, true>(dy, places, rows, w + pad, outputs, now);
    write_along<kKernel, true>(before, now, kL, dx + w);
#pragma GCC unroll 5
    for (int s = 1; s < kKernel; ++s) before[s] = now[s];
  }
  for (; w < width; w += kL) {
    sum_columns<kKernel, kRows, false>(dy, places, rows, w + pad, outputs, now);
    write_along<kKernel, false>(before, now, width - w, dx + w);
#pragma GCC unroll 5
    for (int s = 1; s < kKernel; ++s) before[s] = now[s];
  }
}

// kL outputs at stride 2, whose window has 3 columns, make 2 * kL places; `last` are the sums of a vector of them,
// `next` those of the next. kOdd: the first place, one of `last`, is seen through the second column of a window, the
// next through the third and by the next output through the first; else the first, one of `next`, through the first
// and by the output before through the third.
template <bool kOdd, bool kWhole, typename T>
CONVEXT_INLINE void write_pairs(const Vec<Accumulate<T>>* last, const Vec<Accumulate<T>>* next, int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  const Vec<A> first = kOdd ? last[1] : next[0] + joined_after<kL - 1, A>(last[2], next[2]);
  const Vec<A> second = kOdd ? last[2] + joined_after<1, A>(last[0], next[0]) : next[1];
  const Vec<A> low = interleave_low<A>(first, second), high = interleave_high<A>(first, second);
  kWhole ? store(dx, low) : store_first(dx, low, n);
  if (kWhole || n > kL) kWhole ? store(dx + kL, high) : store_first(dx + kL, high, n - kL);
}
// The outputs at which gather_pairs begins, and how many of the places it makes of whole vectors.
template <bool kOdd, int kL>
struct PairsOf {
  int64_t q, whole;
  CONVEXT_INLINE PairsOf(int64_t pad, int64_t outputs, int64_t width)
      : q(pad / 2 - (kOdd ? 0 : kL)), whole(least((outputs - q - 2 * kL) * 2, width - 2 * kL)) {}
};
// `width` neighbours of the input.
template <bool kOdd, int kRows, typename T>
void gather_pairs(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t pad, int64_t outputs,
                  int64_t width, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> last[3], next[3];
  const PairsOf<kOdd, kL> of(pad, outputs, width);
  int64_t q = of.q, w = 0;
  if (q >= 0 && q + kL <= outputs)
    sum_columns<3, kRows, true>(dy, places, rows, q, outputs, last);
  else
    sum_columns<3, kRows, false>(dy, places, rows, q, outputs, last);
  for (; w <= of.whole; w += 2 * kL) {
    sum_columns<3, kRows, true>(dy, places, rows, q += kL, outputs, next);
    write_pairs<kOdd, true>(last, next, 2 * kL, dx + w);
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) last[s] = next[s];
  }
  for (; w < width; w += 2 * kL) {
    sum_columns<3, kRows, false>(dy, places, rows, q += kL, outputs, next);
    write_pairs<kOdd, false>(last, next, width - w, dx + w);
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) last[s] = next[s];
  }
}

// Two rows of the input at once: the first is seen through the middle row of a window, the second through its last and
// through the first of the next row of outputs.
template <bool kWhole, typename T>
CONVEXT_INLINE void sum_two_rows(const T* dy, const uint8_t* places, int tap, int64_t q, int64_t outputs,
                                 Vec<Accumulate<T>>* column) {
  using A = Accumulate<T>;
  const LanesThere<A> there = kWhole ? LanesThere<A>() : LanesThere<A>(q, outputs);
#pragma GCC unroll 6
  for (int s = 0; s < 6; ++s) column[s] = Vec<A>{};
  if (!kWhole && there.none()) return;
  dy += q, places += q;
  const Vec<A> value = kWhole ? load(dy) : there.load(dy);
  const WonPlaces<A> won = (kWhole ? WonPlaces<A>(places) : there.load_won(places)).minus(tap);
#pragma GCC unroll 6
  for (int s = 0; s < 6; ++s) column[s] = won.add_where(3 + s, column[s], value);
  dy += outputs, places += outputs;
  const Vec<A> below = kWhole ? load(dy) : there.load(dy);
  const WonPlaces<A> won_below = (kWhole ? WonPlaces<A>(places) : there.load_won(places)).minus(tap);
#pragma GCC unroll 3
  for (int s = 0; s < 3; ++s) column[3 + s] = won_below.add_where(s, column[3 + s], below);
}
// `pairs` of them.
template <bool kOdd, typename T>
void gather_two_rows(const T* dy, const uint8_t* places, int tap, int64_t pad, int64_t outputs, int64_t width,
                     int64_t pairs, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PairsOf<kOdd, kL> of(pad, outputs, width);
  const bool whole = of.q >= 0 && of.q + kL <= outputs;
  for (; pairs > 0; --pairs, dy += outputs, places += outputs, dx += 2 * width) {
    Vec<A> last[6], next[6];
    int64_t q = of.q, w = 0;
    if (whole)
      sum_two_rows<true>(dy, places, tap, q, outputs, last);
    else
      sum_two_rows<false>(dy, places, tap, q, outputs, last);
    for (; w <= of.whole; w += 2 * kL) {
      sum_two_rows<true>(dy, places, tap, q += kL, outputs, next);
      write_pairs<kOdd, true>(last, next, 2 * kL, dx + w);
      write_pairs<kOdd, true>(last + 3, next + 3, 2 * kL, dx + width + w);
#pragma GCC unroll 6
      for (int s = 0; s < 6; ++s) last[s] = next[s];
    }
    for (; w < width; w += 2 * kL) {
      sum_two_rows<false>(dy, places, tap, q += kL, outputs, next);
      write_pairs<kOdd, false>(last, next, width - w, dx + w);
      write_pairs<kOdd, false>(last + 3, next + 3, width - w, dx + width + w);
#pragma GCC unroll 6
      for (int s = 0; s < 6; ++s) last[s] = next[s];
    }
  }
}

template <int kKernel, int kStride, int kRows, typename T>
CONVEXT_INLINE void gather_along(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t pad,
                                 int64_t outputs, int64_t width, T* dx) {
  if constexpr (kStride == 1)
    gather_row<kKernel, kRows>(dy, places, rows, pad, outputs, width, dx);
  else if (pad % 2 != 0)
    gather_pairs<true, kRows>(dy, places, rows, pad, outputs, width, dx);
  else
    gather_pairs<false, kRows>(dy, places, rows, pad, outputs, width, dx);
}

// How many rows of the input from h on, up to `end`, may be taken as one. At stride 1, where rows of the input and of
// the output are equally long, an input place at the end of a row then looks at outputs of the next row as well:
// through columns of the window that lie outside the input, which never win.
CONVEXT_INLINE int64_t rows_as_one(const PoolGeometry& g, int64_t h, int64_t end) {
  const Seers first = seers_of(g, 1, h);
  int64_t count = 1;
  if (g.stride[1] != 1 || g.stride[2] != 1 || g.input[2] != g.output[2]) return count;
  for (; count < end - h; ++count) {
    const Seers next = seers_of(g, 1, h + count);
    if (next.count != first.count || next.out != first.out + count) break;
  }
  return count;
}

constexpr bool kTwoRows = kVectorBytes == 64;  // where there are registers for it

// A part of the input of some planes.
template <int kKernel, int kStride, typename T>
void max_backward_gather_of(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  const int64_t pad = g.pad_before[2];
  GatherRows rows;
  for (int64_t c = part.channels.first; c < part.channels.last; ++c) {
    const int64_t plane = part.image * g.channels + c;
    const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
    const uint8_t* places = static_cast<const uint8_t*>(args.places) + plane * g.output_places();
    for (int64_t d = part.os.first; d < part.os.last; ++d) {
      T* dx = static_cast<T*>(args.output) + (plane * g.input[0] + d) * g.input[1] * g.input[2];
      const Seers os = seers_of(g, 0, d);
      const bool two_rows = kTwoRows && kStride == 2 && os.count == 1 && g.stride[1] == 2 && g.kernel[1] == 3;
      for (int64_t h = part.ps.first, taken; h < part.ps.last; h += taken) {
        const Seers hs = seers_of(g, 1, h);
        if (two_rows && hs.count == 1 && hs.tap == 1) {
          const int64_t pairs = least((part.ps.last - h) / 2, g.output[1] - 1 - hs.out);
          const int64_t at = (os.out * g.output[1] + hs.out) * g.output[2];
          taken = 2 * pairs;
          const auto run = pad % 2 != 0 ? gather_two_rows<true, T> : gather_two_rows<false, T>;
          run(dy + at, places + at, int(os.tap * 9), pad, g.output[2], g.input[2], pairs, dx + h * g.input[2]);
          if (pairs > 0) continue;
        }
        taken = rows_as_one(g, h, part.ps.last);
        rows.count = 0;
        for (int64_t i = 0; i < os.count; ++i)
          for (int64_t j = 0; j < hs.count; ++j, ++rows.count) {
            const int64_t t = os.tap - i * os.tap_step, r = hs.tap - j * hs.tap_step;
            rows.at[rows.count] = ((os.out + i) * g.output[1] + hs.out + j) * g.output[2];
            rows.tap[rows.count] = (t * g.kernel[1] + r) * kKernel;
          }
        const int64_t outputs = taken * g.output[2], width = taken * g.input[2];
        T* const to = dx + h * g.input[2];
        switch (rows.count) {
          case 1: gather_along<kKernel, kStride, 1>(dy, places, rows, pad, outputs, width, to); break;
          case 2: gather_along<kKernel, kStride, 2>(dy, places, rows, pad, outputs, width, to); break;
          case kKernel: gather_along<kKernel, kStride, kKernel>(dy, places, rows, pad, outputs, width, to); break;
          default: gather_along<kKernel, kStride, 0>(dy, places, rows, pad, outputs, width, to);
        }
      }
    }
  }
}
template <typename T>
void max_backward_gather(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  if (g.kernel[2] == 5) {
    if constexpr (kLanes<Accumulate<T>> >= 4) max_backward_gather_of<5, 1, T>(args, part);
  } else if (g.stride[2] == 1) {
    max_backward_gather_of<3, 1, T>(args, part);
  } else {
    max_backward_gather_of<3, 2, T>(args, part);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
