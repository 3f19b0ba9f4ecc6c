// The transforms of winograd for one instruction set; the formulas are in ../winograd.h.
//
// Both passes of a transform go first along one axis, then along the other, with whole vectors either way:
//   contiguous      lanes are columns in the first pass (down the rows), tiles in the second: columns are dealt out to
//                   m phases by de-interleaving, since tile j begins at column j m
//   channels_last   lanes are channels in both
// The strip between the passes holds the n transformed rows of a run of tiles and stays in L1. Padding costs nothing
// inside: rows that see it are null, columns that see it are filled in the strip, where by linearity a column that
// shows another is transformed like it.

namespace convext::cpu::CONVEXT_ISA {
namespace {

using winograd::Minimal;
using winograd::Plain;

// A vector or a single number of type A. (A vector type that is deduced as a template argument would lose that it may
// lie anywhere.)
template <typename A, bool kVector>
struct Operand {
  using type = A;
};
template <typename A>
struct Operand<A, true> {
  using type = Vec<A>;
};

// u = B^T d
template <class F, typename A, bool kVector = true>
CONVEXT_INLINE void to_points(const typename Operand<A, kVector>::type* d, typename Operand<A, kVector>::type* u) {
  using V = typename Operand<A, kVector>::type;
  if constexpr (F::n == 1) {
    u[0] = d[0];
  } else {
    V zero = d[2 * F::pairs], infinity = d[2 * F::pairs + 1];
#pragma GCC unroll 4
    for (int j = 0; j < F::pairs; ++j) {
      zero += A(F::k.f[j]) * d[2 * j];
      infinity += A(F::k.f[j]) * d[2 * j + 1];
    }
    u[0] = zero;
    u[F::n - 1] = infinity;
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      V even = d[2 * F::pairs], odd = d[2 * F::pairs - 1];
#pragma GCC unroll 4
      for (int j = 0; j < F::pairs - 1; ++j) {
        even += A(F::k.q[p][j]) * d[2 * j + 2];
        odd += A(F::k.q[p][j]) * d[2 * j + 1];
      }
      u[1 + 2 * p] = even + A(F::k.power[p][1]) * odd;
      u[2 + 2 * p] = even - A(F::k.power[p][1]) * odd;
    }
  }
}

// y = A^T m
template <class F, typename A>
CONVEXT_INLINE void from_points(const Vec<A>* m, Vec<A>* y) {
  using V = Vec<A>;
  if constexpr (F::n == 1) {
    y[0] = m[0];
  } else {
    V sum[F::pairs], difference[F::pairs];
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      sum[p] = m[1 + 2 * p] + m[2 + 2 * p];
      difference[p] = m[1 + 2 * p] - m[2 + 2 * p];
    }
#pragma GCC unroll 8
    for (int i = 0; i < F::m; ++i) {
      V out = i == 0 ? m[0] + sum[0] : A(F::k.power[0][i]) * (i % 2 == 0 ? sum[0] : difference[0]);
#pragma GCC unroll 4
      for (int p = 1; p < F::pairs; ++p)
        out += i == 0 ? sum[p] : A(F::k.power[p][i]) * (i % 2 == 0 ? sum[p] : difference[p]);
      if (i == F::m - 1) out += m[F::n - 1];
      y[i] = out;
    }
  }
}

// x / divisor. In float64 by division, so that weights which are multiples of the divisors transform exactly.
template <typename A>
CONVEXT_INLINE Vec<A> divided(Vec<A> x, double divisor) {
  if constexpr (sizeof(A) == 8) return x / A(divisor);
  return x * A(1 / divisor);
}

