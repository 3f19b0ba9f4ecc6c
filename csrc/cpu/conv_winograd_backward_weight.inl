// The transforms of winograd's gradient of the weight for one instruction set; the formulas are in ../winograd.h.
//
// Operands: both are wanted with channels side by side, because the products sum over tiles. Along h and along w a
// vector holds channels, into which rows of contiguous planes are turned. A strip holds a run of tiles and stays in L1.
// Sums: lanes are input channels; a vector of every tap, of all phases of a stride, is stored as it is (channels_last)
// or transposed to lie channel by channel.

#include "conv_winograd_points.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// g = G^T m, the transpose of weight_to_points. Products are used once: where they are used more often, or some taps
// are not wanted, compilers would fuse them with additions here and not there.
template <class F, typename A>
CONVEXT_INLINE void weight_from_points(const Vec<A>* m, Vec<A>* g) {
  using V = Vec<A>;
  if constexpr (F::n == 1) {
    g[0] = m[0];
  } else {
    V sum[F::pairs], difference[F::pairs];
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      const V plus = m[F::zero + 2 * p], minus = m[F::zero + 2 * p + 1];
      sum[p] = pair_element<F, A>(p, plus + minus);
      difference[p] = pair_element<F, A>(p, plus - minus);
    }
#pragma GCC unroll 8
    for (int i = 0; i < F::r; ++i) {
      V out = i == 0 && F::zero ? divided<A>(m[0], F::k.f[0]) : i == F::r - 1 ? m[F::n - 1] : V{};
#pragma GCC unroll 4
      for (int p = 0; p < F::pairs; ++p)
        out += A(F::k.power[p][i] * pair_scale<F, A>(p)) * (i % 2 == 0 ? sum[p] : difference[p]);
      g[i] = out;
    }
  }
}

constexpr int64_t kWeightRun = 8;  // tiles of a run: what two vectors of channels write of them stays in L1

template <class W>
constexpr int64_t kStripColumns = (kWeightRun - 1) * W::step + W::window;

// Of a strip, then of turned rows, of which a stride of 2 leaves every second column out.
template <class H, class W, typename A>
constexpr int64_t kStripElements = H::points * kStripColumns<W> * kLanes<A>;
template <class H, class W, typename A>
int64_t operand_strip(Layout layout) {
  return kStripElements<H, W, A> + (layout == Layout::contiguous ? 2 * H::window * kStripColumns<W> * kLanes<A> : 0);
}

template <class H, class W, typename T>
void transform_operand(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradPhase phase,
                       WinogradTiles tiles, int64_t channels, Accumulate<T>* v, WinogradSteps steps,
                       Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t t = tiles.begin; t < tiles.end;) {
    const TileRun run = tile_run(tiles, t, kWeightRun);
    const int64_t count = run.last - run.first;
    const int64_t first = run.first * W::step * g.stride[2] + phase.w - g.pad_before[2];
    const int64_t columns = (count - 1) * W::step + W::window;
    int64_t row[H::window];
    shown_rows<H>(g, run.i * H::step * g.stride[1] + phase.h - g.pad_before[1], row);
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
      transform_strip<W, A, false>(strip, H::points - int(phase.short_h), !phase.short_w, count, int(lanes),
                                   v + run.at * steps.tiles + c, steps);
    }
  }
}

// The taps of one vector of input channels.
template <int kTaps, typename A>
CONVEXT_INLINE void store_taps(const Vec<A>* tap, A* to, TapSteps steps) {
  constexpr int lanes = kLanes<A>, fours = lanes < 4 ? 0 : kTaps / 4 * 4;
  if (steps.channel == 1) {
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) store(to + t * steps.tap, tap[t]);
    return;
  }
  if constexpr (fours > 0) {
#pragma GCC unroll 8
    for (int t = 0; t < fours; t += 4) {
      Vec<A> v[4];
      transpose_quads<A>(tap + t, v);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store_quads<lanes, A>(to + i * steps.channel + t, 4 * steps.channel, v[i]);
    }
  }
#pragma GCC unroll 8
  for (int t = fours; t < kTaps; ++t) {
    A number[lanes];
    store(number, tap[t]);
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) to[l * steps.channel + t] = number[l];
  }
}

// A vector of input channels aside, in the same order: where it is no whole one, or T is not A.
template <int kTaps, typename A>
constexpr TapSteps steps_aside(TapSteps steps) {
  return steps.channel == 1 ? TapSteps{1, kLanes<A>} : TapSteps{kTaps, 1};
}

