// The gradient of a maximum over small windows that overlap, in the contiguous layout: every input place looks at all
// outputs that see it.
//
// For an input row, first across: for each column s of the window, dy of the outputs that won there in the rows of
// outputs that see it, summed where the output lies, into a row on the stack with a margin of zeros. One load of dy and
// of places serves all columns. Then along: an input place sums one element of each of those rows; at stride 2 every
// other column goes to the even places, every other to the odd. This is done for the row before the one just summed:
// loads soon after their stores would wait for them. Traffic: dx once; dy and places from cache for each row of
// the window but one. Instructions: a comparison, a selection and an addition per output and place of its window.
// Limits: those of gather_fits.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Sums of the columns of the window, half of the memory for every other input row.
template <typename A>
struct Across {
  A sum[kPoolGather + kPoolSlack];
};
// The input places from row h on that are summed across, but not along: sums of the first column of the window.
template <typename A>
struct Summed {
  A* sum;
  int64_t pitch, h, width;
};
// The outputs that see an input row: where they begin, and the first tap of the kernel row that they see it through.
struct GatherRows {
  int64_t count, at[kPoolRows], tap[kPoolRows];
};

// n elements at `at` of a row: those of each column of the window, `pitch` apart in sum.
template <int kKernel, int kRows, typename T>
CONVEXT_INLINE void sum_vector(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t at, int64_t n,
                               int64_t pitch, Accumulate<T>* sum) {
  using A = Accumulate<T>;
  Vec<A> column[kKernel] = {};
#pragma GCC unroll 5
  for (int64_t i = 0; i < (kRows > 0 ? kRows : rows.count); ++i) {
    const Vec<A> value = load_first(dy + rows.at[i] + at, n);
    const IndexVec<A> place = load_places<A>(places + rows.at[i] + at, n) - splat_index<A>(rows.tap[i]);
#pragma GCC unroll 5
    for (int s = 0; s < kKernel; ++s) column[s] += choose(equal(place, splat_index<A>(s)), value, Vec<A>{});
  }
#pragma GCC unroll 5
  for (int s = 0; s < kKernel; ++s) store(sum + s * pitch, column[s]);
}
// `outputs` neighbours, at which kRows rows are looked at, or as many as there are.
template <int kKernel, int kRows, typename T>
void sum_across_rows(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t outputs, int64_t pitch,
                     Accumulate<T>* sum) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  for (int64_t q = 0; q + kL <= outputs; q += kL) sum_vector<kKernel, kRows>(dy, places, rows, q, kL, pitch, sum + q);
  const int64_t last = outputs - kL;
  if (last < 0)
    sum_vector<kKernel, 0>(dy, places, rows, 0, outputs, pitch, sum);
  else if (outputs % kL != 0)
    sum_vector<kKernel, kRows>(dy, places, rows, last, kL, pitch, sum + last);
}
template <int kKernel, typename T>
CONVEXT_INLINE void sum_across(const T* dy, const uint8_t* places, const GatherRows& rows, int64_t outputs,
                               int64_t pitch, Accumulate<T>* sum) {
  switch (rows.count) {
    case 1: return sum_across_rows<kKernel, 1>(dy, places, rows, outputs, pitch, sum);
    case 2: return sum_across_rows<kKernel, 2>(dy, places, rows, outputs, pitch, sum);
    case kKernel: return sum_across_rows<kKernel, kKernel>(dy, places, rows, outputs, pitch, sum);
    default: return sum_across_rows<kKernel, 0>(dy, places, rows, outputs, pitch, sum);
  }
}

// The sum of one element of each column of the window that `kPhase` of the stride has; `sum` is that of column 0.
template <int kKernel, int kStride, int kPhase, typename A>
CONVEXT_INLINE Vec<A> sum_along(const A* sum, int64_t pitch) {
  Vec<A> place = load(sum + kPhase * pitch);
#pragma GCC unroll 5
  for (int s = kPhase + kStride; s < kKernel; s += kStride) place += load(sum + s * pitch - s / kStride);
  return place;
}

// 2 * kL places of a row at stride 2, or the n first of them. kOdd: the first is seen through odd columns of the
// window.
template <int kKernel, bool kOdd, typename T>
CONVEXT_INLINE void write_pairs(const Accumulate<T>* sum, int64_t pitch, int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const Vec<A> first = sum_along<kKernel, 2, kOdd ? 1 : 0>(sum, pitch);
  const Vec<A> second = sum_along<kKernel, 2, kOdd ? 0 : 1>(sum + (kOdd ? 1 : 0), pitch);
  store_first(dx, interleave_low<A>(first, second), n);
  if (n > kL) store_first(dx + kL, interleave_high<A>(first, second), n - kL);
}
template <int kKernel, bool kOdd, typename T>
CONVEXT_INLINE void write_pairs_row(const Accumulate<T>* sum, int64_t pitch, int64_t width, T* dx) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  int64_t w = 0;
  for (; w + 2 * kL <= width; w += 2 * kL, sum += kL) write_pairs<kKernel, kOdd>(sum, pitch, 2 * kL, dx + w);
  if (w < width) write_pairs<kKernel, kOdd>(sum, pitch, width - w, dx + w);
}

