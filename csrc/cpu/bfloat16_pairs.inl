// Vector code of bfloat16_pairs.h: pairs as operands of gemm.inl, and their unfolding. A pair takes the place of a
// float: lines and panels are filled, copied and transposed as if they held floats, whose bits nobody looks at.
namespace convext::cpu::CONVEXT_ISA {
namespace {

typedef uint32_t PairVec __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));

CONVEXT_INLINE U32Vec load(const BFloat16Pair* p) { return *reinterpret_cast<const PairVec*>(p); }
CONVEXT_INLINE U32Vec load_part(const BFloat16Pair* p, int first, int last) {
  return reinterpret_cast<U32Vec>(_mm512_maskz_loadu_ps(__mmask16(lane_mask(first, last)), p));
}
CONVEXT_INLINE U32Vec splat_of(BFloat16Pair x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return U32Vec{} + bits;
}
CONVEXT_INLINE Vec<float> add_product(Vec<float> sum, U32Vec a, U32Vec b) {
  return reinterpret_cast<Vec<float>>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA

#include "gemm.inl"
#include "unfold.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Two vectors of bfloat16, widened, as one of pairs, the way they lie in a vector of floats.
CONVEXT_INLINE Vec<float> joined(Vec<float> even, Vec<float> odd) {
  return reinterpret_cast<Vec<float>>(reinterpret_cast<U32Vec>(even) >> 16 | reinterpret_cast<U32Vec>(odd));
}

// As Plane and Planes of unfold_lines.inl. Of an odd number of planes the last one has zeros beside it: odd is null.
struct PairedPlane {
  const BFloat16 *even, *odd, *end;

  CONVEXT_INLINE float element(int64_t i) const {
    const BFloat16Pair pair = {even[i], odd == nullptr ? BFloat16{0} : odd[i]};
    float bits;
    __builtin_memcpy(&bits, &pair, sizeof bits);
    return bits;
  }
  CONVEXT_INLINE Vec<float> vector(int64_t i) const {
    return joined(load(even + i), odd == nullptr ? Vec<float>{} : load(odd + i));
  }
  CONVEXT_INLINE Vec<float> first(int64_t i, int lanes) const {
    return joined(load_part(even + i, 0, lanes), odd == nullptr ? Vec<float>{} : load_part(odd + i, 0, lanes));
  }
  CONVEXT_INLINE bool has(int64_t i) const { return (odd == nullptr ? even : odd) + i <= end; }
};
struct PairedPlanes {
  using A = float;
  const BFloat16 *x, *end;
  int64_t apart, count;

  CONVEXT_INLINE PairedPlane plane(int64_t c, int64_t from) const {
    const BFloat16* even = x + 2 * c * apart + from;
    return {even, 2 * c + 1 < count ? even + apart : nullptr, end};
  }
};

// Element by element: channels_last with an odd number of channels, and kernels that reach too far for lines.
void unfold_by_places(const ConvGeometry& g, int64_t channels, const BFloat16* x, Span pixels, Span rows,
                      BFloat16Pair* to, int64_t width) {
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t taps = g.taps(), inputs = g.group_inputs();
  const int64_t place = contiguous ? 1 : g.groups * channels, channel = contiguous ? g.input_places() : 1;
  int64_t at[kMaxRun];
  for (int64_t i = 0; i < pixels.size(); i += width, to += panel_stride(width, rows.size()))
    for (int64_t lane = 0; lane < width; lane += kMaxRun) {
      const int wide = int(least(width - lane, int64_t(kMaxRun)));
      const int valid = int(greatest(least(pixels.size() - i - lane, int64_t(wide)), int64_t(0)));
      const OutputPlace out = output_place(g, pixels.begin + i + lane);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const Span some = contiguous ? channels_of_tap(g, rows, tap)
                                     : Span{least(greatest(rows.begin - tap * inputs, int64_t(0)), inputs),
                                            least(greatest(rows.end - tap * inputs, int64_t(0)), inputs)};
        if (some.size() <= 0) continue;
        find_places(g, out, tap, valid, place, at);
        for (int64_t c = some.begin; c < some.end; ++c) {
          const int64_t row = contiguous ? c * taps + tap : tap * inputs + c;
          BFloat16Pair* step = to + (row - rows.begin) * width + lane;
          for (int l = 0; l < wide; ++l) {
            step[l] = {};
            if (l >= valid || at[l] < 0) continue;
            step[l].even = x[at[l] + 2 * c * channel];
            if (2 * c + 1 < channels) step[l].odd = x[at[l] + (2 * c + 1) * channel];
          }
        }
      }
    }
}

void unfold_pairs(const ConvGeometry& g, int64_t channels, const BFloat16* x, const BFloat16* x_end, Span pixels,
                  Span rows, BFloat16Pair* to, int64_t width, void* scratch) {
  const PairedPlanes planes = {x, x_end, g.input_places(), channels};
  float* panels = reinterpret_cast<float*>(to);
  if (g.layout == Layout::contiguous && is_pointwise(g))
    copy_pixels(g, planes, pixels, rows, panels, width);
  else if (g.layout == Layout::contiguous && scratch != nullptr)
    unfold_pixels_contiguous(g, planes, pixels, rows, panels, width, static_cast<char*>(scratch));
  else
    unfold_by_places(g, channels, x, pixels, rows, to, width);
}

void join(const float* even, const float* odd, int64_t count, BFloat16Pair* to) {
  constexpr int lanes = kLanes<float>;
  float* bits = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t some = least(count - i, int64_t(lanes));
    store_first(bits + i, joined(load_first(even + i, some), odd == nullptr ? Vec<float>{} : load_first(odd + i, some)),
                some);
  }
}

constexpr BFloat16Pairs kBFloat16Pairs = {unfold_pairs, join};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