// The taps of `channels` channels from there to where they belong.
template <int kTaps, typename T>
CONVEXT_INLINE void store_aside(const Accumulate<T>* number, int64_t channels, T* to, TapSteps steps) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const auto put = [](const Accumulate<T>* from, int64_t count, T* at) {
    for (int64_t j = 0; j < count; j += lanes)
      if (j + lanes <= count)
        store(at + j, load(from + j));
      else
        store_part(at + j, load(from + j), 0, int(count - j));
  };
  if (steps.channel == 1)
    for (int64_t t = 0; t < kTaps; ++t) put(number + t * lanes, channels, to + t * steps.tap);
  else if (steps.channel == kTaps)
    put(number, channels * kTaps, to);
  else
    for (int64_t i = 0; i < channels; ++i) put(number + i * kTaps, kTaps, to + i * steps.channel);
}

// The taps of a kernel: those of H and W or, with a stride of 2, of all phases.
template <class H_, class W_, int kStride, bool kOdd>
struct Taps {
  using H = H_;
  using W = W_;
  static constexpr int phases = kStride * kStride, high = H::r * kStride - kOdd, wide = W::r * kStride - kOdd;
  static constexpr int count = high * wide;
  static constexpr WinogradPhase phase(int i) {
    return phases == 1 ? WinogradPhase{}
                       : WinogradPhase{kPhases[i].h, kPhases[i].w, kOdd && kPhases[i].h > 0, kOdd && kPhases[i].w > 0};
  }
  // Points along an axis that are wanted of a phase.
  static constexpr int points_h(int i) { return H::n - int(phase(i).short_h); }
  static constexpr int points_w(int i) { return W::n - int(phase(i).short_w); }
  // Which tap of the kernel one of a phase is; none: -1.
  static constexpr int tap(int i, int r, int s) {
    const int h = int(phase(i).h) + r * kStride, w = int(phase(i).w) + s * kStride;
    return h < high && w < wide ? h * wide + w : -1;
  }
};

// The second pass, along h, of one vector of input channels.
template <class K, int kPhase, typename A>
CONVEXT_INLINE void half_to_taps(const Vec<A> (&half)[K::W::r][K::H::n], bool flip, Vec<A>* tap) {
#pragma GCC unroll 8
  for (int s = 0; s < K::W::r; ++s) {
    Vec<A> out[K::H::r];
    weight_from_points<typename K::H, A>(half[s], out);
#pragma GCC unroll 8
    for (int r = 0; r < K::H::r; ++r)
      if (K::tap(kPhase, r, s) >= 0) tap[flip ? K::count - 1 - K::tap(kPhase, r, s) : K::tap(kPhase, r, s)] = out[r];
  }
}

constexpr int64_t kSumsAhead = 4;  // vectors: points are too many streams for the processor to foresee

// Both passes over the sums of a phase.
template <class K, int kPhase, typename A>
CONVEXT_INLINE void sums_of_phase(const A* m, int64_t points, int64_t phases, bool flip, Vec<A>* tap) {
  if constexpr (kPhase < K::phases) {
    using H = typename K::H;
    using W = typename K::W;
    constexpr int kPointsH = K::points_h(kPhase), kPointsW = K::points_w(kPhase);
    Vec<A> half[W::r][H::n] = {};
    const A* from = m + kPhase * phases;
#pragma GCC unroll 8
    for (int r = 0; r < kPointsH; ++r) {
      Vec<A> d[W::n] = {}, out[W::r];
#pragma GCC unroll 8
      for (int s = 0; s < kPointsW; ++s) {
        __builtin_prefetch(from + s * points + kSumsAhead * kLanes<A>);
        d[s] = load(from + s * points);
      }
      from += W::n * points;
      weight_from_points<W, A>(d, out);
#pragma GCC unroll 8
      for (int s = 0; s < W::r; ++s) half[s][r] = out[s];
    }
    half_to_taps<K, kPhase, A>(half, flip, tap);
  }
}

// dw = G^T m G of `channels` input channels, side by side in m. The last vector is written whole. kStep: that of
// channels, where it is known.
template <class K, int kStep, typename A>
__attribute__((noinline)) void sums_to_taps(const A* m, int64_t points, int64_t phases, int64_t channels, bool flip,
                                            A* dw, TapSteps steps) {
  constexpr int lanes = kLanes<A>;
  if (kStep > 0) steps.channel = kStep;
  for (int64_t c = 0; c < channels; c += lanes, m += lanes, dw += lanes * steps.channel) {
    Vec<A> tap[K::count];
    sums_of_phase<K, 0, A>(m, points, phases, flip, tap);
    sums_of_phase<K, 1, A>(m, points, phases, flip, tap);
    sums_of_phase<K, 2, A>(m, points, phases, flip, tap);
    sums_of_phase<K, 3, A>(m, points, phases, flip, tap);
    store_taps<K::count, A>(tap, dw, steps);
  }
}

