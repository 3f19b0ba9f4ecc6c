// The GEMM microkernels and the loop over their tiles, see gemm.h.
//
// E: what the panels hold, sums are of its Accumulate. An operand in registers is a load, load_part or splat_of, a step
// an add_product; those of other than float and double are told before (bfloat16_pairs.inl).
#include "finish_registers.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename A>
CONVEXT_INLINE Vec<A> splat_of(A x) {
  return splat(x);
}
template <typename V>
CONVEXT_INLINE V add_product(V sum, V a, V b) {
  return sum + a * b;
}

#if CONVEXT_ISA_LEVEL == 3
constexpr int kTileRows = 14;
constexpr int kGatheredRows = 10;  // each has a pointer, and all stay in registers
#else
constexpr int kTileRows = 6;
constexpr int kGatheredRows = 6;
#endif
// Rows not packed, where columns end with a panel and a vector: a tile of three vectors has sums enough, one has not.
constexpr int kTripleRows = CONVEXT_ISA_LEVEL == 3 ? 8 : CONVEXT_ISA_LEVEL == 2 ? 4 : 3;
constexpr int kTileVectors = 2;
constexpr int kAhead = 128;              // steps that a's panels, streamed from afar, are asked for beforehand
constexpr int64_t kNearBytes = 1 << 14;  // panels of b that stay in L1 while a's change
constexpr int64_t kFarBytes = 3 << 16;   // panels of a that stay in L2 while b's change
constexpr int64_t kFewColumns = 2;       // past the last whole vector: their lanes are rows

constexpr int64_t kNever = int64_t(1) << 62;

enum class Rows { packed, apart, gathered };

// Tiles of one shape, `count` of them: what the first reads and writes, and how far it is from each to the next.
template <typename E>
struct Tiles {
  using A = Accumulate<E>;
  int64_t count, k;
  Panels<E> a;          // stride: from tile to tile
  const E* const* row;  // gathered: of the first tile's first row, in the piece that holds the first element
  int64_t row_stride, row_apart, depth, first;
  Panels<E> b;
  A* c;
  int64_t ldc, c_stride;
  int last;              // lanes of the last vector
  int64_t third_vector;  // of b, where a tile has three: it is in the next panel
  GemmStart<A> start;
  int64_t row_bias_stride, column_bias_stride;
  // a in place: what is read next, a's next rows where they follow each other and are read for the first time, else b's
  // next panel, is asked for while this one is in use, so many elements with every step.
  const E* ahead = nullptr;
  int64_t ahead_step = 0;
  int64_t left = kNever, line = kNever, gap = 0;  // apart: rows of c until the next gap, from gap to gap; its elements
};

// Adds step `at` of the rows to the sums of a tile.
template <typename E, int kRows, int kVectors>
CONVEXT_INLINE void add_step(const E* const (&row)[kRows], int64_t at, const E* b, int64_t third_vector,
                             Vec<Accumulate<E>> (&sum)[kRows][kVectors]) {
  constexpr int lanes = kLanes<E>;
  decltype(load(b)) column[kVectors];
#pragma GCC unroll 3
  for (int v = 0; v < kVectors; ++v) column[v] = load(b + (v < 2 ? v * lanes : third_vector));
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    const auto one = splat_of(row[i][at]);
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sum[i][v] = add_product(sum[i][v], one, column[v]);
  }
}

// Adds k steps of rows that lie anywhere; b is packed. kLines: of what is ahead, asked for with a step.
template <typename E, int kLines, int kRows, int kVectors>
CONVEXT_INLINE void add_row_steps_asking(int64_t k, const E* const (&row)[kRows], const E* b, int64_t third_vector,
                                         const E* ahead, int64_t ahead_step,
                                         Vec<Accumulate<E>> (&sum)[kRows][kVectors]) {
  constexpr int64_t width = kTileVectors * kLanes<E>, line = 64 / int64_t(sizeof(E));
  for (int64_t step = 0; step < k; ++step, b += width, ahead += ahead_step) {
#pragma GCC unroll 2
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(ahead + i * line);
    add_step(row, step, b, third_vector, sum);
  }
}

