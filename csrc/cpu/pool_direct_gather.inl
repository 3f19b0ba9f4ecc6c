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
  constexpr int64_t kL = kLanes<A>;
  const int first = kWhole ? 0 : int(least(greatest(-q, int64_t(0)), kL));
  const int last = kWhole ? int(kL) : int(greatest(least(outputs - q, kL), int64_t(0)));
#pragma GCC unroll 5
  for (int s = 0; s < kKernel; ++s) column[s] = Vec<A>{};
  if (!kWhole && first >= last) return;
#pragma GCC unroll 5
  for (int64_t i = 0; i < (kRows > 0 ? kRows : rows.count); ++i) {
    const int64_t at = rows.at[i] + q;
    const Vec<A> value = kWhole ? load(dy + at) : load_part(dy + at, first, last);
    const WonPlaces<A> won = kWhole ? WonPlaces<A>(places + at) : WonPlaces<A>(places + at, first, last);
    const WonPlaces<A> column_won = won.minus(int(rows.tap[i]));
#pragma GCC unroll 5
    for (int s = 0; s < kKernel; ++s) column[s] = column_won.add_where(s, column[s], value);
  }
}
template <int kKernel, int kRows, typename T>
CONVEXT_INLINE void sum_columns(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t q, int64_t outputs,
                                Vec<Accumulate<T>>* column) {
  if (q >= 0 && q + kLanes<Accumulate<T>> <= outputs)
    sum_columns<kKernel, kRows, true>(dy, places, rows, q, outputs, column);
  else
    sum_columns<kKernel, 0, false>(dy, places, rows, q, outputs, column);
}

// `width` neighbours of the input at stride 1, seen by `outputs` neighbours. Place w is seen by output w + pad through
// the first column of the window, by the one before through the second.
template <int kKernel, int kRows, typename T>
void gather_row(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t pad, int64_t outputs, int64_t width,
                T* dx) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> before[kKernel], now[kKernel];
  sum_columns<kKernel, kRows>(dy, places, rows, pad - kL, outputs, before);
  for (int64_t w = 0; w < width; w += kL) {
    sum_columns<kKernel, kRows>(dy, places, rows, w + pad, outputs, now);
    Vec<A> sum = now[0] + joined_after<kL - 1, A>(before[1], now[1]);
    sum += joined_after<kL - 2, A>(before[2], now[2]);
    if constexpr (kKernel == 5) {
      sum += joined_after<kL - 3, A>(before[3], now[3]);
      sum += joined_after<kL - 4, A>(before[4], now[4]);
    }
    store_first(dx + w, sum, width - w);
#pragma GCC unroll 5
    for (int s = 1; s < kKernel; ++s) before[s] = now[s];
  }
}

// The same at stride 2, a window of 3: kL outputs make 2 * kL places. kOdd: the first place is seen through the second
// column of a window, the next through the third and by the next output through the first.
template <bool kOdd, int kRows, typename T>
void gather_pairs(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t pad, int64_t outputs,
                  int64_t width, T* dx) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> last[3], next[3];
  int64_t q = pad / 2 - (kOdd ? 0 : kL);
  sum_columns<3, kRows>(dy, places, rows, q, outputs, last);
  for (int64_t w = 0; w < width; w += 2 * kL) {
    q += kL;
    sum_columns<3, kRows>(dy, places, rows, q, outputs, next);
    const Vec<A> first = kOdd ? last[1] : next[0] + joined_after<kL - 1, A>(last[2], next[2]);
    const Vec<A> second = kOdd ? last[2] + joined_after<1, A>(last[0], next[0]) : next[1];
    store_first(dx + w, interleave_low<A>(first, second), width - w);
    if (width - w > kL) store_first(dx + w + kL, interleave_high<A>(first, second), width - w - kL);
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) last[s] = next[s];
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
      for (int64_t h = part.ps.first, taken; h < part.ps.last; h += taken) {
        taken = rows_as_one(g, h, part.ps.last);
        const Seers hs = seers_of(g, 1, h);
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