// Few tiles: the products of a block of output channels with one vector of input channels are summed in registers, and
// go through both passes before they see memory. All is in L1: a row of points of both operands, and what the first
// pass makes of the block.
template <class K>
constexpr int64_t kProductBlock = 64 / int64_t(sizeof(float)) / (K::phases > 1 ? 2 : 1);  // outputs: of a line of u

// As many output channels at once as leave registers for the operands.
template <class W>
constexpr int kProductRows = greatest(1, (CONVEXT_ISA_LEVEL == 3 ? 24 : 12) / W::n);

// One row of points, of kRows output channels, along w: half[k][s] + place. The last point is not always wanted.
template <class W, int kPoints, int kRows, typename A>
CONVEXT_INLINE void products_along_w(const A* u, WinogradSteps u_steps, const A* v, WinogradSteps v_steps,
                                     int64_t tiles, A* half, int64_t half_row, int64_t half_tap) {
  Vec<A> d[kRows][W::n] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    const A *row = u + t * u_steps.tiles, *column = v + t * v_steps.tiles;
#pragma GCC unroll 8
    for (int s = 0; s < kPoints; ++s, row += u_steps.points, column += v_steps.points) {
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

// What the first pass leaves of a phase: half[tap along w][point along h][lane].
template <class K, typename A>
constexpr int kHalf = K::W::r * K::H::n * kLanes<A>;

// The first pass, of all output channels of a block.
template <class K, int kPhase, typename A>
CONVEXT_INLINE void products_of_phase(const A* u, WinogradSteps u_steps, const A* v, WinogradSteps v_steps,
                                      int64_t phases, int64_t tiles, int64_t rows, A* half) {
  if constexpr (kPhase < K::phases) {
    using H = typename K::H;
    using W = typename K::W;
    constexpr int lanes = kLanes<A>, kTap = H::n * lanes, kRow = K::phases * kHalf<K, A>, kMost = kProductRows<W>;
    constexpr int kPoints = K::points_w(kPhase);
    v += kPhase * phases, half += kPhase * kHalf<K, A>;
    for (int r = 0; r < K::points_h(kPhase); ++r, u += W::n * u_steps.points, v += W::n * v_steps.points) {
      A* to = half + r * lanes;
      int64_t k = 0;
      for (; k + kMost <= rows; k += kMost)
        products_along_w<W, kPoints, kMost, A>(u + k, u_steps, v, v_steps, tiles, to + k * kRow, kRow, kTap);
      for (; k < rows; ++k)
        products_along_w<W, kPoints, 1, A>(u + k, u_steps, v, v_steps, tiles, to + k * kRow, kRow, kTap);
    }
  }
}

// The second.
template <class K, int kPhase, typename A>
CONVEXT_INLINE void halves_of_phase(const A* from, bool flip, Vec<A>* tap) {
  if constexpr (kPhase < K::phases) {
    using H = typename K::H;
    constexpr int kPoints = K::points_h(kPhase);
    Vec<A> half[K::W::r][H::n] = {};
    from += kPhase * kHalf<K, A>;
#pragma GCC unroll 8
    for (int s = 0; s < K::W::r; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < kPoints; ++r) half[s][r] = load(from + (s * H::n + r) * kLanes<A>);
    half_to_taps<K, kPhase, A>(half, flip, tap);
  }
}

// `rows` <= kProductBlock output channels; dw: row_step apart. The last vector is written whole.
template <class K, int kStep, typename A>
__attribute__((noinline)) void products_to_taps(const A* u, WinogradSteps u_steps, const A* v, WinogradSteps v_steps,
                                                int64_t phases, int64_t tiles, int64_t rows, bool flip, A* dw,
                                                int64_t row_step, TapSteps steps) {
  constexpr int lanes = kLanes<A>, kRow = K::phases * kHalf<K, A>, kLine = 64 / int(sizeof(A));
  if (kStep > 0) steps.channel = kStep;
  alignas(64) A half[kProductBlock<K> * kRow];
  const bool together = steps.channel == 1;  // the channels of a tap
  const int64_t lines = together ? K::count : ceil_div(lanes * steps.channel, int64_t(kLine));
  for (int64_t k = 0; k < rows; ++k)  // asked for, to be written in the end
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(dw + k * row_step + i * (together ? steps.tap : kLine), 1);
  products_of_phase<K, 0, A>(u, u_steps, v, v_steps, phases, tiles, rows, half);
  products_of_phase<K, 1, A>(u, u_steps, v, v_steps, phases, tiles, rows, half);
  products_of_phase<K, 2, A>(u, u_steps, v, v_steps, phases, tiles, rows, half);
  products_of_phase<K, 3, A>(u, u_steps, v, v_steps, phases, tiles, rows, half);
  for (int64_t k = 0; k < rows; ++k) {
    Vec<A> tap[K::count];
    halves_of_phase<K, 0, A>(half + k * kRow, flip, tap);
    halves_of_phase<K, 1, A>(half + k * kRow, flip, tap);
    halves_of_phase<K, 2, A>(half + k * kRow, flip, tap);
    halves_of_phase<K, 3, A>(half + k * kRow, flip, tap);
    store_taps<K::count, A>(tap, dw + k * row_step, steps);
  }
}

template <class K, typename T>
void multiply_to_taps(const Accumulate<T>* u, WinogradSteps u_steps, const Accumulate<T>* v, WinogradSteps v_steps,
                      int64_t phases, int64_t tiles, int64_t rows, int64_t channels, bool flip, T* dw, int64_t row_step,
                      TapSteps steps) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>, kTaps = K::count, kBlock = kProductBlock<K>;
  for (int64_t c = 0; c < channels; c += lanes)
    for (int64_t k = 0; k < rows; k += kBlock) {
      const int64_t some = least(channels - c, lanes), high = least(rows - k, kBlock);
      T* to = dw + k * row_step + c * steps.channel;
      if constexpr (std::is_same_v<T, A>)
        if (some == lanes) {
          (steps.channel == kTaps ? products_to_taps<K, kTaps, A>
                                  : products_to_taps<K, 0, A>)(u + k, u_steps, v + c, v_steps, phases, tiles, high,
                                                               flip, to, row_step, steps);
          continue;
        }
      constexpr int64_t kNumbers = lanes * kTaps + lanes;
      A number[kBlock * kNumbers];
      products_to_taps<K, 0, A>(u + k, u_steps, v + c, v_steps, phases, tiles, high, flip, number, kNumbers,
                                steps_aside<kTaps, A>(steps));
      for (int64_t i = 0; i < high; ++i) store_aside<kTaps>(number + i * kNumbers, some, to + i * row_step, steps);
    }
}

template <class K, typename T>
void transform_sums(const Accumulate<T>* m, int64_t points, int64_t phases, int64_t channels, bool flip, T* dw,
                    TapSteps steps) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>, kTaps = K::count;
  int64_t c = 0;
  if constexpr (std::is_same_v<T, A>) {
    c = channels / lanes * lanes;
    (steps.channel == kTaps ? sums_to_taps<K, kTaps, A> : sums_to_taps<K, 0, A>)(m, points, phases, c, flip, dw, steps);
  }
  for (; c < channels; c += lanes) {
    A number[lanes * kTaps + lanes];
    sums_to_taps<K, 0, A>(m + c, points, phases, lanes, flip, number, steps_aside<kTaps, A>(steps));
    store_aside<kTaps>(number, least(channels - c, lanes), dw + c * steps.channel, steps);
  }
}

