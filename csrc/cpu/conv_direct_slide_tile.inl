// Register tiles of the direct convolution that slide over a tile of the source: up to kOuts output channels x as many
// vectors of output columns as kSumVectors registers hold, one broadcast weight against each loaded vector per step:
//
//   sum[k][j] += w[k, c, tap] * tile[c][j + offset(tap)]
//
// 12 multiply-adds per 7 or 8 loads with AVX2, 24 per 10 with AVX-512; whichever is fewer, weights or vectors, stays in
// registers through a step. Weights are read in place; half types are widened, chunk by chunk, into a small array. Sums
// go to one of two places: SlideSums, where they wait for the next tile, or SlideOutputs, the output itself.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kOuts = 6;
constexpr int kMaxWide = 6;
constexpr int kSumVectors = CONVEXT_ISA_LEVEL == 3 ? 24 : 12;  // of a register tile
constexpr int kFullWide = kSumVectors / kOuts;

struct Tap {
  int64_t offset, weight;
};

// What a register tile sums over: the tile's channels and taps, for weights that start at w. out_stride and
// channel_stride: elements from output channel to output channel, from summed to summed channel.
template <typename A>
struct SlideTaps {
  const A* tile;
  int64_t plane, channels;
  const Tap* taps;
  int64_t tap_count;
  const A* w;
  int64_t out_stride, channel_stride;
};

// at: of the first vector in the tile.
template <typename A, int kHigh, int kVectors>
CONVEXT_INLINE void slide_taps(Vec<A> (&sum)[kHigh][kVectors], const SlideTaps<A>& s, int64_t at) {
  constexpr int kCount = kLanes<A>;
  const A *tile = s.tile + at, *w = s.w;
  const int64_t out_stride = s.out_stride;
  for (int64_t c = 0; c < s.channels; ++c, tile += s.plane, w += s.channel_stride)
    for (int64_t i = 0; i < s.tap_count; ++i) {
      const A *from = tile + s.taps[i].offset, *weight = w + s.taps[i].weight;
      if constexpr (kHigh < kVectors) {  // the fewer stay in registers
        Vec<A> factor[kHigh];
#pragma GCC unroll 8
        for (int k = 0; k < kHigh; ++k) factor[k] = splat<A>(weight[k * out_stride]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const Vec<A> x = load(from + v * kCount);
#pragma GCC unroll 8
          for (int k = 0; k < kHigh; ++k) sum[k][v] += factor[k] * x;
        }
      } else {
        Vec<A> x[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) x[v] = load(from + v * kCount);
#pragma GCC unroll 8
        for (int k = 0; k < kHigh; ++k) {
          const Vec<A> factor = splat<A>(weight[k * out_stride]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sum[k][v] += factor * x[v];
        }
      }
    }
}

// Where sums wait for the next tile: `vectors` vectors per output channel.
template <typename T>
struct SlideSums {
  using A = Accumulate<T>;
  A* sums;
  int64_t stride, vectors;

  template <int kHigh, int kVectors>
  static void tile(const SlideSums& to, const SlideTaps<A>& s, int64_t k, int64_t v) {
    constexpr int kCount = kLanes<A>;
    A* sums = to.sums + k * to.stride + v * kCount;
    Vec<A> sum[kHigh][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = load(sums + i * to.stride + j * kCount);
    slide_taps<A, kHigh, kVectors>(sum, s, v * kCount);
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) store(sums + i * to.stride + j * kCount, sum[i][j]);
  }

  template <int kHigh>
  void run(const SlideTaps<A>& s, int64_t k) const;
};

// Where one tile holds all that is summed over: outputs, contiguous, `rows` rows of `columns` columns, the tile's
// `pitch` apart. Vectors that pass a row's end but stay below `end` are stored whole: rows go down, columns from right
// to left, so what they write too much is written again.
template <typename T>
struct SlideOutputs {
  using A = Accumulate<T>;
  T* y;
  int64_t channel_stride, row_stride, rows, columns, pitch;
  const T* end;  // in the first channel
  const A* start;

  template <int kHigh, int kVectors>
  static void tile(const SlideOutputs& to, const SlideTaps<A>& s, int64_t k, int64_t row, int64_t v) {
    constexpr int64_t kCount = kLanes<A>;
    Vec<A> sum[kHigh][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = splat<A>(to.start[k + i]);
    slide_taps<A, kHigh, kVectors>(sum, s, row * to.pitch + v * kCount);
    T* y = to.y + row * to.row_stride + v * kCount;
    const bool whole = (v + kVectors) * kCount <= to.columns || y + kVectors * kCount <= to.end;
#pragma GCC unroll 8
    for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        T* at = y + (k + i) * to.channel_stride + j * kCount;
        if (whole)
          store(at, sum[i][j]);
        else
          store_rest(at, sum[i][j], clamp(to.columns - (v + j) * kCount, 0, kCount));
      }
  }

  template <int kHigh>
  void run(const SlideTaps<A>& s, int64_t k) const;
};

// The register tile of kHigh output channels and the vectors that are wanted, at most kVectors.
template <typename Sink, int kHigh, int kVectors>
auto slide_tile_of(int64_t vectors) {
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return slide_tile_of<Sink, kHigh, kVectors - 1>(vectors);
  return &Sink::template tile<kHigh, kVectors>;
}

template <typename Sink, int kHigh>
auto slide_tile_of(int64_t vectors) {
  return slide_tile_of<Sink, kHigh, least(kMaxWide, kSumVectors / kHigh)>(vectors);
}

template <int kHigh>
CONVEXT_INLINE int64_t slide_parts(int64_t vectors) {
  return ceil_div(vectors, least(kMaxWide, kSumVectors / kHigh));
}

template <typename T>
template <int kHigh>
void SlideSums<T>::run(const SlideTaps<A>& s, int64_t k) const {
  const int64_t parts = slide_parts<kHigh>(vectors);
  for (int64_t i = 0, v = 0; i < parts; ++i) {
    const int64_t wide = (vectors - v + parts - i - 1) / (parts - i);
    slide_tile_of<SlideSums, kHigh>(wide)(*this, s, k, v);
    v += wide;
  }
}

template <typename T>
template <int kHigh>
void SlideOutputs<T>::run(const SlideTaps<A>& s, int64_t k) const {
  const int64_t vectors = ceil_div(columns, kLanes<A>), parts = slide_parts<kHigh>(vectors);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0, v = vectors; i < parts; ++i) {
      const int64_t wide = (v + parts - i - 1) / (parts - i);
      v -= wide;
      slide_tile_of<SlideOutputs, kHigh>(wide)(*this, s, k, row, v);
    }
}

