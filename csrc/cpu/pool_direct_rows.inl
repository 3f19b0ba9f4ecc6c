// Undilated windows of 2 columns at stride 2, 3 at stride 1 or 2, 5 at stride 1, in the contiguous layout: the pools of
// most networks.
//
// Input rows are joined along their windows where they lie, a vector of neighbouring outputs at a time, into rows on
// the stack; those are joined into output rows. If an input row is `stride` times as long as an output row, all rows of
// a band are taken as one. What then reaches from one row into the next, and what would reach into the padding, is made
// one by one. Likewise the last step: at stride 1 all output rows that see no padding are one.
// The stack has room for kPoolJoined elements, half of the nearest cache; kPoolBatch of them or so are made at once, so
// that reading and writing take turns that are short.
// Traffic: input once and in order, the rows between two bands twice; output once. Instructions: per input element a
// load per tap and a store, per output element a load per row of its window.
// Limits: those of rows_fit.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// A vector of outputs, the first of which sees x[0], into memory from element `to` on. kEnd: x may end behind them, and
// what no vector after this one begins with is looked at.
template <typename Op, int kKernel, int kStride, bool kEnd, typename T, bool kPlaces, int kElements>
CONVEXT_INLINE void join_vector(const T* x, int64_t to, CellMemory<Accumulate<T>, kPlaces, kElements>* memory,
                                Mask<Accumulate<T>>* special) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Cells<A, kPlaces> joined;
  if (kStride == 2) {
    // Every other place of two vectors, and of those two places on.
    Vec<A> low = load(x), high = load(x + kL);
    look_at<Op, A, kPlaces>(low, special);
    look_at<Op, A, kPlaces>(high, special);
    joined.value = even_lanes<A>(low, high);
    joined.tap = splat_index<A>(0);
    Op::join(&joined, Cells<A, kPlaces>{odd_lanes<A>(low, high), splat_index<A>(1)});
    if (kKernel == 3) {
      low = load(x + 2);
      high = kEnd ? load_part(x + 2 + kL, 0, kL - 1) : load(x + 2 + kL);  // the last lane is of no output
      if (kEnd) look_at<Op, A, kPlaces>(high, special);
      Op::join(&joined, Cells<A, kPlaces>{even_lanes<A>(low, high), splat_index<A>(2)});
    }
  } else {
#pragma GCC unroll 5
    for (int s = 0; s < kKernel; ++s) {
      const Cells<A, kPlaces> next = {load(x + s), splat_index<A>(s)};
      if (kEnd || s == 0) look_at<Op, A, kPlaces>(next.value, special);
      if (s == 0)
        joined = next;
      else
        Op::join(&joined, next);
    }
  }
  memory->set(to, joined);
}

// `count` outputs, a vector of them or more.
template <typename Op, int kKernel, int kStride, typename T, bool kPlaces, int kElements>
CONVEXT_INLINE void join_row(const T* x, int64_t count, int64_t to,
                             CellMemory<Accumulate<T>, kPlaces, kElements>* memory, Mask<Accumulate<T>>* special) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  for (int64_t j = 0; j + kL < count; j += kL)
    join_vector<Op, kKernel, kStride, false>(x + j * kStride, to + j, memory, special);
  const int64_t last = count - kL;
  join_vector<Op, kKernel, kStride, true>(x + last * kStride, to + last, memory, special);
}

// An output whose window shows `kCount` places of each of `rows` rows, its tap `tap` the first.
template <typename Op, int kCount, typename T, bool kPlaces, int kElements>
void join_side_counted(const T* x, int64_t pitch, int64_t rows, int64_t tap, int64_t to, int64_t to_pitch,
                       CellMemory<Accumulate<T>, kPlaces, kElements>* memory) {
  using A = Accumulate<T>;
  for (int64_t i = 0; i < rows; ++i, x += pitch, to += to_pitch) {
    A joined = to_accumulate(x[0]);
    int64_t at = 0;
#pragma GCC unroll 4
    for (int s = 1; s < kCount; ++s) {
      const A next = to_accumulate(x[s]);
      if (kPlaces) at = next > joined ? s : at;
      joined = !Op::kMaximum ? joined + next : next > joined ? next : joined;
    }
    memory->value[to] = joined;
    if (kPlaces) memory->tap[to] = Index<A>(tap + at);
  }
}
// The outputs qs, whose windows may reach outside, of `rows` rows.
template <typename Op, typename T, bool kPlaces, int kElements>
CONVEXT_INLINE void join_side(const PoolGeometry& g, const T* x, Range qs, int64_t rows, int64_t to,
                              CellMemory<Accumulate<T>, kPlaces, kElements>* memory) {
  for (int64_t q = qs.first; q < qs.last; ++q) {
    const Range s = taps_inside(g, 2, q);
    const T* from = x + g.place(2, q, s.first);
    switch (s.last - s.first) {
      case 1: join_side_counted<Op, 1>(from, g.input[2], rows, s.first, to + q, g.output[2], memory); break;
      case 2: join_side_counted<Op, 2>(from, g.input[2], rows, s.first, to + q, g.output[2], memory); break;
      case 3: join_side_counted<Op, 3>(from, g.input[2], rows, s.first, to + q, g.output[2], memory); break;
      case 4: join_side_counted<Op, 4>(from, g.input[2], rows, s.first, to + q, g.output[2], memory); break;
      default: join_side_counted<Op, 5>(from, g.input[2], rows, s.first, to + q, g.output[2], memory); break;
    }
  }
}