// `width` neighbours of the input. Place w is seen by output (w + pad) / kStride through the first columns of the
// window.
template <int kKernel, int kStride, typename T>
CONVEXT_INLINE void write_along(int64_t pad, const Accumulate<T>* sum, int64_t pitch, int64_t width, T* dx) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  sum += pad / kStride;
  if (kStride == 2 && pad % 2 != 0) return write_pairs_row<kKernel, true>(sum, pitch, width, dx);
  if (kStride == 2) return write_pairs_row<kKernel, false>(sum, pitch, width, dx);
  int64_t w = 0;
  for (; w + kL <= width; w += kL) store(dx + w, sum_along<kKernel, 1, 0>(sum + w, pitch));
  if (w < width) store_first(dx + w, sum_along<kKernel, 1, 0>(sum + w, pitch), width - w);
}

// How many rows of the input from h on, up to `end`, may be taken as one. At stride 1, where rows of the input and of
// the output are equally long, an input place at the end of a row then looks at outputs of the next row as well:
// through columns of the window that lie outside the input, which never win.
CONVEXT_INLINE int64_t rows_as_one(const PoolGeometry& g, int64_t h, int64_t end, int64_t most) {
  const Seers first = seers_of(g, 1, h);
  int64_t count = 1;
  if (g.stride[1] != 1 || g.stride[2] != 1 || g.input[2] != g.output[2]) return count;
  for (; count < least(end - h, most); ++count) {
    const Seers next = seers_of(g, 1, h + count);
    if (next.count != first.count || next.out != first.out + count) break;
  }
  return count;
}

// A part of the input of some planes.
template <int kKernel, int kStride, typename T>
void max_backward_gather_of(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, before = (kKernel - 1) / kStride;
  const PoolGeometry& g = args.geometry;
  const int64_t margins = gather_pitch(g) - g.output[2], pad = g.pad_before[2];
  const int64_t most = (kPoolGather / (2 * kKernel) - margins) / g.output[2];
  Across<A> across;
  GatherRows rows;
  int64_t margins_of[2] = {0, 0};  // the pitch whose margins are zeros
  for (int64_t c = part.channels.first; c < part.channels.last; ++c) {
    const int64_t plane = part.image * g.channels + c;
    const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
    const uint8_t* places = static_cast<const uint8_t*>(args.places) + plane * g.output_places();
    for (int64_t d = part.os.first; d < part.os.last; ++d) {
      T* dx = static_cast<T*>(args.output) + (plane * g.input[0] + d) * g.input[1] * g.input[2];
      const Seers os = seers_of(g, 0, d);
      Summed<A> last = {nullptr, 0, 0, 0};
      for (int64_t h = part.ps.first, turn = 0, taken; h < part.ps.last; h += taken, turn ^= 1) {
        taken = rows_as_one(g, h, part.ps.last, most);
        const Seers hs = seers_of(g, 1, h);
        rows.count = 0;
        for (int64_t i = 0; i < os.count; ++i)
          for (int64_t j = 0; j < hs.count; ++j, ++rows.count) {
            const int64_t t = os.tap - i * os.tap_step, r = hs.tap - j * hs.tap_step;
            rows.at[rows.count] = ((os.out + i) * g.output[1] + hs.out + j) * g.output[2];
            rows.tap[rows.count] = (t * g.kernel[1] + r) * kKernel;
          }
        const int64_t outputs = taken * g.output[2], pitch = outputs + margins;
        const Summed<A> now = {across.sum + turn * (kPoolGather / 2) + before, pitch, h, taken * g.input[2]};
        for (int s = 0; margins_of[turn] != pitch && s < kKernel; ++s) {
          A* const column = now.sum + s * pitch;
          for (int64_t i = -before; i < 0; ++i) column[i] = 0;
          for (int64_t i = outputs; i < pitch - before - kPoolSlack / 2; i += kL) store(column + i, Vec<A>{});
        }
        margins_of[turn] = pitch;
        sum_across<kKernel>(dy, places, rows, outputs, pitch, now.sum);
        if (last.sum != nullptr)
          write_along<kKernel, kStride>(pad, last.sum, last.pitch, last.width, dx + last.h * g.input[2]);
        last = now;
      }
      write_along<kKernel, kStride>(pad, last.sum, last.pitch, last.width, dx + last.h * g.input[2]);
    }
  }
}
template <typename T>
void max_backward_gather(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  if (g.kernel[2] == 5)
    max_backward_gather_of<5, 1, T>(args, part);
  else if (g.stride[2] == 1)
    max_backward_gather_of<3, 1, T>(args, part);
  else
    max_backward_gather_of<3, 2, T>(args, part);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