#if CONVEXT_ISA_LEVEL == 3
// Lanes of a last vector for which a register of half the width is enough: processors that take a whole one in two
// halves are done with it in half the time.
template <typename E>
constexpr int kHalfLanes = std::is_same_v<E, Accumulate<E>> ? kLanes<E> / 2 : 0;

constexpr int kHalvedSums = 24;  // of a tile, at most: two loops over more do not keep them in registers

template <typename V, int... kLane>
CONVEXT_INLINE auto lower_half(V v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, kLane...);
}
template <typename A>
CONVEXT_INLINE auto lower_half(Vec<A> v) {
  return lower_half(v, std::make_integer_sequence<int, kLanes<A> / 2>());
}
template <typename A, typename H, int... kLane>
CONVEXT_INLINE Vec<A> with_upper_half(H half, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(half, half, kLane...);
}

// The same where of the last vector only its lower half is wanted; the sums of the upper one may become anything.
template <typename E, int kRows, int kVectors>
CONVEXT_INLINE void add_row_steps_to_half(int64_t k, const E* const (&row)[kRows], const E* b, int64_t third_vector,
                                          const E* ahead, int64_t ahead_step, Vec<E> (&sum)[kRows][kVectors]) {
  constexpr int lanes = kLanes<E>, whole = kVectors - 1;
  decltype(lower_half<E>(sum[0][0])) half[kRows];
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) half[i] = lower_half<E>(sum[i][whole]);
  for (int64_t step = 0; step < k; ++step, b += kTileVectors * lanes, ahead += ahead_step) {
    __builtin_prefetch(ahead);
    Vec<E> column[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) column[v] = load(b + (v < 2 ? v * lanes : third_vector));
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const Vec<E> one = splat(row[i][step]);
#pragma GCC unroll 2
      for (int v = 0; v < whole; ++v) sum[i][v] += one * column[v];
      half[i] += lower_half<E>(one) * lower_half<E>(column[whole]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) sum[i][whole] = with_upper_half<E>(half[i], LaneSequence<E>());
}
#endif

// last: lanes of the last vector.
template <typename E, int kRows, int kVectors>
CONVEXT_INLINE void add_row_steps(int64_t k, const E* const (&row)[kRows], const E* b, int64_t third_vector, int last,
                                  const E* ahead, int64_t ahead_step, Vec<Accumulate<E>> (&sum)[kRows][kVectors]) {
  constexpr bool small = kRows * kVectors <= 20;  // larger tiles take all registers
#if CONVEXT_ISA_LEVEL == 3
  if constexpr (kHalfLanes<E> > 0 && kRows * kVectors <= kHalvedSums)
    if (last <= kHalfLanes<E>) return add_row_steps_to_half(k, row, b, third_vector, ahead, ahead_step, sum);
#endif
  if (small && ahead_step * int64_t(sizeof(E)) > 64)
    add_row_steps_asking<E, small ? 2 : 1>(k, row, b, third_vector, ahead, ahead_step, sum);
  else
    add_row_steps_asking<E, 1>(k, row, b, third_vector, ahead, ahead_step, sum);
}

// Adds k steps of packed rows.
template <typename E, int kRows, int kVectors>
CONVEXT_INLINE void add_packed_steps(int64_t k, const E* a, int64_t a_step, const E* b, int64_t b_step,
                                     Vec<Accumulate<E>> (&sum)[kRows][kVectors]) {
  constexpr int lanes = kLanes<E>;
  for (int64_t step = 0; step < k; ++step, a += a_step, b += b_step) {
    __builtin_prefetch(a + kAhead * kRows);
    decltype(load(b)) column[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * lanes);
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const auto one = splat_of(a[i]);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[i][v] = add_product(sum[i][v], one, column[v]);
    }
  }
}