// u = G g
template <class F, typename A>
CONVEXT_INLINE void weight_to_points(const Vec<A>* g, Vec<A>* u) {
  using V = Vec<A>;
  if constexpr (F::n == 1) {
    u[0] = g[0];
  } else {
    u[0] = divided<A>(g[0], F::k.f[0]);
    u[F::n - 1] = g[F::r - 1];
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      V even = g[0], odd = A(F::k.power[p][1]) * g[1];
#pragma GCC unroll 8
      for (int i = 2; i < F::r; ++i) (i % 2 == 0 ? even : odd) += A(F::k.power[p][i]) * g[i];
      u[1 + 2 * p] = divided<A>(even + odd, F::k.divisor[p]);
      u[2 + 2 * p] = divided<A>(even - odd, F::k.divisor[p]);
    }
  }
}

template <typename A>
using Lanes = std::make_integer_sequence<int, kLanes<A>>;

// Every second lane of a and b, from `first` on; the way back, a lane of a and one of b in turn.
template <int kFirst, typename A, int... I>
CONVEXT_INLINE Vec<A> pick_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + kFirst)...);
}
template <int kHalf, typename A, int... I>
CONVEXT_INLINE Vec<A> zip_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kHalf * kLanes<A> / 2 + I / 2 + I % 2 * kLanes<A>)...);
}
// The same inside every four lanes: elements 0 and 1 (kHalf 0) or 2 and 3 of a and b in turn; or both of a, then of b.
template <int kHalf, typename A, int... I>
CONVEXT_INLINE Vec<A> zip_quads(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 * kHalf + I % 4 / 2 + I % 2 * kLanes<A>)...);
}
template <int kHalf, typename A, int... I>
CONVEXT_INLINE Vec<A> join_quads(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 * kHalf + I % 2 + I % 4 / 2 * kLanes<A>)...);
}

// Transposes the 4 x 4 squares that every four lanes of four vectors make.
template <typename A>
CONVEXT_INLINE void transpose_quads(const Vec<A>* v, Vec<A>* to) {
  const Vec<A> a = zip_quads<0, A>(v[0], v[1], Lanes<A>()), b = zip_quads<0, A>(v[2], v[3], Lanes<A>());
  const Vec<A> c = zip_quads<1, A>(v[0], v[1], Lanes<A>()), d = zip_quads<1, A>(v[2], v[3], Lanes<A>());
  to[0] = join_quads<0, A>(a, b, Lanes<A>());
  to[1] = join_quads<1, A>(a, b, Lanes<A>());
  to[2] = join_quads<0, A>(c, d, Lanes<A>());
  to[3] = join_quads<1, A>(c, d, Lanes<A>());
}

template <typename A, int kCount>
struct ShortType {
  typedef A type __attribute__((vector_size(kCount * sizeof(A)), aligned(sizeof(A)), may_alias));
};
template <typename A, int kCount>
using Short = typename ShortType<A, kCount>::type;

template <typename V, int... I>
CONVEXT_INLINE auto joined(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}
template <int kFirst, typename V, int... I>
CONVEXT_INLINE auto part_of(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (kFirst + I)...);
}

// kCount / 4 times four elements, 16 apart.
template <int kCount, typename A>
CONVEXT_INLINE Short<A, kCount> load_quads(const A* p) {
  if constexpr (kCount == 4)
    return *reinterpret_cast<const Short<A, 4>*>(p);
  else
    return joined(load_quads<kCount / 2>(p), load_quads<kCount / 2>(p + 2 * kCount),
                  std::make_integer_sequence<int, kCount>());
}
template <int kCount, typename A>
CONVEXT_INLINE void store_quads(A* p, Short<A, kCount> v) {
  if constexpr (kCount == 4) {
    *reinterpret_cast<Short<A, 4>*>(p) = v;
  } else {
    constexpr std::make_integer_sequence<int, kCount / 2> half;
    store_quads<kCount / 2, A>(p, part_of<0>(v, half));
    store_quads<kCount / 2, A>(p + 2 * kCount, part_of<kCount / 2>(v, half));
  }
}

