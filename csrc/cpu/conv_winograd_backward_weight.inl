// The transforms of winograd's gradient of the weight for one instruction set; the formulas are in ../winograd.h.
//
// Operands: both are wanted with channels side by side, because the products sum over tiles. Along h and along w a
// vector holds channels, into which rows of contiguous planes are turned. A strip holds a run of tiles and stays in L1.
// Sums: lanes are input channels; a vector of every tap is transposed to lie as the weight does, channel by channel.

#include "conv_winograd_points.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// g = G^T m, the transpose of weight_to_points.
template <class F, typename A>
CONVEXT_INLINE void weight_from_points(const Vec<A>* m, Vec<A>* g) {
  using V = Vec<A>;
  if constexpr (F::n == 1) {
    g[0] = m[0];
  } else {
    V sum[F::pairs], difference[F::pairs];
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      sum[p] = divided<A>(m[1 + 2 * p] + m[2 + 2 * p], F::k.divisor[p]);
      difference[p] = divided<A>(m[1 + 2 * p] - m[2 + 2 * p], F::k.divisor[p]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < F::r; ++i) {
      V out = i == 0 ? divided<A>(m[0], F::k.f[0]) : i == F::r - 1 ? m[F::n - 1] : V{};
#pragma GCC unroll 4
      for (int p = 0; p < F::pairs; ++p)
        out += i == 0 ? sum[p] : A(F::k.power[p][i]) * (i % 2 == 0 ? sum[p] : difference[p]);
      g[i] = out;
    }
  }
}

constexpr int64_t kWeightRun = 8;  // tiles of a run: what two vectors of channels write of them stays in L1

template <class W>
constexpr int64_t kStripColumns = (kWeightRun - 1) * W::step + W::window;

// Of a strip, then of turned rows.
template <class H, class W, typename A>
constexpr int64_t kStripElements = H::points * kStripColumns<W> * kLanes<A>;
template <class H, class W, typename A>
int64_t operand_strip(Layout layout) {
  return kStripElements<H, W, A> + (layout == Layout::contiguous ? H::window * kStripColumns<W> * kLanes<A> : 0);
}

template <class H, class W, typename T>
void transform_operand(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradTiles tiles,
                       int64_t channels, Accumulate<T>* v, WinogradSteps steps, Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t t = tiles.begin; t < tiles.end;) {
    const TileRun run = tile_run(tiles, t, kWeightRun);
    const int64_t count = run.last - run.first, first = run.first * W::step - g.pad_before[2];
    const int64_t columns = (count - 1) * W::step + W::window;
    int64_t row[H::window];
    shown_rows<H>(g, run.i * H::step - g.pad_before[1], row);
    t += count;
    for (int64_t c = 0; c < channels; c += lanes) {
      const int some = int(least(channels - c, lanes));
      if (g.layout == Layout::contiguous) {
        transform_planes<H, T>(g, x == nullptr ? x : x + c * plane, plane, row, first, columns, some,
                               strip + kStripElements<H, W, A>, strip);
      } else {
        const T* rows[H::window];
        for (int r = 0; r < H::window; ++r) rows[r] = x == nullptr || row[r] < 0 ? nullptr : x + row[r] * place + c;
        if (some == lanes)
          transform_channels<H, T, false>(g, rows, first, place, columns, some, strip);
        else
          transform_channels<H, T, true>(g, rows, first, place, columns, some, strip);
      }
      transform_strip<W, A, false>(strip, H::points, true, count, int(lanes), v + run.at * steps.tiles + c, steps);
    }
  }
}

// The taps of one vector of input channels, channel by channel: to[channel * kTaps + tap].
template <int kTaps, typename A>
CONVEXT_INLINE void store_taps(const Vec<A>* tap, A* to, int64_t channel_step) {
  constexpr int lanes = kLanes<A>, fours = lanes < 4 ? 0 : kTaps / 4 * 4;
  if constexpr (fours > 0) {
#pragma GCC unroll 8
    for (int t = 0; t < fours; t += 4) {
      Vec<A> v[4];
      transpose_quads<A>(tap + t, v);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store_quads<lanes, A>(to + i * channel_step + t, 4 * channel_step, v[i]);
    }
  }
#pragma GCC unroll 8
  for (int t = fours; t < kTaps; ++t) {
    A number[lanes];
    store(number, tap[t]);
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) to[l * channel_step + t] = number[l];
  }
}