// `rows` input rows of one depth into memory from element `to` on. True where a NaN was found.
template <typename Op, int kKernel, int kStride, typename T, bool kPlaces, int kElements>
bool join_rows(const PoolGeometry& g, const T* x, int64_t rows, int64_t to,
               CellMemory<Accumulate<T>, kPlaces, kElements>* memory) {
  using A = Accumulate<T>;
  const int64_t width = g.output[2], size = g.input[2];
  const bool one = size == kStride * width;
  const Range inside = inside_columns(g);
  const int64_t count = one ? 1 : rows, length = one ? rows * size : size;
  const int64_t run = (one ? (rows - 1) * width : 0) + inside.last - inside.first;
  Mask<A> special = is_nan(Vec<A>{});
  if (run < kLanes<A>) {
    for (int64_t i = 0; i < count * length; i += kLanes<A>)
      look_at<Op, A, kPlaces>(load_first(x + i, count * length - i), &special);
    join_side<Op>(g, x, {0, width}, rows, to, memory);
    return Op::kMaximum && any(special);
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* row = x + i * size;
    look_at<Op, A, kPlaces>(load(row), &special);  // what the windows inside leave out
    look_at<Op, A, kPlaces>(load(row + length - kLanes<A>), &special);
    join_row<Op, kKernel, kStride>(row + g.place(2, inside.first, 0), run, to + i * width + inside.first, memory,
                                   &special);
  }
  join_side<Op>(g, x, {0, inside.first}, rows, to, memory);
  join_side<Op>(g, x, {inside.last, width}, rows, to, memory);
  return Op::kMaximum && any(special);
}

// The rows of output (o, p), `depth` elements from one depth to the next.
CONVEXT_INLINE Runs rows_of(const PoolGeometry& g, Range ts, Range rs, int64_t depth) {
  Runs runs;
  runs.count = 0;
  for (int64_t t = 0; t < ts.last - ts.first; ++t)
    for (int64_t r = 0; r < rs.last - rs.first; ++r) {
      runs.distance[runs.count] = t * depth + r * g.output[2];
      runs.tap[runs.count++] = ((ts.first + t) * g.kernel[1] + rs.first + r) * g.kernel[2];
    }
  return runs;
}

// A part of the output of a plane, or false where a NaN (with places: -infinity) was found.
template <typename Op, int kKernel, int kStride, typename T, bool kPlaces>
bool pool_rows_of(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first, width = g.output[2];
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  uint8_t* places = advance<kPlaces>(static_cast<uint8_t*>(args.places_out), plane * g.output_places());
  const int64_t step = rows_fit(g);
  CellMemory<A, kPlaces, kPoolJoined> memory;
  A columns[Op::kMaximum ? 1 : kPoolJoined + kPoolSlack];
  const bool uniform = Op::kMaximum || uniform_axis(g, 2);
  if (!uniform) set_column_divisors(g, 0, width, columns);

  for (int64_t o = part.os.first; o < part.os.last; ++o) {
    const Range ts = taps_inside(g, 0, o);
    for (int64_t p = part.ps.first; p < part.ps.last; p += step) {
      const int64_t end = least(p + step, part.ps.last);
      const int64_t first = greatest(g.place(1, p, 0), int64_t(0));
      const int64_t rows = least(g.place(1, end - 1, g.kernel[1] - 1) + 1, g.input[1]) - first;
      for (int64_t t = ts.first; t < ts.last; ++t)
        if (join_rows<Op, kKernel, kStride>(g, x + (g.place(0, o, t) * g.input[1] + first) * g.input[2], rows,
                                            (t - ts.first) * rows * width, &memory))
          return false;
      for (int64_t i = p, next; i < end; i = next) {
        next = i + 1;
        if (g.stride[1] == 1 && uniform && window_inside(g, 1, i))
          while (next < end && window_inside(g, 1, next)) ++next;
        const Range rs = taps_inside(g, 1, i);
        const Runs runs = rows_of(g, ts, rs, rows * width);
        const int64_t at = (o * g.output[1] + i) * width;
        const int64_t column = uniform && g.divisor_override == 0 ? counted_taps(g, 2, 0) : 1;
        const Divisor<A> divisor = divisor_of<A>(row_divisor(g, o, i) * column, uniform ? nullptr : columns);
        finish<Op>(memory, (g.place(1, i, rs.first) - first) * width, (next - i) * width, runs, divisor, y + at,
                   advance<kPlaces>(places, at));
      }
    }
  }
  return true;
}
template <typename Op, typename T, bool kPlaces>
bool pool_rows(const PoolArguments& args, const Part& part) {
  const PoolGeometry& g = args.geometry;
  if (g.kernel[2] == 2) return pool_rows_of<Op, 2, 2, T, kPlaces>(args, part);
  if (g.kernel[2] == 5) return pool_rows_of<Op, 5, 1, T, kPlaces>(args, part);
  if (g.stride[2] == 1) return pool_rows_of<Op, 3, 1, T, kPlaces>(args, part);
  return pool_rows_of<Op, 3, 2, T, kPlaces>(args, part);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