// phase[i] = elements i, i + kStep, i + 2 kStep, ... from p on.
template <int kStep, typename A>
CONVEXT_INLINE void deal(const A* p, Vec<A>* phase) {
  constexpr int lanes = kLanes<A>;
  if constexpr (kStep == 1) {
    phase[0] = load(p);
  } else if constexpr (kStep == 2) {
    const Vec<A> a = load(p), b = load(p + lanes);
    phase[0] = pick_lanes<0, A>(a, b, Lanes<A>());
    phase[1] = pick_lanes<1, A>(a, b, Lanes<A>());
  } else if constexpr (lanes < 4) {
    Vec<A> half[4];
    deal<2, A>(p, half);
    deal<2, A>(p + 2 * lanes, half + 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      phase[i] = i < 2 ? pick_lanes<0, A>(half[i], half[i + 2], Lanes<A>())
                       : pick_lanes<1, A>(half[i - 2], half[i], Lanes<A>());
  } else {  // vector i takes elements 4 i .. 4 i + 3 of every 16
    Vec<A> v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) v[i] = load_quads<lanes>(p + 4 * i);
    transpose_quads<A>(v, phase);
  }
}

// The way back: to[i + j kStep] = lane j of phase[i].
template <int kStep, typename A>
CONVEXT_INLINE void collect(const Vec<A>* phase, A* to) {
  constexpr int lanes = kLanes<A>;
  if constexpr (kStep == 1) {
    store(to, phase[0]);
  } else if constexpr (kStep == 2) {
    store(to, zip_lanes<0, A>(phase[0], phase[1], Lanes<A>()));
    store(to + lanes, zip_lanes<1, A>(phase[0], phase[1], Lanes<A>()));
  } else if constexpr (lanes < 4) {
    const Vec<A> even[2] = {zip_lanes<0, A>(phase[0], phase[2], Lanes<A>()),
                            zip_lanes<1, A>(phase[0], phase[2], Lanes<A>())};
    const Vec<A> odd[2] = {zip_lanes<0, A>(phase[1], phase[3], Lanes<A>()),
                           zip_lanes<1, A>(phase[1], phase[3], Lanes<A>())};
    for (int i = 0; i < 2; ++i) {
      const Vec<A> pair[2] = {even[i], odd[i]};
      collect<2, A>(pair, to + 2 * i * lanes);
    }
  } else {
    Vec<A> v[4];
    transpose_quads<A>(phase, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_quads<lanes, A>(to + 4 * i, v[i]);
  }
}

// The input place (one axis) that padded place i shows, -1 for a zero; a last tile may reach past the padding.
CONVEXT_INLINE int64_t shown_place(const ConvGeometry& g, int axis, int64_t i) {
  if (i >= 0 && i < g.input[axis]) return i;
  if (i < -g.pad_before[axis] || i >= g.input[axis] + g.pad_after[axis]) return -1;
  return padded_source(i, g.input[axis], g.padding_mode);
}

CONVEXT_INLINE int64_t bounded(int64_t a, int64_t low, int64_t high) { return greatest(low, least(a, high)); }

// A run of tiles side by side in one row: tile row i, tiles [first, last) of it; `at`: number among the block's tiles.
struct TileRun {
  int64_t i, first, last, at;
};

// The next run from tile t on, at most `most` tiles.
CONVEXT_INLINE TileRun tile_run(WinogradTiles tiles, int64_t t, int64_t most) {
  const int64_t i = t / tiles.per_row, first = t - i * tiles.per_row;
  const int64_t count = least(least(tiles.per_row - first, tiles.end - t), most);
  return {i, first, first + count, t - tiles.begin};
}

constexpr int64_t kRunTiles = 16;  // channels_last: tiles of a run, so that the strip stays in L1

// contiguous: strip s of kStrips holds the columns of all tiles of a block from s m on: phase i + s m of the tiles is
// phase i of strip s, and tiles of several runs share vectors.
template <class W>
constexpr int kStrips = (W::n + W::m - 1) / W::m;

template <class W, typename A>
CONVEXT_INLINE int64_t strip_pitch(int64_t tiles) {  // whole vectors of tiles are read, a last run's tail is written
  constexpr int64_t lanes = kLanes<A>;
  return ceil_div(tiles, lanes) * lanes * W::m + W::n + lanes;
}

template <class H, class W, typename A>
int64_t strip_elements(Layout layout, int64_t tiles) {
  const int64_t pitch = strip_pitch<W, A>(tiles);
  if (layout == Layout::contiguous) return greatest(H::n * kStrips<W>, H::m) * pitch;
  return H::n * (least(tiles, kRunTiles) * W::m + W::n) * kLanes<A>;
}

// One column of n rows (a null row: zeros), as numbers.
template <class H, typename T>
CONVEXT_INLINE void transform_column(const T* const* rows, int64_t at, Accumulate<T>* to, int64_t pitch) {
  using A = Accumulate<T>;
  A d[H::n], u[H::n];
  for (int r = 0; r < H::n; ++r) d[r] = rows[r] == nullptr ? A(0) : to_accumulate(rows[r][at]);
  to_points<H, A, false>(d, u);
  for (int r = 0; r < H::n; ++r) to[r * pitch] = u[r];
}

// Columns [inner, outer) transformed along h. kWhole: no row is null. The same columns of the next channel, `plane` on,
// are asked for: rows are too short for the processor to foresee them.
template <class H, typename T, bool kWhole>
CONVEXT_INLINE void transform_columns(const T* const* rows, int64_t inner, int64_t outer, int64_t plane,
                                      Accumulate<T>* strip, int64_t pitch) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t w = inner; w < outer; w += lanes) {
    const int some = int(least(outer - w, lanes));
    Vec<A> d[H::n], u[H::n];
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r) {
      if (kWhole) __builtin_prefetch(rows[r] + plane + w);
      d[r] = !kWhole && rows[r] == nullptr ? Vec<A>{}
             : some == lanes               ? load(rows[r] + w)
                                           : load_part(rows[r] + w, 0, some);
    }
    to_points<H, A>(d, u);
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r) store(strip + r * pitch + w, u[r]);
  }
}

