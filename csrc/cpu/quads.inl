// Rows of a vector's lanes of planes turned into places of lanes, and back: in squares of four by four, of which every
// four lanes of four vectors hold one. Eight shuffles per four vectors, and a load or store per square's row.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Inside every four lanes: elements 0 and 1 (kHalf 0) or 2 and 3 of a and b in turn; or both of a, then of b.
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
  const Vec<A> a = zip_quads<0, A>(v[0], v[1], LaneSequence<A>()), b = zip_quads<0, A>(v[2], v[3], LaneSequence<A>());
  const Vec<A> c = zip_quads<1, A>(v[0], v[1], LaneSequence<A>()), d = zip_quads<1, A>(v[2], v[3], LaneSequence<A>());
  to[0] = join_quads<0, A>(a, b, LaneSequence<A>());
  to[1] = join_quads<1, A>(a, b, LaneSequence<A>());
  to[2] = join_quads<0, A>(c, d, LaneSequence<A>());
  to[3] = join_quads<1, A>(c, d, LaneSequence<A>());
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

// kCount / 4 times four elements, `apart` from one four to the next.
template <int kCount, typename A>
CONVEXT_INLINE Short<A, kCount> load_quads(const A* p, int64_t apart) {
  if constexpr (kCount == 4)
    return *reinterpret_cast<const Short<A, 4>*>(p);
  else
    return joined(load_quads<kCount / 2>(p, apart), load_quads<kCount / 2>(p + kCount / 8 * apart, apart),
                  std::make_integer_sequence<int, kCount>());
}
template <int kCount, typename A>
CONVEXT_INLINE void store_quads(A* p, int64_t apart, Short<A, kCount> v) {
  if constexpr (kCount == 4) {
    *reinterpret_cast<Short<A, 4>*>(p) = v;
  } else {
    constexpr std::make_integer_sequence<int, kCount / 2> half;
    store_quads<kCount / 2, A>(p, apart, part_of<0>(v, half));
    store_quads<kCount / 2, A>(p + kCount / 8 * apart, apart, part_of<kCount / 2>(v, half));
  }
}

// Four elements of every fourth of some rows: those of `from` and of kCount / 4 - 1 further ones, in fours.
template <int kCount, typename A>
CONVEXT_INLINE Short<A, kCount> load_quads_of(const A* const* from, int64_t w) {
  if constexpr (kCount == 4)
    return *reinterpret_cast<const Short<A, 4>*>(from[0] + w);
  else
    return joined(load_quads_of<kCount / 2>(from, w), load_quads_of<kCount / 2>(from + kCount / 2, w),
                  std::make_integer_sequence<int, kCount>());
}
// `columns` columns of a row of a vector of channels, planes `plane` apart: to[column][lane]. Lanes from `some` on
// repeat the last one.
template <typename T>
CONVEXT_INLINE void turn_row(const T* x, int64_t plane, int64_t columns, int some, Accumulate<T>* to) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  if constexpr (!std::is_same_v<T, A>) {
    A wide[lanes * lanes];
    for (int64_t w = 0; w < columns; w += lanes) {
      const int64_t count = least<int64_t>(columns - w, lanes);
      for (int l = 0; l < lanes; ++l) store(wide + l * lanes, load_first(x + least(l, some - 1) * plane + w, count));
      turn_row<A>(wide, lanes, count, lanes, to + w * lanes);
    }
    return;
  } else {
    const A* from[lanes];
    for (int l = 0; l < lanes; ++l) from[l] = x + least(l, some - 1) * plane;
    if constexpr (lanes >= 4)
      if (columns >= 4) {
        for (int64_t i = 0; i < columns; i += 4) {
          const int64_t w = least(i, columns - 4);  // the last four may overlap those before
          Vec<A> v[4], column[4];
#pragma GCC unroll 4
          for (int l = 0; l < 4; ++l)
            v[l] = some == lanes ? load_quads<lanes>(x + l * plane + w, 4 * plane) : load_quads_of<lanes>(from + l, w);
          transpose_quads<A>(v, column);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) store(to + (w + j) * lanes, column[j]);
        }
        return;
      }
    for (int64_t w = 0; w < columns; ++w)
      for (int l = 0; l < lanes; ++l) to[w * lanes + l] = from[l][w];
  }
}
// And back: channel l of a vector's `columns` to row[l * pitch], in fours.
template <typename A>
CONVEXT_INLINE void turn_columns(const A* x, int64_t columns, A* row, int64_t pitch) {
  constexpr int lanes = kLanes<A>;
  if constexpr (lanes >= 4) {
    for (int64_t w = 0; w < columns; w += 4) {  // past the last: what is there
      Vec<A> column[4], v[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) column[j] = load(x + (w + j) * lanes);
      transpose_quads<A>(column, v);
#pragma GCC unroll 4
      for (int l = 0; l < 4; ++l) store_quads<lanes, A>(row + l * pitch + w, 4 * pitch, v[l]);
    }
  } else {
    for (int64_t w = 0; w < columns; ++w)
      for (int l = 0; l < lanes; ++l) row[l * pitch + w] = x[w * lanes + l];
  }
}

// The same to whole planes, of `columns` places and beside each other. rows: for them in fours.
template <typename A>
CONVEXT_INLINE void turn_to_planes(const A* x, int64_t columns, A* rows, A* planes) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t pitch = ceil_div(columns, 4) * 4;
  turn_columns<A>(x, columns, rows, pitch);
  for (int64_t l = 0; l < lanes; ++l, rows += pitch, planes += columns)
    for (int64_t i = 0; i < columns; i += lanes) store_first(planes + i, load(rows + i), columns - i);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