// What the sums of kRows x kVectors vectors start from, of which the last has `last` lanes.
template <typename A, int kRows, int kVectors>
CONVEXT_INLINE void start_tile(Vec<A> (&sum)[kRows][kVectors], A* const (&to)[kRows], int last,
                               const GemmStart<A>& start) {
  constexpr int lanes = kLanes<A>;
  if (start.resume) {
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        const A* from = to[i] + v * lanes;
        sum[i][v] = v < kVectors - 1 || last == lanes ? load(from) : load_part(from, 0, last);
      }
    return;
  }
  Vec<A> line[kVectors] = {};
  if (!start.accumulate && start.column_bias != nullptr) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const A* from = start.column_bias + v * lanes;
      line[v] = v < kVectors - 1 || last == lanes ? load(from) : load_part(from, 0, last);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sum[i][v] = line[v];
  if (!start.accumulate && start.row_bias != nullptr) {
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[i][v] = splat(start.row_bias[i]);
  }
}

// kRows x kVectors vectors of c, of which the last has `last` lanes.
template <typename A, int kRows, int kVectors>
CONVEXT_INLINE void finish_tile(Vec<A> (&sum)[kRows][kVectors], A* const (&to)[kRows], int last,
                                const GemmStart<A>& start) {
  constexpr int lanes = kLanes<A>;
  if (start.accumulate) {
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        const A* from = to[i] + v * lanes;
        sum[i][v] += v < kVectors - 1 || last == lanes ? load(from) : load_part(from, 0, last);
      }
  }
  if (start.finish != nullptr) {
    const Ends<A> ends(*start.finish);
    if (ends.only_clamps()) {
#pragma GCC unroll 14
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) sum[i][v] = ends.clamped(sum[i][v]);
    } else {
#pragma GCC unroll 14
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v)
          sum[i][v] = ends(sum[i][v], to[i] + v * lanes, v < kVectors - 1 || last == lanes ? lanes : last);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v)
      if (v < kVectors - 1 || last == lanes)
        store(to[i] + v * lanes, sum[i][v]);
      else
        store_part(to[i] + v * lanes, sum[i][v], 0, last);
}

template <typename E, int kRows, int kVectors, Rows kRowsAre>
void gemm_tile(const Tiles<E>& tiles) {
  using A = Accumulate<E>;
  Tiles<E> t = tiles;
  for (; t.count > 0; --t.count) {
    A* to[kRows];
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      to[i] = t.c + i * t.ldc;
      if (kRowsAre == Rows::apart) to[i] += i < t.left ? 0 : t.gap;
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(to[i] + v * kLanes<E>, 1);
    }
    Vec<A> sum[kRows][kVectors];
    start_tile(sum, to, t.last, t.start);
    if constexpr (kRowsAre == Rows::packed) {
      add_packed_steps(t.k, t.a.data, t.a.step, t.b.data, t.b.step, sum);
      t.a.data += t.a.stride;
    } else if constexpr (kRowsAre == Rows::apart) {
      const E* row[kRows];
#pragma GCC unroll 14
      for (int i = 0; i < kRows; ++i) row[i] = t.a.data + i * t.a.apart;
      add_row_steps(t.k, row, t.b.data, t.third_vector, t.last, t.ahead, t.ahead_step, sum);
      t.a.data += t.a.stride;
      t.ahead += t.k * t.ahead_step;
    } else {
      const E* const* rows = t.row;
      const E* b = t.b.data;
      for (int64_t left = t.k, from = t.first; left > 0; from = 0, rows += t.row_apart) {
        const int64_t k = least(left, t.depth - from);
        const E* row[kRows];
#pragma GCC unroll 14
        for (int i = 0; i < kRows; ++i) row[i] = rows[i] + from;
        add_row_steps(k, row, b, t.third_vector, t.last, t.ahead, t.ahead_step, sum);
        left -= k;
        b += k * (kTileVectors * kLanes<E>);
        t.ahead += k * t.ahead_step;
      }
      t.row += t.row_stride;
    }
    finish_tile(sum, to, t.last, t.start);
    t.b.data += t.b.stride;
    t.c += t.c_stride;
    if (kRowsAre == Rows::apart && (t.left -= kRows) <= 0) {
      t.left += t.line;
      t.c += t.gap;
    }
    if (t.start.row_bias != nullptr) t.start.row_bias += t.row_bias_stride;
    if (t.start.column_bias != nullptr) t.start.column_bias += t.column_bias_stride;
  }
}