// The first pass over one run of tiles of one channel: columns transformed along h, with the padding's, to strip.
template <class H, class W, typename T>
CONVEXT_INLINE void transform_run(const ConvGeometry& g, const T* x, int64_t plane, const TileRun& run,
                                  Accumulate<T>* strip, int64_t pitch) {
  const int64_t width = g.input[2], first = run.first * W::m - g.pad_before[2];
  const int64_t columns = (run.last - run.first - 1) * W::m + W::n;
  const int64_t inner = bounded(-first, 0, columns), outer = bounded(width - first, inner, columns);
  const T* rows[H::n];  // from the run's first column on
  bool whole = true;
  for (int r = 0; r < H::n; ++r) {
    const int64_t h = x == nullptr ? -1 : shown_place(g, 1, run.i * H::m - g.pad_before[1] + r);
    rows[r] = h < 0 ? nullptr : x + h * width + first;
    whole = whole && h >= 0;
  }
  if (whole)
    transform_columns<H, T, true>(rows, inner, outer, plane, strip, pitch);
  else
    transform_columns<H, T, false>(rows, inner, outer, plane, strip, pitch);
  for (int64_t w = 0; w < columns; ++w) {
    if (w == inner) w = outer;
    if (w >= columns) break;
    const int64_t at = shown_place(g, 2, first + w);
    if (at >= 0)
      transform_column<H>(rows, at - first, strip + w, pitch);
    else
      for (int r = 0; r < H::n; ++r) strip[r * pitch + w] = 0;
  }
}

