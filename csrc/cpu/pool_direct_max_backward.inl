// The gradient of max pooling: every input place receives the dy of the outputs it won, in their order.

#include "pool_direct.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// A band of input rows of one contiguous plane at one depth, gathered in the accumulate type on the stack.
template <typename A>
struct Band {
  int64_t d, h, w, heights, width;  // its first place, its size
  A sum[kPoolRow];
};

// How far the taps of one depth are from the first: down, right, and both in a band of full width.
struct TapOffsets {
  int32_t h[256], w[256], at[256];
};

template <typename T>
CONVEXT_INLINE void store_row(T* out, const Accumulate<T>* row, int64_t count) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  for (int64_t i = 0; i < count; i += kL) store_first(out + i, load_first(row + i, count - i), count - i);
}

// dy of outputs (o, p, [first, last)) to where they won, as far as that is in the band. Where the windows lie wholly
// inside it along h and w, `inside` spares the question.
template <typename T, typename P, typename A>
CONVEXT_INLINE void scatter_outputs(const PoolGeometry& g, const T* dy, const P* places, int64_t first_of_depth,
                                    int64_t p, Range qs, bool inside, const TapOffsets& offsets, Band<A>* band) {
  const int64_t taps = g.kernel[1] * g.kernel[2], stride = g.stride[2];
  const int64_t h = g.place(1, p, 0) - band->h, w = g.place(2, 0, 0) - band->w;
  if (inside) {
    A* sum = band->sum + h * band->width + w;
    for (int64_t q = qs.first; q < qs.last; ++q) {
      const uint64_t tap = uint64_t(places[q] - first_of_depth);
      if (tap < uint64_t(taps)) sum[q * stride + offsets.at[tap]] += to_accumulate(dy[q]);
    }
    return;
  }
  for (int64_t q = qs.first; q < qs.last; ++q) {
    const int64_t tap = places[q] - first_of_depth;
    if (tap < 0 || tap >= taps) continue;
    const bool known = sizeof(P) == 1;
    const int64_t hh = h + (known ? offsets.h[tap] : tap / g.kernel[2] * g.dilation[1]);
    const int64_t ww = w + q * stride + (known ? offsets.w[tap] : tap % g.kernel[2] * g.dilation[2]);
    if (hh >= 0 && hh < band->heights && ww >= 0 && ww < band->width)
      band->sum[hh * band->width + ww] += to_accumulate(dy[q]);
  }
}

// One contiguous plane, band by band: every output that may reach the band adds its dy, in order.
template <typename T, typename P>
void max_backward_plane_of(const PoolArguments& args, int64_t plane) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
  const P* places = static_cast<const P*>(args.places) + plane * g.output_places();
  T* dx = static_cast<T*>(args.output) + plane * g.input_places();
  const int64_t taps = g.kernel[1] * g.kernel[2];
  const int64_t width = least(g.input[2], kPoolRow), heights = least(g.input[1], kPoolRow / width);
  Band<A> band;
  TapOffsets offsets;
  for (int64_t r = 0, tap = 0; g.byte_places() && r < g.kernel[1]; ++r)
    for (int64_t s = 0; s < g.kernel[2]; ++s, ++tap) {
      offsets.h[tap] = int32_t(r * g.dilation[1]);
      offsets.w[tap] = int32_t(s * g.dilation[2]);
      offsets.at[tap] = int32_t(r * g.dilation[1] * width + s * g.dilation[2]);
    }

  for (band.d = 0; band.d < g.input[0]; ++band.d)
    for (band.h = 0; band.h < g.input[1]; band.h += heights)
      for (band.w = 0; band.w < g.input[2]; band.w += width) {
        band.heights = least(heights, g.input[1] - band.h);
        band.width = least(width, g.input[2] - band.w);
        const int64_t end_h = band.h + band.heights, end_w = band.w + band.width;
        for (int64_t i = 0; i < band.heights * band.width; ++i) band.sum[i] = 0;
        const Range os = outputs_over(g, 0, band.d, band.d + 1), ps = outputs_over(g, 1, band.h, end_h),
                    qs = outputs_over(g, 2, band.w, end_w);
        // Columns whose windows lie inside the band: [left, right).
        int64_t left = qs.first, right = qs.last;
        while (left < qs.last && g.place(2, left, 0) < band.w) ++left;
        while (right > left && g.place(2, right - 1, g.kernel[2] - 1) >= end_w) --right;
        for (int64_t o = os.first; o < os.last; ++o) {
          const int64_t t = tap_at(g, 0, o, band.d);
          if (t < 0) continue;
          for (int64_t p = ps.first; p < ps.last; ++p) {
            const int64_t at = (o * g.output[1] + p) * g.output[2];
            const bool inside = g.byte_places() && band.width == width && g.place(1, p, 0) >= band.h &&
                                g.place(1, p, g.kernel[1] - 1) < end_h;
            const Range parts[] = {{qs.first, left}, {left, right}, {right, qs.last}};
            for (int part = 0; part < 3; ++part)
              scatter_outputs(g, dy + at, places + at, t * taps, p, parts[part], inside && part == 1, offsets, &band);
          }
        }
        T* out = dx + (band.d * g.input[1] + band.h) * g.input[2] + band.w;
        if (band.width == g.input[2])  // the band's rows are one
          store_row(out, band.sum, band.heights * band.width);
        else
          for (int64_t h = 0; h < band.heights; ++h)
            store_row(out + h * g.input[2], band.sum + h * band.width, band.width);
      }
}

// What an input place takes from an output that sees it: dy if it won there.
template <typename T, typename P>
struct WinnerShare {
  using A = Accumulate<T>;
  const T* dy;
  const P* places;
  IndexVec<A> tap;

  CONVEXT_INLINE void turn_to(const PoolGeometry&, int64_t, int64_t, int64_t, int64_t number) {
    tap = splat_index<A>(number);
  }
  CONVEXT_INLINE Vec<A> take(int64_t at, int64_t n) const {
    return choose(equal(load_places<A>(places + at, n), tap), load_first(dy + at, n), Vec<A>{});
  }
};

// One row of channels_last input places: task = (n, d, h).
template <typename T, typename P>
void max_backward_row_of(const PoolArguments& args, int64_t task) {
  gather_row(args, WinnerShare<T, P>{static_cast<const T*>(args.grad_output), static_cast<const P*>(args.places), {}},
             task, static_cast<T*>(args.output));
}

// The tasks, by what places are stored as.
template <typename T>
void max_backward_plane(const PoolArguments& args, int64_t task) {
  if (args.geometry.byte_places())
    max_backward_plane_of<T, uint8_t>(args, task);
  else
    max_backward_plane_of<T, int32_t>(args, task);
}
template <typename T>
void max_backward_row(const PoolArguments& args, int64_t task) {
  if (args.geometry.byte_places())
    max_backward_row_of<T, uint8_t>(args, task);
  else
    max_backward_row_of<T, int32_t>(args, task);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