// The taps of `channels` channels, side by side, to where they lie channel_step apart.
template <int kTaps, typename T>
CONVEXT_INLINE void store_numbers(const Accumulate<T>* number, int64_t channels, T* to, int64_t channel_step) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const int64_t pieces = channel_step == kTaps ? 1 : channels, size = channel_step == kTaps ? channels * kTaps : kTaps;
  for (int64_t i = 0; i < pieces; ++i)
    for (int64_t j = 0; j < size; j += lanes) {
      const Vec<Accumulate<T>> piece = load(number + i * kTaps + j);
      if (j + lanes <= size)
        store(to + i * channel_step + j, piece);
      else
        store_part(to + i * channel_step + j, piece, 0, int(size - j));
    }
}

// The second pass, along h, of one vector of input channels, to dw.
template <class H, class W, typename A>
CONVEXT_INLINE void half_to_taps(const Vec<A> (&half)[W::r][H::n], bool flip, A* dw, int64_t channel_step) {
  constexpr int kTaps = H::r * W::r;
  Vec<A> tap[kTaps];
#pragma GCC unroll 8
  for (int s = 0; s < W::r; ++s) {
    Vec<A> out[H::r];
    weight_from_points<H, A>(half[s], out);
#pragma GCC unroll 8
    for (int r = 0; r < H::r; ++r) tap[flip ? kTaps - 1 - r * W::r - s : r * W::r + s] = out[r];
  }
  store_taps<kTaps, A>(tap, dw, channel_step);
}

constexpr int64_t kSumsAhead = 4;  // vectors: points are too many streams for the processor to foresee

// dw = G^T m G of `channels` input channels, side by side in m, `channel_step` apart in dw. The last vector is written
// whole. kStep: channel_step, where it is known.
template <class H, class W, int kStep, typename A>
__attribute__((noinline)) void sums_to_taps(const A* m, int64_t points, int64_t channels, bool flip, A* dw,
                                            int64_t channel_step) {
  constexpr int lanes = kLanes<A>;
  if (kStep > 0) channel_step = kStep;
  for (int64_t c = 0; c < channels; c += lanes, m += lanes, dw += lanes * channel_step) {
    Vec<A> half[W::r][H::n];
    const A* from = m;
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r) {
      Vec<A> d[W::n], out[W::r];
#pragma GCC unroll 8
      for (int s = 0; s < W::n; ++s, from += points) {
        __builtin_prefetch(from + kSumsAhead * lanes);
        d[s] = load(from);
      }
      weight_from_points<W, A>(d, out);
#pragma GCC unroll 8
      for (int s = 0; s < W::r; ++s) half[s][r] = out[s];
    }
    half_to_taps<H, W, A>(half, flip, dw, channel_step);
  }
}

// Few tiles: the products of a block of output channels with one vector of input channels are summed in registers, and
// go through both passes before they see memory. All is in L1: a row of points of both operands, and what the first
// pass makes of the block.
constexpr int64_t kProductBlock = 64 / int64_t(sizeof(float));  // output channels: a line of u

// As many output channels at once as leave registers for the operands.
template <class W>
constexpr int kProductRows = greatest(1, (CONVEXT_ISA_LEVEL == 3 ? 24 : 12) / W::n);

// One row of points, of kRows output channels, along w: half[k][s] + place.
template <class W, int kRows, typename A>
CONVEXT_INLINE void products_along_w(const A* u, WinogradSteps u_steps, const A* v, WinogradSteps v_steps,
                                     int64_t tiles, A* half, int64_t half_row, int64_t half_tap) {
  Vec<A> d[kRows][W::n] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    const A *row = u + t * u_steps.tiles, *column = v + t * v_steps.tiles;
#pragma GCC unroll 8
    for (int s = 0; s < W::n; ++s, row += u_steps.points, column += v_steps.points) {
      Vec<A> x = load(column);
      keep(x);
#pragma GCC unroll 8
      for (int k = 0; k < kRows; ++k) d[k][s] += splat<A>(row[k]) * x;
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kRows; ++k) {
    Vec<A> out[W::r];
    weight_from_points<W, A>(d[k], out);
#pragma GCC unroll 8
    for (int s = 0; s < W::r; ++s) store(half + k * half_row + s * half_tap, out[s]);
  }
}

