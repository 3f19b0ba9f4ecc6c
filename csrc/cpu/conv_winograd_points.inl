// What winograd's transforms are made of, for one instruction set: the matrices along one axis (formulas:
// ../winograd.h), lanes that change places, runs of tiles, and the two passes from an operand's places to its points.
#include "quads.inl"

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
  } else if constexpr (!F::zero) {
    V infinity = d[2 * F::pairs];
#pragma GCC unroll 4
    for (int j = 0; j < F::pairs; ++j) infinity += A(F::k.f[j]) * d[2 * j];
    u[F::n - 1] = infinity;
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      V even = d[2 * F::pairs - 2], odd = d[2 * F::pairs - 1];
#pragma GCC unroll 4
      for (int j = 0; j < F::pairs - 1; ++j) {
        even += A(F::k.q[p][j]) * d[2 * j];
        odd += A(F::k.q[p][j]) * d[2 * j + 1];
      }
      u[2 * p] = A(F::k.power[p][1]) * even + odd;
      u[2 * p + 1] = A(F::k.power[p][1]) * even - odd;
    }
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
      sum[p] = m[F::zero + 2 * p] + m[F::zero + 2 * p + 1];
      difference[p] = m[F::zero + 2 * p] - m[F::zero + 2 * p + 1];
    }
#pragma GCC unroll 8
    for (int i = 0; i < F::m; ++i) {
      V out = i == 0 ? (F::zero ? m[0] + sum[0] : sum[0]) : A(F::k.power[0][i]) * (i % 2 == 0 ? sum[0] : difference[0]);
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

// The divisor of pair p of points is part of what taps are multiplied by; in float64 it is left for pair_element, see
// divided.
template <class F, typename A>
CONVEXT_INLINE constexpr double pair_scale(int p) {
  return sizeof(A) == 8 ? 1 : 1 / F::k.divisor[p];
}
template <class F, typename A>
CONVEXT_INLINE Vec<A> pair_element(int p, Vec<A> x) {
  return sizeof(A) == 8 ? divided<A>(x, F::k.divisor[p]) : x;
}

// The even and the odd part of G g at pair p of points.
template <class F, typename A>
CONVEXT_INLINE void weight_parts(int p, const Vec<A>* g, Vec<A>* even, Vec<A>* odd) {
  const double scale = pair_scale<F, A>(p);
  *even = A(scale) * g[0];
  *odd = A(scale * F::k.power[p][1]) * g[1];
#pragma GCC unroll 8
  for (int i = 2; i < F::r; ++i) *(i % 2 == 0 ? even : odd) += A(scale * F::k.power[p][i]) * g[i];
}

// u = G g
template <class F, typename A>
CONVEXT_INLINE void weight_to_points(const Vec<A>* g, Vec<A>* u) {
  using V = Vec<A>;
  if constexpr (F::n == 1) {
    u[0] = g[0];
  } else {
    if (F::zero) u[0] = divided<A>(g[0], F::k.f[0]);
    u[F::n - 1] = g[F::r - 1];
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      V even, odd;
      weight_parts<F, A>(p, g, &even, &odd);
      u[F::zero + 2 * p] = pair_element<F, A>(p, even + odd);
      u[F::zero + 2 * p + 1] = pair_element<F, A>(p, even - odd);
    }
  }
}

// u = A y, the transpose of from_points: values at the points of the polynomial with coefficients y.
template <class F, typename A, bool kVector = true>
CONVEXT_INLINE void outputs_to_points(const typename Operand<A, kVector>::type* y,
                                      typename Operand<A, kVector>::type* u) {
  using V = typename Operand<A, kVector>::type;
  if (F::zero) u[0] = y[0];
  if constexpr (F::n > 1) {
    u[F::n - 1] = y[F::m - 1];
#pragma GCC unroll 4
    for (int p = 0; p < F::pairs; ++p) {
      V even = y[0], odd = A(F::k.power[p][1]) * y[1];
#pragma GCC unroll 8
      for (int i = 2; i < F::m; ++i) (i % 2 == 0 ? even : odd) += A(F::k.power[p][i]) * y[i];
      u[F::zero + 2 * p] = even + odd;
      u[F::zero + 2 * p + 1] = even - odd;
    }
  }
}