// `columns` columns of kPanels panels: a's rows are lanes. Each element is the same chain of sums as in a tile.
template <typename E, int kPanels, typename A = Accumulate<E>>
CONVEXT_INLINE void add_columns(const Tiles<E>& t, int64_t rows, int64_t columns, const E* a, A* c, const A* row_bias) {
  constexpr int lanes = kLanes<E>;
  for (int64_t j = 0; j < columns; ++j, ++c) {
    Vec<A> sum[kPanels] = {};
    if (!t.start.accumulate && row_bias != nullptr) {
#pragma GCC unroll 8
      for (int i = 0; i < kPanels; ++i) sum[i] = load_part(row_bias + i * rows, 0, int(rows));
    } else if (!t.start.accumulate && t.start.column_bias != nullptr) {
#pragma GCC unroll 8
      for (int i = 0; i < kPanels; ++i) sum[i] = splat(t.start.column_bias[j]);
    }
    const E *step = a, *b = t.b.data + j;
    for (int64_t k = 1; k < t.k; ++k, step += t.a.step, b += t.b.step)
#pragma GCC unroll 8
      for (int i = 0; i < kPanels; ++i) sum[i] = add_product(sum[i], load(step + i * t.a.stride), splat_of(*b));
#pragma GCC unroll 8
    for (int i = 0; i < kPanels; ++i) {
      A lane[lanes];
      store(lane, add_product(sum[i], load_part(step + i * t.a.stride, 0, int(rows)), splat_of(*b)));
      for (int64_t r = 0; r < rows; ++r) {
        A* to = c + i * t.c_stride + r * t.ldc;
        if (t.start.accumulate) lane[r] += *to;
        *to = t.start.finish != nullptr ? finished_element(*t.start.finish, lane[r], to) : lane[r];
      }
    }
  }
}

template <typename E, int kPanels = 8>
void gemm_columns(Tiles<E> t, int64_t rows, int64_t columns) {
  for (; t.count >= kPanels; t.count -= kPanels) {
    add_columns<E, kPanels>(t, rows, columns, t.a.data, t.c, t.start.row_bias);
    t.a.data += kPanels * t.a.stride;
    t.c += kPanels * t.c_stride;
    if (t.start.row_bias != nullptr) t.start.row_bias += kPanels * rows;
  }
  if constexpr (kPanels > 1)
    if (t.count > 0) gemm_columns<E, kPanels / 2>(t, rows, columns);
}

template <typename E>
using GemmTiles = void (*)(const Tiles<E>&);

template <typename E, int kVectors, Rows kRowsAre, int kRows = kRowsAre == Rows::gathered ? kGatheredRows : kTileRows>
GemmTiles<E> choose_rows(int64_t rows) {
  if constexpr (kRows > 1)
    if (rows < kRows) return choose_rows<E, kVectors, kRowsAre, kRows - 1>(rows);
  return gemm_tile<E, kRows, kVectors, kRowsAre>;
}

template <typename E>
GemmTiles<E> choose_tiles(int64_t rows, bool wide, Rows rows_are) {
  switch (rows_are) {
    case Rows::packed: return wide ? choose_rows<E, 2, Rows::packed>(rows) : choose_rows<E, 1, Rows::packed>(rows);
    case Rows::apart: return wide ? choose_rows<E, 2, Rows::apart>(rows) : choose_rows<E, 1, Rows::apart>(rows);
    default: return wide ? choose_rows<E, 2, Rows::gathered>(rows) : choose_rows<E, 1, Rows::gathered>(rows);
  }
}