// `rows` <= kProductBlock output channels; dw: row_step apart. The last vector is written whole.
template <class H, class W, int kStep, typename A>
__attribute__((noinline)) void products_to_taps(const A* u, WinogradSteps u_steps, const A* v, WinogradSteps v_steps,
                                                int64_t tiles, int64_t rows, bool flip, A* dw, int64_t row_step,
                                                int64_t channel_step) {
  constexpr int lanes = kLanes<A>, kTap = H::n * lanes, kRow = W::r * kTap, kMost = kProductRows<W>;
  if (kStep > 0) channel_step = kStep;
  alignas(64) A half[kProductBlock * kRow];
  for (int64_t k = 0; k < rows; ++k)  // asked for, to be written in the end
    for (int64_t i = 0; i < lanes * channel_step; i += 64 / int64_t(sizeof(A)))
      __builtin_prefetch(dw + k * row_step + i, 1);
  for (int r = 0; r < H::n; ++r, u += W::n * u_steps.points, v += W::n * v_steps.points) {
    int64_t k = 0;
    for (; k + kMost <= rows; k += kMost)
      products_along_w<W, kMost, A>(u + k, u_steps, v, v_steps, tiles, half + k * kRow + r * lanes, kRow, kTap);
    for (; k < rows; ++k)
      products_along_w<W, 1, A>(u + k, u_steps, v, v_steps, tiles, half + k * kRow + r * lanes, kRow, kTap);
  }
  for (int64_t k = 0; k < rows; ++k) {
    Vec<A> along_h[W::r][H::n];
#pragma GCC unroll 8
    for (int s = 0; s < W::r; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < H::n; ++r) along_h[s][r] = load(half + k * kRow + s * kTap + r * lanes);
    half_to_taps<H, W, A>(along_h, flip, dw + k * row_step, channel_step);
  }
}

template <class H, class W, typename T>
void multiply_to_taps(const Accumulate<T>* u, WinogradSteps u_steps, const Accumulate<T>* v, WinogradSteps v_steps,
                      int64_t tiles, int64_t rows, int64_t channels, bool flip, T* dw, int64_t row_step,
                      int64_t channel_step) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>, kTaps = H::r * W::r;
  for (int64_t c = 0; c < channels; c += lanes)
    for (int64_t k = 0; k < rows; k += kProductBlock) {
      const int64_t some = least(channels - c, lanes), high = least(rows - k, kProductBlock);
      T* to = dw + k * row_step + c * channel_step;
      if constexpr (std::is_same_v<T, A>)
        if (some == lanes) {
          (channel_step == kTaps ? products_to_taps<H, W, kTaps, A>
                                 : products_to_taps<H, W, 0, A>)(u + k, u_steps, v + c, v_steps, tiles, high, flip, to,
                                                                 row_step, channel_step);
          continue;
        }
      constexpr int64_t kNumbers = lanes * kTaps + lanes;
      A number[kProductBlock * kNumbers];
      products_to_taps<H, W, kTaps, A>(u + k, u_steps, v + c, v_steps, tiles, high, flip, number, kNumbers, kTaps);
      for (int64_t i = 0; i < high; ++i)
        store_numbers<kTaps>(number + i * kNumbers, some, to + i * row_step, channel_step);
    }
}

template <class H, class W, typename T>
void transform_sums(const Accumulate<T>* m, int64_t points, int64_t channels, bool flip, T* dw, int64_t channel_step) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>, kTaps = H::r * W::r;
  int64_t c = 0;
  if constexpr (std::is_same_v<T, A>) {
    c = channels / lanes * lanes;
    if (channel_step == kTaps)
      sums_to_taps<H, W, kTaps, A>(m, points, c, flip, dw, kTaps);
    else
      sums_to_taps<H, W, 0, A>(m, points, c, flip, dw, channel_step);
  }
  for (; c < channels; c += lanes) {
    A number[lanes * kTaps + lanes];
    sums_to_taps<H, W, kTaps, A>(m + c, points, lanes, flip, number, kTaps);
    store_numbers<kTaps>(number, least(channels - c, lanes), dw + c * channel_step, channel_step);
  }
}

template <typename T, class H, class W>
constexpr WinogradWeightKernel<T> kWinogradWeight = {
    H::m,
    W::m,
    H::n,
    W::n,
    operand_strip<OfInput<H>, OfInput<W>, Accumulate<T>>,  // the wider of the two
    transform_operand<OfInput<H>, OfInput<W>, T>,
    transform_operand<OfGradient<H>, OfGradient<W>, T>,
    transform_sums<H, W, T>,
    multiply_to_taps<H, W, T>,
};

// In the order of WinogradTile.
template <typename T>
constexpr const WinogradWeightKernel<T>* kWinogradWeightKernels[] = {
    &kWinogradWeight<T, Minimal<2, 3>, Minimal<2, 3>>, &kWinogradWeight<T, Minimal<4, 3>, Minimal<4, 3>>,
    &kWinogradWeight<T, Minimal<2, 5>, Minimal<2, 5>>, &kWinogradWeight<T, Minimal<4, 5>, Minimal<4, 5>>,
    &kWinogradWeight<T, Plain, Minimal<2, 3>>,         &kWinogradWeight<T, Plain, Minimal<4, 3>>,
    &kWinogradWeight<T, Plain, Minimal<2, 5>>,         &kWinogradWeight<T, Plain, Minimal<4, 5>>,
};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