// The arrays of a task. raw: half weights brought together before they are widened.
template <typename T>
struct SlideArrays {
  using A = Accumulate<T>;
  static constexpr bool kWiden = sizeof(T) != sizeof(A);
  alignas(64) A tile[kTileSize<A> + 2 * kLanes<A>];
  alignas(64) A sums[kSumsSize<A> + 2 * kLanes<A>];
  alignas(64) A weights[kWiden ? kWeightsSize<A> + kLanes<A> : 1];
  T raw[kWiden ? kWeightsSize<A> + kLanes<A> : 1];
  Tap taps[kMaxTaps], own_taps[kWiden ? kMaxTaps : 1];
};

// The tile's channels and taps for `outs` output channels, into `sink` (SlideSums, SlideOutputs). w points at the first
// output and first summed channel.
template <typename T, typename Sink>
void slide_all(SlideArrays<T>& a, const Sink& sink, int64_t outs, const Accumulate<T>* tile, int64_t plane,
               int64_t channels, int64_t tap_count, int64_t all_taps, const T* w, int64_t out_stride,
               int64_t channel_stride) {
  using A = Accumulate<T>;
  if constexpr (SlideArrays<T>::kWiden)  // copies keep the taps of a chunk in the order of memory if all are there
    for (int64_t i = 0; i < tap_count; ++i)
      a.own_taps[i] = {a.taps[i].offset, tap_count == all_taps ? a.taps[i].weight : i};
  const int64_t blocks = ceil_div(outs, kOuts);
  for (int64_t block = 0, k = 0, high; block < blocks; ++block, k += high) {
    high = (outs - k + blocks - block - 1) / (blocks - block);
    const A* weights;
    const Tap* taps = a.taps;
    int64_t from_out = out_stride, from_channel = channel_stride;
    if constexpr (SlideArrays<T>::kWiden) {
      const T* first = w + k * out_stride;
      const bool channels_inside = channel_stride == all_taps;
      const int64_t outer = channels_inside ? high : channels, inner = channels_inside ? channels : high;
      const int64_t outer_stride = channels_inside ? out_stride : channel_stride, run = inner * tap_count;
      const int64_t inner_stride = channels_inside ? channel_stride : out_stride;
      for (int64_t y = 0; y < outer; ++y) {
        const T* source = first + y * outer_stride;
        if (tap_count != all_taps) {
          for (int64_t x = 0; x < inner; ++x)
            for (int64_t i = 0; i < tap_count; ++i)
              a.raw[x * tap_count + i] = source[x * inner_stride + a.taps[i].weight];
          source = a.raw;
        }
        A* to = a.weights + y * run;
        int64_t i = 0;
        for (; i + kLanes<A> <= run; i += kLanes<A>) store(to + i, load(source + i));
        if (i < run) store(to + i, load_part(source + i, 0, int(run - i)));  // what follows is written later
      }
      weights = a.weights;
      taps = a.own_taps;
      from_out = channels_inside ? run : tap_count;
      from_channel = channels_inside ? tap_count : run;
    } else {
      weights = w + k * out_stride;
    }
    const SlideTaps<A> s = {tile, plane, channels, taps, tap_count, weights, from_out, from_channel};
    switch (high) {
      case 1: sink.template run<1>(s, k); break;
      case 2: sink.template run<2>(s, k); break;
      case 3: sink.template run<3>(s, k); break;
      case 4: sink.template run<4>(s, k); break;
      case 5: sink.template run<5>(s, k); break;
      default: sink.template run<kOuts>(s, k);
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