// Panels of a, t.count of them and all of `rows` rows, times n columns. t: the first tile; strides: along a.
template <typename E>
void multiply_panels(const Tiles<E>& t, int64_t rows, int64_t n, Rows rows_are) {
  constexpr int64_t lanes = kLanes<E>, width = kTileVectors * lanes;
  for (int64_t j = 0; j < n; j += width) {
    Tiles<E> line = t;
    line.b.data += j / width * t.b.stride;
    line.b.stride = line.column_bias_stride = 0;
    line.c += j;
    if (t.start.column_bias != nullptr) line.start.column_bias += j;
    line.ahead = j + width < n ? line.b.data + t.b.stride : t.b.data + t.k * width;  // the last: of the terms to come
    line.ahead_step = ceil_div(width, t.count);
    if (j == 0 && rows_are == Rows::apart && t.a.apart == t.k)  // comes from further off than b does
      line.ahead = t.a.data + t.a.stride, line.ahead_step = rows;
    const int64_t columns = least(n - j, width), over = columns % lanes;
    const bool few = rows_are == Rows::packed && rows <= lanes && t.k > 0 && over > 0 && over <= kFewColumns;
    const int64_t vectors = few ? columns - over : columns;
    line.last = int(vectors > lanes ? vectors - lanes : vectors);
    if (vectors > 0) choose_tiles<E>(rows, vectors > lanes, rows_are)(line);
    if (!few) continue;
    line.b.data += vectors;
    line.c += vectors;
    if (t.start.column_bias != nullptr) line.start.column_bias += vectors;
    gemm_columns<E>(line, rows, over);
  }
}

template <typename E>
CONVEXT_INLINE void advance(Tiles<E>* t, int64_t panels) {
  t->a.data += panels * t->a.stride;
  t->row += panels * t->row_stride;
  t->c += panels * t->c_stride;
  if (t->start.row_bias != nullptr) t->start.row_bias += panels * t->row_bias_stride;
  if (t->gap == 0) return;
  const int64_t passed = t->line - t->left + panels * t->row_bias_stride, gaps = passed / t->line;
  t->left = (gaps + 1) * t->line - passed;
  t->c += gaps * t->gap;
}

// Where b is small it stays in L1 and each panel of a meets all of it at once; else panels of a, as many as stay in L2,
// meet one panel of b after the other.
template <typename E>
void multiply_all(Tiles<E> t, int64_t panels, int64_t rows, int64_t n, Rows rows_are) {
  constexpr int64_t lanes = kLanes<E>, width = kTileVectors * lanes;
  const int64_t whole = n / width * width, bytes = t.k * int64_t(sizeof(E));
  if (whole <= width || n * bytes > kNearBytes) {
    const int64_t most = greatest(kFarBytes / greatest(rows * bytes, int64_t(1)), int64_t(1));
    for (int64_t i = 0; i < panels; i += most) {
      t.count = least(panels - i, most);
      multiply_panels(t, rows, n, rows_are);
      advance(&t, t.count);
    }
    return;
  }
  const GemmTiles<E> tile = choose_tiles<E>(rows, true, rows_are);
  Tiles<E> tail = t;
  tail.count = panels;
  tail.b.data += whole / width * t.b.stride;
  tail.c += whole;
  if (t.start.column_bias != nullptr) tail.start.column_bias += whole;
  for (int64_t i = 0; i < panels; ++i, advance(&t, 1)) {
    Tiles<E> line = t;
    line.count = whole / width;
    line.a.stride = line.row_stride = line.row_bias_stride = 0;
    line.c_stride = line.column_bias_stride = width;
    line.last = lanes;
    tile(line);
  }
  multiply_panels(tail, rows, n - whole, rows_are);
}