template <class H, class W, typename T>
void transform_input_contiguous(const ConvGeometry& g, const T* x, int64_t plane, WinogradTiles tiles, int64_t channels,
                                Accumulate<T>* v, WinogradSteps steps, Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t count = tiles.end - tiles.begin, pitch = strip_pitch<W, A>(count), shifted = H::n * pitch;
  for (int64_t i = 0; i < kStrips<W> * shifted; ++i) strip[i] = 0;  // what lies past the last tile is read
  for (int64_t c = 0; c < channels; ++c, v += steps.channels) {
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileRun run = tile_run(tiles, t, count);
      A* mine = strip + run.at * W::m;
      const int64_t columns = (run.last - run.first) * W::m;
      t += run.last - run.first;
      transform_run<H, W, T>(g, x == nullptr ? x : x + c * plane, plane, run, mine, pitch);
      for (int s = 1; s < kStrips<W>; ++s)
        for (int r = 0; r < H::n; ++r)
          for (int64_t w = 0; w < columns; w += lanes)
            store(mine + s * shifted + r * pitch + w, load(mine + r * pitch + s * W::m + w));
    }
    for (int64_t j = 0; j < count; j += lanes) {
      A* to = v + j;
      for (int r = 0; r < H::n; ++r) {
        const A* row = strip + r * pitch + j * W::m;
        Vec<A> d[W::n + W::m], u[W::n];
#pragma GCC unroll 4
        for (int s = 0; s < kStrips<W>; ++s) deal<W::m, A>(row + s * shifted, d + s * W::m);
        to_points<W, A>(d, u);
#pragma GCC unroll 8
        for (int s = 0; s < W::n; ++s, to += steps.points) store(to, u[s]);
      }
    }
  }
}

template <class H, class W, typename T, bool kPart>
CONVEXT_INLINE void transform_input_channels(const ConvGeometry& g, const T* const* rows, int64_t first, int64_t place,
                                             int64_t count, int some, Accumulate<T>* v, WinogradSteps steps,
                                             Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t columns = (count - 1) * W::m + W::n;
  for (int64_t w = 0; w < columns; ++w) {
    const int64_t at = shown_place(g, 2, first + w) * place;
    Vec<A> d[H::n], u[H::n];
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r)
      d[r] = at < 0 || rows[r] == nullptr ? Vec<A>{} : kPart ? load_part(rows[r] + at, 0, some) : load(rows[r] + at);
    to_points<H, A>(d, u);
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r) store(strip + (r * columns + w) * lanes, u[r]);
  }
  for (int64_t j = 0; j < count; ++j, v += steps.tiles) {
    A* to = v;
    for (int r = 0; r < H::n; ++r) {
      Vec<A> d[W::n], u[W::n];
#pragma GCC unroll 8
      for (int s = 0; s < W::n; ++s) d[s] = load(strip + (r * columns + j * W::m + s) * lanes);
      to_points<W, A>(d, u);
#pragma GCC unroll 8
      for (int s = 0; s < W::n; ++s, to += steps.points)
        if (kPart)
          store_part(to, u[s], 0, some);
        else
          store(to, u[s]);
    }
  }
}

template <class H, class W, typename T>
void transform_input_channels_last(const ConvGeometry& g, const T* x, int64_t place, WinogradTiles tiles,
                                   int64_t channels, Accumulate<T>* v, WinogradSteps steps, Accumulate<T>* strip) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  for (int64_t t = tiles.begin; t < tiles.end;) {
    const TileRun run = tile_run(tiles, t, kRunTiles);
    const int64_t count = run.last - run.first, first = run.first * W::m - g.pad_before[2];
    t += count;
    for (int64_t c = 0; c < channels; c += lanes) {
      const T* rows[H::n];
      for (int r = 0; r < H::n; ++r) {
        const int64_t h = shown_place(g, 1, run.i * H::m - g.pad_before[1] + r);
        rows[r] = x == nullptr || h < 0 ? nullptr : x + h * g.input[2] * place + c;
      }
      const int some = int(least(channels - c, lanes));
      Accumulate<T>* to = v + run.at * steps.tiles + c;
      if (some == lanes)
        transform_input_channels<H, W, T, false>(g, rows, first, place, count, some, to, steps, strip);
      else
        transform_input_channels<H, W, T, true>(g, rows, first, place, count, some, to, steps, strip);
    }
  }
}