// What a tile sees of one axis of an operand, `window` places beginning `step` after those of the tile before, and its
// values at the points: of the input, and of the output's gradient.
template <class F>
struct OfInput {
  static constexpr int window = F::n, step = F::m, points = F::n;
  template <typename A, bool kVector = true>
  static CONVEXT_INLINE void apply(const typename Operand<A, kVector>::type* d, typename Operand<A, kVector>::type* u) {
    to_points<F, A, kVector>(d, u);
  }
};
template <class F>
struct OfGradient {
  static constexpr int window = F::m, step = F::m, points = F::n;
  template <typename A, bool kVector = true>
  static CONVEXT_INLINE void apply(const typename Operand<A, kVector>::type* y, typename Operand<A, kVector>::type* u) {
    outputs_to_points<F, A, kVector>(y, u);
  }
};

// Every second lane of a and b, from `first` on; the way back, a lane of a and one of b in turn.
template <int kFirst, typename A, int... I>
CONVEXT_INLINE Vec<A> pick_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + kFirst)...);
}
template <int kHalf, typename A, int... I>
CONVEXT_INLINE Vec<A> zip_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kHalf * kLanes<A> / 2 + I / 2 + I % 2 * kLanes<A>)...);
}

// phase[i] = elements i, i + kStep, i + 2 kStep, ... from p on.
template <int kStep, typename A>
CONVEXT_INLINE void deal(const A* p, Vec<A>* phase) {
  constexpr int lanes = kLanes<A>;
  if constexpr (kStep == 1) {
    phase[0] = load(p);
  } else if constexpr (kStep == 2) {
    const Vec<A> a = load(p), b = load(p + lanes);
    phase[0] = pick_lanes<0, A>(a, b, LaneSequence<A>());
    phase[1] = pick_lanes<1, A>(a, b, LaneSequence<A>());
  } else if constexpr (lanes < 4) {
    Vec<A> half[4];
    deal<2, A>(p, half);
    deal<2, A>(p + 2 * lanes, half + 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      phase[i] = i < 2 ? pick_lanes<0, A>(half[i], half[i + 2], LaneSequence<A>())
                       : pick_lanes<1, A>(half[i - 2], half[i], LaneSequence<A>());
  } else {  // vector i takes elements 4 i .. 4 i + 3 of every 16
    Vec<A> v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) v[i] = load_quads<lanes>(p + 4 * i, 16);
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
    store(to, zip_lanes<0, A>(phase[0], phase[1], LaneSequence<A>()));
    store(to + lanes, zip_lanes<1, A>(phase[0], phase[1], LaneSequence<A>()));
  } else if constexpr (lanes < 4) {
    const Vec<A> even[2] = {zip_lanes<0, A>(phase[0], phase[2], LaneSequence<A>()),
                            zip_lanes<1, A>(phase[0], phase[2], LaneSequence<A>())};
    const Vec<A> odd[2] = {zip_lanes<0, A>(phase[1], phase[3], LaneSequence<A>()),
                           zip_lanes<1, A>(phase[1], phase[3], LaneSequence<A>())};
    for (int i = 0; i < 2; ++i) {
      const Vec<A> pair[2] = {even[i], odd[i]};
      collect<2, A>(pair, to + 2 * i * lanes);
    }
  } else {
    Vec<A> v[4];
    transpose_quads<A>(phase, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_quads<lanes, A>(to + 4 * i, 16, v[i]);
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

// One column of n rows (a null row: zeros), as numbers.
template <class H, typename T>
CONVEXT_INLINE void transform_column(const T* const* rows, int64_t at, Accumulate<T>* to, int64_t pitch) {
  using A = Accumulate<T>;
  A d[H::window], u[H::points];
  for (int r = 0; r < H::window; ++r) d[r] = rows[r] == nullptr ? A(0) : to_accumulate(rows[r][at]);
  H::template apply<A, false>(d, u);
  for (int r = 0; r < H::points; ++r) to[r * pitch] = u[r];
}

// One vector of places kStride apart. What lies between the last one and the next is read too; `last`: it must not be,
// but what comes before the first may.
template <int kStride, typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_apart(const T* p, bool last) {
  using A = Accumulate<T>;
  if constexpr (kStride == 1)
    return load(p);
  else
    return last ? pick_lanes<1, A>(load(p - 1), load(p - 1 + kLanes<A>), LaneSequence<A>())
                : pick_lanes<0, A>(load(p), load(p + kLanes<A>), LaneSequence<A>());
}

// The first `count` of them.
template <int kStride, typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_apart_part(const T* p, int count) {
  using A = Accumulate<T>;
  if constexpr (kStride == 1)
    return load_part(p, 0, count);
  else
    return pick_lanes<0, A>(load_part(p, 0, least(2 * count - 1, kLanes<A>)),
                            load_part(p + kLanes<A>, 0, greatest(2 * count - 1 - kLanes<A>, 0)), LaneSequence<A>());
}

// Columns [inner, outer) transformed along h. kWhole: no row is null. The same columns of the next channel, `plane` on,
// are asked for: rows are too short for the processor to foresee them.
template <class H, typename T, bool kWhole, int kStride>
CONVEXT_INLINE void transform_columns(const T* const* rows, int64_t inner, int64_t outer, int64_t plane,
                                      Accumulate<T>* strip, int64_t pitch) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const bool short_row = outer - inner < lanes + (kStride - 1);
  for (int64_t i = inner; i < outer; i += lanes) {
    const int64_t w = short_row ? i : least(i, outer - lanes);  // the last vector may overlap the one before
    Vec<A> d[H::window], u[H::points];
#pragma GCC unroll 8
    for (int r = 0; r < H::window; ++r) {
      if (kWhole) __builtin_prefetch(rows[r] + plane + w * kStride);
      d[r] = !kWhole && rows[r] == nullptr ? Vec<A>{}
             : short_row                   ? load_apart_part<kStride>(rows[r] + w * kStride, int(outer - inner))
                                           : load_apart<kStride>(rows[r] + w * kStride, w + lanes >= outer);
    }
    H::template apply<A>(d, u);
#pragma GCC unroll 8
    for (int r = 0; r < H::points; ++r) store(strip + r * pitch + w, u[r]);
  }
}

// The rows that a tile sees from padded row `top` on, a stride apart: where they begin in a plane, -1 where they are
// zeros.
template <class H>
CONVEXT_INLINE void shown_rows(const ConvGeometry& g, int64_t top, int64_t* row) {
  for (int r = 0; r < H::window; ++r) {
    const int64_t h = shown_place(g, 1, top + r * g.stride[1]);
    row[r] = h < 0 ? -1 : h * g.input[2];
  }
}

// The first pass over one run of tiles of one channel: `columns` padded columns of the rows from `first` on, a stride
// apart, transformed along h, to strip.
template <class H, typename T>
__attribute__((noinline)) void transform_run(const ConvGeometry& g, const T* x, int64_t plane, const int64_t* row,
                                             int64_t first, int64_t columns, Accumulate<T>* strip, int64_t pitch) {
  const int64_t width = g.input[2], stride = g.stride[2], inner = bounded(ceil_div(-first, stride), 0, columns);
  const int64_t outer = bounded(ceil_div(width - first, stride), inner, columns);
  const T* rows[H::window];  // from the run's first column on
  bool whole = true;
  for (int r = 0; r < H::window; ++r) {
    const bool there = x != nullptr && row[r] >= 0;
    rows[r] = there ? x + row[r] + first : nullptr;
    whole = whole && there;
  }
  if (stride == 1 && whole)
    transform_columns<H, T, true, 1>(rows, inner, outer, plane, strip, pitch);
  else if (stride == 1)
    transform_columns<H, T, false, 1>(rows, inner, outer, plane, strip, pitch);
  else if (whole)
    transform_columns<H, T, true, 2>(rows, inner, outer, plane, strip, pitch);
  else
    transform_columns<H, T, false, 2>(rows, inner, outer, plane, strip, pitch);
  for (int64_t w = 0; w < columns; ++w) {
    if (w == inner) w = outer;
    if (w >= columns) break;
    const int64_t at = shown_place(g, 2, first + w * stride);
    if (at >= 0)
      transform_column<H>(rows, at - first, strip + w, pitch);
    else
      for (int r = 0; r < H::points; ++r) strip[r * pitch + w] = 0;
  }
}

// The same for one vector of channels, `some` of them there, that lie side by side: strip[point][column].
template <class H, typename T, bool kPart>
__attribute__((noinline)) void transform_channels(const ConvGeometry& g, const T* const* rows, int64_t first,
                                                  int64_t place, int64_t columns, int some, Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t w = 0; w < columns; ++w) {
    const int64_t at = shown_place(g, 2, first + w * g.stride[2]) * place;
    Vec<A> d[H::window], u[H::points];
#pragma GCC unroll 8
    for (int r = 0; r < H::window; ++r)
      d[r] = at < 0 || rows[r] == nullptr ? Vec<A>{} : kPart ? load_part(rows[r] + at, 0, some) : load(rows[r] + at);
    H::template apply<A>(d, u);
#pragma GCC unroll 8
    for (int r = 0; r < H::points; ++r) store(strip + (r * columns + w) * lanes, u[r]);
  }
}

// The same of contiguous planes, `plane` apart, of which `some` are there (what other lanes make is nobody's). Rows are
// turned with their padding first: raw[row][column][lane].
template <class H, typename T>
__attribute__((noinline)) void transform_planes(const ConvGeometry& g, const T* x, int64_t plane, const int64_t* row,
                                                int64_t first, int64_t columns, int some, Accumulate<T>* raw,
                                                Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t stride = g.stride[2], wide = (columns - 1) * stride + 1, begin = bounded(-first, 0, wide);
  const int64_t end = bounded(g.input[2] - first, begin, wide);
  bool there[H::window];
  for (int r = 0; r < H::window; ++r) {
    there[r] = x != nullptr && row[r] >= 0;
    if (!there[r]) continue;
    A* to = raw + r * wide * lanes;
    turn_row(x + row[r] + first + begin, plane, end - begin, some, to + begin * lanes);
    for (int64_t w = 0; w < wide; ++w) {
      if (w == begin) w = end;
      if (w >= wide) break;
      const int64_t at = shown_place(g, 2, first + w);
      for (int64_t l = 0; l < lanes; ++l)
        to[w * lanes + l] = at < 0 ? A(0) : to_accumulate(x[least<int64_t>(l, some - 1) * plane + row[r] + at]);
    }
  }
  for (int64_t w = 0; w < columns; ++w) {
    Vec<A> d[H::window], u[H::points];
#pragma GCC unroll 8
    for (int r = 0; r < H::window; ++r) d[r] = there[r] ? load(raw + (r * wide + w * stride) * lanes) : Vec<A>{};
    H::template apply<A>(d, u);
#pragma GCC unroll 8
    for (int r = 0; r < H::points; ++r) store(strip + (r * columns + w) * lanes, u[r]);
  }
}

// The second pass, along w, from `rows` points of strip[point of h][column] of one vector of channels or lanes, to
// `count` tiles of v. kPart: only `some` lanes are wanted; infinity: the last point of w is.
template <class W, typename A, bool kPart>
__attribute__((noinline)) void transform_strip(const A* strip, int rows, bool infinity, int64_t count, int some, A* v,
                                               WinogradSteps steps) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t columns = (count - 1) * W::step + W::window;
  for (int64_t j = 0; j < count; ++j, v += steps.tiles) {
    A* to = v;
    for (int r = 0; r < rows; ++r) {
      Vec<A> d[W::window], u[W::points];
#pragma GCC unroll 8
      for (int s = 0; s < W::window; ++s) d[s] = load(strip + (r * columns + j * W::step + s) * lanes);
      W::template apply<A>(d, u);
#pragma GCC unroll 8
      for (int s = 0; s < W::points; ++s, to += steps.points)
        if (s == W::points - 1 && !infinity)
          continue;
        else if (kPart)
          store_part(to, u[s], 0, some);
        else
          store(to, u[s]);
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