template <typename E>
void multiply(int64_t m, int64_t n, int64_t k, Panels<E> a, Panels<E> b, Accumulate<E>* c, int64_t ldc,
              GemmStart<Accumulate<E>> start) {
  const int64_t panels = m / a.width, rest = m % a.width;
  const Rows rows_are = a.apart != 1 ? Rows::apart : Rows::packed;
  Tiles<E> t = {1, k, a, nullptr, 0, 0, 0, 0, b, c, ldc, a.width * ldc, 0, 0, start, a.width, 0};
  if (panels > 0) multiply_all(t, panels, a.width, n, rows_are);
  if (rest == 0) return;
  t.a.data += panels * a.stride;
  t.c += panels * a.width * ldc;
  if (start.row_bias != nullptr) t.start.row_bias += panels * a.width;
  multiply_all(t, 1, rest, n, rows_are);
}

// m rows of t in tiles of at most `most`, as equal as can be: those of one row more, then the others.
template <typename E, Rows kRowsAre, bool kTriple>
void multiply_tiles(Tiles<E> t, int64_t m, int64_t n, int64_t most) {
  const int64_t tiles = ceil_div(m, most), fewer = m / tiles, longer = m - tiles * fewer;
  for (int64_t rows = fewer + 1; rows >= fewer; --rows) {
    const int64_t count = rows > fewer ? longer : tiles - longer;
    if (count == 0) continue;
    t.row_stride = t.row_bias_stride = rows;
    t.a.stride = rows * t.a.apart;
    t.c_stride = rows * t.ldc;
    if constexpr (kTriple) {
      t.count = count;
      choose_rows<E, 3, kRowsAre, kTripleRows>(rows)(t);
    } else {
      multiply_all(t, count, rows, n, kRowsAre);
    }
    advance(&t, count);
  }
}

// Rows that lie anywhere: t says where. Columns that end with a panel and a vector, or less, are one tile wide there.
template <typename E, Rows kRowsAre>
void multiply_rows_of(Tiles<E> t, int64_t m, int64_t n) {
  constexpr int64_t lanes = kLanes<E>, width = kTileVectors * lanes;
  const int64_t rest = n % width, before = n > width && rest > 0 && rest <= lanes ? n - rest - width : n;
  if (before > 0) multiply_tiles<E, kRowsAre, false>(t, m, before, least(t.line, int64_t(kGatheredRows)));
  if (before == n) return;
  t.b.data += before / width * t.b.stride;
  t.third_vector = t.b.stride;
  t.b.stride = 0;
  t.c += before;
  if (t.start.column_bias != nullptr) t.start.column_bias += before;
  t.last = int(rest);
  multiply_tiles<E, kRowsAre, true>(t, m, n - before, least(t.line, int64_t(kTripleRows)));
}

template <typename E>
void multiply_gathered(int64_t m, int64_t n, int64_t first, int64_t k, GatheredRows<E> a, Panels<E> b, Accumulate<E>* c,
                       int64_t ldc, GemmStart<Accumulate<E>> start) {
  const Tiles<E> t = {1,
                      k,
                      {nullptr, 0, 0, 0, 0},
                      a.row + first / a.depth * a.apart,
                      0,
                      a.apart,
                      a.depth,
                      first % a.depth,
                      b,
                      c,
                      ldc,
                      0,
                      0,
                      0,
                      start,
                      0,
                      0};
  multiply_rows_of<E, Rows::gathered>(t, m, n);
}

template <typename E>
void multiply_rows(int64_t m, int64_t n, int64_t k, const E* a, int64_t apart, Panels<E> b, Accumulate<E>* c,
                   int64_t ldc, GemmStart<Accumulate<E>> start, Lines lines) {
  Tiles<E> t = {1, k, {a, 0, 0, 1, apart}, nullptr, 0, 0, 0, 0, b, c, ldc, 0, 0, 0, start, 0, 0};
  if (lines.gap != 0) t.left = t.line = lines.rows, t.gap = lines.gap;
  multiply_rows_of<E, Rows::apart>(t, m, n);
}

template <typename E>
constexpr Gemm<E> kGemm = {kTileRows,   kTileVectors * kLanes<E>, kLanes<E>,
                           multiply<E>, multiply_gathered<E>,     multiply_rows<E>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