template <typename T, class K, bool kThere>
constexpr WinogradToTaps<T> to_taps() {
  if constexpr (kThere)
    return {transform_sums<K, T>, multiply_to_taps<K, T>};
  else
    return {};
}

// kPlain: the tile is for a stride of 1; kStrided: for one of 2.
template <typename T, class H, class W, bool kPlain = true, bool kStrided = false>
constexpr WinogradWeightKernel<T> kWinogradWeight = {
    H::m,
    W::m,
    H::n,
    W::n,
    operand_strip<OfInput<H>, OfInput<W>, Accumulate<T>>,  // the wider of the two
    transform_operand<OfInput<H>, OfInput<W>, T>,
    transform_operand<OfGradient<H>, OfGradient<W>, T>,
    to_taps<T, Taps<H, W, 1, false>, kPlain>(),
    to_taps<T, Taps<H, W, 2, false>, kStrided>(),
    to_taps<T, Taps<H, W, 2, true>, kStrided>(),
};

// In the order of WinogradTile.
template <typename T>
constexpr const WinogradWeightKernel<T>* kWinogradWeightKernels[] = {
    &kWinogradWeight<T, Minimal<2, 3>, Minimal<2, 3>>,
    &kWinogradWeight<T, Minimal<4, 3>, Minimal<4, 3>, true, true>,
    &kWinogradWeight<T, Minimal<2, 5>, Minimal<2, 5>>,
    &kWinogradWeight<T, Minimal<4, 5>, Minimal<4, 5>>,
    &kWinogradWeight<T, Plain, Minimal<2, 3>>,
    &kWinogradWeight<T, Plain, Minimal<4, 3>>,
    &kWinogradWeight<T, Plain, Minimal<2, 5>>,
    &kWinogradWeight<T, Plain, Minimal<4, 5>>,
    &kWinogradWeight<T, Minimal<4, 2>, Minimal<4, 2>, true, true>,
    nullptr,
    &kWinogradWeight<T, Minimal<2, 4>, Minimal<2, 4>, false, true>,
    &kWinogradWeight<T, Minimal<4, 4>, Minimal<4, 4>, false, true>,
};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