template <class H, class W, typename T>
void transform_input(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradTiles tiles,
                     int64_t channels, Accumulate<T>* v, WinogradSteps steps, Accumulate<T>* strip) {
  if (g.layout == Layout::contiguous)
    transform_input_contiguous<H, W, T>(g, x, plane, tiles, channels, v, steps, strip);
  else
    transform_input_channels_last<H, W, T>(g, x, place, tiles, channels, v, steps, strip);
}

// y[h][w] = A^T m A of one vector of tiles or channels.
template <class H, class W, typename A>
CONVEXT_INLINE void transform_back(const A* m, int64_t points, Vec<A> (*y)[W::m]) {
  Vec<A> half[W::m][H::n];
#pragma GCC unroll 8
  for (int r = 0; r < H::n; ++r) {
    Vec<A> d[W::n], out[W::m];
#pragma GCC unroll 8
    for (int s = 0; s < W::n; ++s, m += points) d[s] = load(m);
    from_points<W, A>(d, out);
#pragma GCC unroll 8
    for (int w = 0; w < W::m; ++w) half[w][r] = out[w];
  }
#pragma GCC unroll 8
  for (int w = 0; w < W::m; ++w) {
    Vec<A> out[H::m];
    from_points<H, A>(half[w], out);
#pragma GCC unroll 8
    for (int h = 0; h < H::m; ++h) y[h][w] = out[h];
  }
}

template <class H, class W, typename T>
void transform_output_contiguous(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps,
                                 WinogradTiles tiles, int64_t channels, const Accumulate<T>* bias, T* y, int64_t plane,
                                 Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t height = g.output[1], width = g.output[2], count = tiles.end - tiles.begin;
  const int64_t pitch = strip_pitch<W, A>(count);
  for (int64_t k = 0; k < channels; ++k, m += steps.channels, y += plane) {
    const Vec<A> start = splat<A>(bias == nullptr ? A(0) : bias[k]);
    for (int64_t j = 0; j < count; j += lanes) {
      Vec<A> out[H::m][W::m];
      transform_back<H, W, A>(m + j, steps.points, out);
#pragma GCC unroll 8
      for (int h = 0; h < H::m; ++h) {
#pragma GCC unroll 8
        for (int w = 0; w < W::m; ++w) out[h][w] += start;
        collect<W::m, A>(out[h], strip + h * pitch + j * W::m);
      }
    }
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileRun run = tile_run(tiles, t, count);
      t += run.last - run.first;
      const int64_t columns = least(run.last * W::m, width) - run.first * W::m;
      for (int64_t h = 0; h < least<int64_t>(H::m, height - run.i * H::m); ++h) {
        const A* from = strip + h * pitch + run.at * W::m;
        T* to = y + (run.i * H::m + h) * width + run.first * W::m;
        int64_t w = 0;
        for (; w + lanes <= columns; w += lanes) store(to + w, load(from + w));
        if (w < columns) store_part(to + w, load(from + w), 0, int(columns - w));
      }
    }
  }
}

template <class H, class W, typename T>
void transform_output_channels_last(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps,
                                    WinogradTiles tiles, int64_t channels, const Accumulate<T>* bias, T* y,
                                    int64_t place) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const int64_t i = t / tiles.per_row, h0 = i * H::m, w0 = (t - i * tiles.per_row) * W::m;
    const int64_t high = least<int64_t>(H::m, g.output[1] - h0), wide = least<int64_t>(W::m, g.output[2] - w0);
    for (int64_t k = 0; k < channels; k += lanes) {
      const int some = int(least(channels - k, lanes));
      Vec<A> out[H::m][W::m], start = {};
      if (bias != nullptr) start = load_part(bias + k, 0, some);
      transform_back<H, W, A>(m + (t - tiles.begin) * steps.tiles + k, steps.points, out);
      for (int h = 0; h < high; ++h) {
        T* to = y + ((h0 + h) * g.output[2] + w0) * place + k;
        for (int w = 0; w < wide; ++w, to += place)
          if (some == lanes)
            store(to, out[h][w] + start);
          else
            store_part(to, out[h][w] + start, 0, some);
      }
    }
  }
}

