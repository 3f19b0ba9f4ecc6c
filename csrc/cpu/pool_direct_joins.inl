// What the kernels without NaN share (pool_direct_rows.inl, pool_direct_bands.inl): a window is reduced along its rows
// first, into memory on the stack, then across rows, into the output. Both steps join runs that lie at fixed distances.
//
// Maximum: a run joins one that begins and ends before it, and of equals the first is kept, which makes the first
// greatest of a window win. A NaN would be lost and -infinity lose its place to the padding: what is read is looked
// at, and if there is one (-infinity: if places are wanted) the part is left to the kernels of pool_direct_max.inl.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Values and, where places are wanted, how far into its run each was found.
template <typename A, bool kPlaces>
struct Cells {
  Vec<A> value;
  IndexVec<A> tap;
};
template <typename A, bool kPlaces, int kElements>
struct CellMemory {
  A value[kElements + kPoolSlack];
  Index<A> tap[kPlaces ? kElements + kPoolSlack : 1];

  CONVEXT_INLINE Cells<A, kPlaces> get(int64_t i) const {
    Cells<A, kPlaces> cells = {load(value + i), {}};
    if (kPlaces) cells.tap = load_index<A>(tap + i);
    return cells;
  }
  CONVEXT_INLINE void set(int64_t i, const Cells<A, kPlaces>& cells) {
    store(value + i, cells.value);
    if (kPlaces) store_index<A>(tap + i, cells.tap);
  }
};

// What a window is reduced by.
struct Maximum {
  static constexpr bool kMaximum = true;
  template <typename A, bool kPlaces>
  static CONVEXT_INLINE void join(Cells<A, kPlaces>* best, const Cells<A, kPlaces>& later) {
    if (kPlaces) best->tap = choose(greater(later.value, best->value), later.tap, best->tap);
    best->value = greater_or_first(best->value, later.value);
  }
};
struct Sum {
  static constexpr bool kMaximum = false;
  template <typename A, bool kPlaces>
  static CONVEXT_INLINE void join(Cells<A, kPlaces>* sum, const Cells<A, kPlaces>& later) {
    sum->value += later.value;
  }
};

// Notes the values that Maximum does not honour.
template <typename A>
using Mask = decltype(is_nan(Vec<A>{}));
template <typename Op, typename A, bool kPlaces>
CONVEXT_INLINE void look_at(Vec<A> value, Mask<A>* special) {
  if (Op::kMaximum) *special |= kPlaces ? not_above_lowest(value) : is_nan(value);
}

// Runs to be joined: how far each lies from the first in memory, and where it begins among the taps of the window.
struct Runs {
  int64_t count, distance[kPoolTaps], tap[kPoolTaps];
};

template <typename Op, int kCount, typename A, bool kPlaces, int kElements>
CONVEXT_INLINE Cells<A, kPlaces> join_at(const CellMemory<A, kPlaces, kElements>& memory, int64_t i, const Runs& runs) {
  Cells<A, kPlaces> joined = memory.get(i);
  if (kPlaces) joined.tap = joined.tap + splat_index<A>(runs.tap[0]);
#pragma GCC unroll 4
  for (int s = 1; s < kCount; ++s) {
    Cells<A, kPlaces> next = memory.get(i + runs.distance[s]);
    if (kPlaces) next.tap = next.tap + splat_index<A>(runs.tap[s]);
    Op::join(&joined, next);
  }
  return joined;
}

// What a sum is divided by: `factor` times an element of `columns`, if there are any. A factor of the form 2^n has a
// `reciprocal`, whose product is the quotient.
template <typename A>
struct Divisor {
  A factor, reciprocal;
  const A* columns;

  CONVEXT_INLINE Vec<A> divide(Vec<A> sum, int64_t i) const {
    if (columns != nullptr) return sum / (splat<A>(factor) * load(columns + i));
    return reciprocal != 0 ? sum * splat<A>(reciprocal) : sum / splat<A>(factor);
  }
};
template <typename A>
CONVEXT_INLINE Divisor<A> divisor_of(int64_t factor, const A* columns) {
  const int64_t size = factor < 0 ? -factor : factor;
  return {A(factor), size > 0 && (size & (size - 1)) == 0 ? 1 / A(factor) : A(0), columns};
}

// The last step: `count` outputs in a row, whose runs begin at element `at`.
template <typename Op, int kCount, typename T, bool kPlaces, int kElements>
void finish_counted(const CellMemory<Accumulate<T>, kPlaces, kElements>& memory, int64_t at, int64_t count,
                    const Runs& runs, const Divisor<Accumulate<T>>& divisor, T* y, uint8_t* places) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  int64_t i = 0;
  for (; i + kL <= count; i += kL) {
    Cells<A, kPlaces> joined = join_at<Op, kCount>(memory, at + i, runs);
    if (Op::kMaximum)
      store_exact(y + i, joined.value);
    else
      store(y + i, divisor.divide(joined.value, i));
    if (kPlaces) store_places<A>(places + i, joined.tap, kL);
  }
  if (i == count) return;
  const int64_t n = least(count, kL);
  i = count - n;
  Cells<A, kPlaces> joined = join_at<Op, kCount>(memory, at + i, runs);
  if (!Op::kMaximum) joined.value = divisor.divide(joined.value, i);
  store_first(y + i, joined.value, n);
  if (kPlaces) store_places<A>(places + i, joined.tap, n);
}
template <typename Op, typename T, bool kPlaces, int kElements>
CONVEXT_INLINE void finish(const CellMemory<Accumulate<T>, kPlaces, kElements>& memory, int64_t at, int64_t count,
                           const Runs& runs, const Divisor<Accumulate<T>>& divisor, T* y, uint8_t* places) {
  switch (runs.count) {
    case 1: return finish_counted<Op, 1>(memory, at, count, runs, divisor, y, places);
    case 2: return finish_counted<Op, 2>(memory, at, count, runs, divisor, y, places);
    case 3: return finish_counted<Op, 3>(memory, at, count, runs, divisor, y, places);
    case 4: return finish_counted<Op, 4>(memory, at, count, runs, divisor, y, places);
    default: return finish_counted<Op, 5>(memory, at, count, runs, divisor, y, places);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