template <class H, class W, typename T>
void transform_output(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps, WinogradTiles tiles,
                      int64_t channels, const Accumulate<T>* bias, T* y, int64_t plane, int64_t place,
                      Accumulate<T>* strip) {
  if (g.layout == Layout::contiguous)
    transform_output_contiguous<H, W, T>(g, m, steps, tiles, channels, bias, y, plane, strip);
  else
    transform_output_channels_last<H, W, T>(g, m, steps, tiles, channels, bias, y, place);
}

// One vector of outputs, of which `some` are wanted.
template <class H, class W, typename A>
CONVEXT_INLINE void transform_filters(const A (*number)[kLanes<A>], A* u, int64_t points, int some) {
  Vec<A> half[W::n][H::r];
#pragma GCC unroll 8
  for (int r = 0; r < H::r; ++r) {
    Vec<A> g[W::r], out[W::n];
#pragma GCC unroll 8
    for (int s = 0; s < W::r; ++s) g[s] = load(number[r * W::r + s]);
    weight_to_points<W, A>(g, out);
#pragma GCC unroll 8
    for (int s = 0; s < W::n; ++s) half[s][r] = out[s];
  }
  for (int s = 0; s < W::n; ++s) {
    Vec<A> out[H::n];
    weight_to_points<H, A>(half[s], out);
    A* to = u + s * points;
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r, to += W::n * points)
      if (some == kLanes<A>)
        store(to, out[r]);
      else
        store_part(to, out[r], 0, some);
  }
}

template <class H, class W, typename T>
void transform_weight(const T* w, int64_t outputs, int64_t inputs, int64_t taps, bool flip, int64_t depth,
                      int64_t channels, int64_t count, int64_t lanes, Accumulate<T>* u, int64_t points) {
  using A = Accumulate<T>;
  constexpr int64_t side = kLanes<A>;
  constexpr int kTaps = H::r * W::r;
  int64_t at[kTaps];
  for (int64_t t = 0; t < depth; ++t) {
    for (int tap = 0; tap < kTaps; ++tap)
      at[tap] = (flip ? depth * kTaps - 1 - t * kTaps - tap : t * kTaps + tap) * taps;
    for (int64_t c = 0; c < channels; ++c, u += lanes)
      for (int64_t l0 = 0; l0 < lanes; l0 += side) {
        A number[kTaps][side];
        const T* from = w + l0 * outputs + c * inputs;
        for (int64_t l = 0; l < side; ++l, from += outputs)
          for (int tap = 0; tap < kTaps; ++tap) number[tap][l] = l0 + l < count ? to_accumulate(from[at[tap]]) : A(0);
        transform_filters<H, W, A>(number, u + l0, points, int(least(lanes - l0, side)));
      }
  }
}

template <typename T, class H, class W>
constexpr WinogradKernel<T> kWinograd = {
    H::m,
    W::m,
    H::n,
    W::n,
    strip_elements<H, W, Accumulate<T>>,
    transform_input<H, W, T>,
    transform_output<H, W, T>,
    transform_weight<H, W, T>,
};

// In the order of WinogradTile.
template <typename T>
constexpr const WinogradKernel<T>* kWinogradKernels[] = {
    &kWinograd<T, Minimal<2, 3>, Minimal<2, 3>>, &kWinograd<T, Minimal<4, 3>, Minimal<4, 3>>,
    &kWinograd<T, Minimal<2, 5>, Minimal<2, 5>>, &kWinograd<T, Minimal<4, 5>, Minimal<4, 5>>,
    &kWinograd<T, Plain, Minimal<2, 3>>,         &kWinograd<T, Plain, Minimal<4, 3>>,
    &kWinograd<T, Plain, Minimal<2, 5>>,         &kWinograd<T, Plain, Minimal<4, 5>>,
};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
