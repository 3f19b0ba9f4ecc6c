// The k greatest numbers of a line: see k_max.cpp. Keys and places are 32 bits wide, or 64 where the numbers are.

#include "k_max_keys.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Keys of the maxima of kVectors * kLanes pieces, NaN passed over: element i of `vectors` whole vectors belongs to
// piece i modulo that.
template <typename T, int kVectors>
void few_maxima(const T* x, int64_t vectors, Index<LineLane<T>>* keys) {
  using A = LineLane<T>;
  constexpr int kUnroll = kVectors < 4 ? 4 : kVectors;
  Numbers<T> most[kUnroll];
#pragma GCC unroll 8
  for (int u = 0; u < kUnroll; ++u) most[u] = lowest_number<T>();
  int64_t i = 0;
  for (; i + kUnroll <= vectors; i += kUnroll)
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) most[u] = greater_number(most[u], load_numbers(x + (i + u) * kLanes<A>));
#pragma GCC unroll 8
  for (int u = 0; u < kUnroll; ++u)
    if (i + u < vectors) most[u] = greater_number(most[u], load_numbers(x + (i + u) * kLanes<A>));
#pragma GCC unroll 8
  for (int u = kVectors; u < kUnroll; ++u) most[u % kVectors] = greater_number(most[u % kVectors], most[u]);
#pragma GCC unroll 8
  for (int u = 0; u < kVectors; ++u) store_index<A>(keys + u * kLanes<A>, ordered_keys(most[u]));
}
template <typename T>
void many_maxima(const T* x, int64_t vectors, int64_t pieces, Index<LineLane<T>>* keys) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  int64_t first = 0;
  for (; first + 3 * pieces <= vectors; first += 3 * pieces)  // the first time there are as many
    for (int64_t i = 0; i < pieces; ++i) {
      const T* const from = x + (first + i) * kL;
      const Numbers<T> most =
          first == 0 ? lowest_number<T>() : reinterpret_cast<Numbers<T>>(load_index<A>(keys + i * kL));
      const Numbers<T> more =
          greater_number(greater_number(most, load_numbers(from)), load_numbers(from + pieces * kL));
      store_index<A>(keys + i * kL,
                     reinterpret_cast<IndexVec<A>>(greater_number(more, load_numbers(from + 2 * pieces * kL))));
    }
  for (int64_t i = 0; first < vectors; ++first, i = i + 1 < pieces ? i + 1 : 0) {
    const Numbers<T> most = reinterpret_cast<Numbers<T>>(load_index<A>(keys + i * kL));
    store_index<A>(keys + i * kL, reinterpret_cast<IndexVec<A>>(greater_number(most, load_numbers(x + first * kL))));
  }
  for (int64_t i = 0; i < pieces; ++i)
    store_index<A>(keys + i * kL, ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(keys + i * kL))));
}

// How many of `count` keys, followed by the least key up to a whole vector, are no less than `key`, which is not that.
template <typename A>
CONVEXT_INLINE int64_t count_from(const Index<A>* keys, int64_t count, Index<A> key) {
  constexpr int64_t kL = kLanes<A>;
  const IndexVec<A> under = splat_index<A>(key - 1);
  int64_t found = 0, i = 0;
#if CONVEXT_ISA_LEVEL < 3  // a mask is a vector of -1 and 0
  if (count >= 8 * kL) {
    IndexVec<A> sums[4] = {};
    for (; i + 4 * kL <= count; i += 4 * kL)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sums[u] -= less(under, load_index<A>(keys + i + u * kL));
    IndexVec<A> sum = sums[0] + sums[1] + (sums[2] + sums[3]);
#pragma GCC unroll 4
    for (int width = kLanes<A> / 2; width > 0; width /= 2) sum += rotated<A>(sum, width);
    found = sum[0];
  }
#endif
  for (; i < count; i += kL) found += count_bits(bits_of(less(under, load_index<A>(keys + i))));
  return found;
}

// The mean of two keys, rounded down.
template <typename K>
CONVEXT_INLINE K mean_of(K a, K b) {
  return (a & b) + ((a ^ b) >> 1);
}

// A key that `kept` of the keys are no less than: at least k, and where that is more than `enough` it is the k-th
// greatest key itself. Starts from `key` and `kept` of that kind; none is greater than `most`.
template <typename A>
struct Cut {
  Index<A> key, most;
  int64_t kept;

  CONVEXT_INLINE void narrow(const Index<A>* keys, int64_t count, int64_t k, int64_t enough) {
    for (int step = 1; kept > enough && key < most; ++step) {
      if (step % kLineSteps == 0 && !between(keys, count)) break;
      const Index<A> middle = mean_of(key, most) + 1;
      const int64_t found = count_from<A>(keys, count, middle);
      const bool up = found >= k;
      most = up ? most : middle - 1;
      key = up ? middle : key;
      kept = up ? found : kept;
    }
  }
  // Moves both ends to keys that are there: where many are equal that ends it. Whether something is left to halve.
  bool between(const Index<A>* keys, int64_t count) {
    const IndexVec<A> first = splat_index<A>(key), last = splat_index<A>(most);
    IndexVec<A> low = last, high = first;
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const IndexVec<A> v = load_index<A>(keys + i);
      low = smaller(low, choose(less(v, first), last, v));
      high = larger(high, choose(less(last, v), first, v));
    }
    key = least_lane<A>(low), most = greatest_lane<A>(high);
    return key < most;
  }
};

// Turns `count` numbers into keys, in place, with the least key behind them up to a whole vector. The cut before all.
template <typename T>
CONVEXT_INLINE Cut<LineLane<T>> key_numbers(Index<LineLane<T>>* keys, int64_t count) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  const IndexVec<A> bottom = splat_index<A>(kLeastKey<A>), top = splat_index<A>(kGreatestKey<A>);
  IndexVec<A> low = top, high = bottom;
  int64_t i = 0;
  for (; i + kL <= count; i += kL) {
    const IndexVec<A> v = ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(keys + i)));
    low = smaller(low, v), high = larger(high, v);
    store_index<A>(keys + i, v);
  }
  if (i < count) {
    const IndexVec<A> v = ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(keys + i)));
    const auto real = less(lane_numbers<A>(), splat_index<A>(count - i));
    low = smaller(low, choose(real, v, top)), high = larger(high, choose(real, v, bottom));
    store_index<A>(keys + i, choose(real, v, bottom));
  }
  return {least_lane<A>(low), greatest_lane<A>(high), count};
}

// The numbers of x[0 .. n) that are not below the bound, and their places; how many. kRare: most vectors have none.
template <typename T>
struct Sieve {
  using A = LineLane<T>;
  Numbers<T> bound;
  Index<A>*numbers, *places;
  int64_t count;

  CONVEXT_INLINE void take(Numbers<T> v, IndexVec<A> place, uint32_t lanes) {
    const uint32_t bits = lanes & bits_not_below(v, bound);
    store_index<A>(numbers + count, packed(reinterpret_cast<IndexVec<A>>(v), bits));
    store_index<A>(places + count, packed_lanes<A>(bits) + place);
    count += count_bits(bits);
  }
};
template <typename T, bool kRare>
CONVEXT_INLINE int64_t sift(const T* x, int64_t n, Numbers<T> bound, Index<LineLane<T>>* numbers,
                            Index<LineLane<T>>* places) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  Sieve<T> sieve = {bound, numbers, places, 0};
  int64_t i = 0;
  if (kRare)
    for (; i + 4 * kL <= n; i += 4 * kL) {
      const Numbers<T> a = load_numbers(x + i), b = load_numbers(x + i + kL);
      const Numbers<T> c = load_numbers(x + i + 2 * kL), d = load_numbers(x + i + 3 * kL);
      if (bits_of(below(a, bound) & below(b, bound) & below(c, bound) & below(d, bound)) == kAllLanes<A>) continue;
      for (int64_t j = i; j < i + 4 * kL; j += kL) sieve.take(load_numbers(x + j), splat_index<A>(j), kAllLanes<A>);
    }
  IndexVec<A> place = splat_index<A>(i);
  for (; i + kL <= n; i += kL, place += splat_index<A>(kL)) sieve.take(load_numbers(x + i), place, kAllLanes<A>);
  if (i < n) sieve.take(load_first_numbers(x + i, n - i), place, (uint32_t(1) << (n - i)) - 1);
  return sieve.count;
}
template <typename T>
CONVEXT_INLINE void take_all(const T* x, int64_t n, Index<LineLane<T>>* numbers, Index<LineLane<T>>* places) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t i = 0; i < n; i += kL) {
    const Numbers<T> v = i + kL <= n ? load_numbers(x + i) : load_first_numbers(x + i, n - i);
    store_index<A>(numbers + i, reinterpret_cast<IndexVec<A>>(v));
    store_index<A>(places + i, lane_numbers<A>() + splat_index<A>(i));
  }
}

// Of `count` places, in place, the k whose keys are greater than the cut or, the first of them, equal.
template <typename A>
CONVEXT_INLINE void keep_places(const Index<A>* keys, int64_t count, int64_t k, const Cut<A>& cut, Index<A>* places) {
  const IndexVec<A> key = splat_index<A>(cut.key);
  const int64_t above = cut.kept == k || cut.key == kGreatestKey<A> ? 0 : count_from<A>(keys, count, cut.key + 1);
  int64_t equals = k - above, found = 0;  // where k are kept there are no more equal ones than that
  for (int64_t i = 0; found < k; i += kLanes<A>) {
    const IndexVec<A> v = load_index<A>(keys + i);
    uint32_t same = bits_of(equal(v, key));
    while (count_bits(same) > equals) same &= ~(uint32_t(1) << (31 - __builtin_clz(same)));
    equals -= count_bits(same);
    const uint32_t bits = same | bits_of(less(key, v));
    store_index<A>(places + found, packed(load_index<A>(places + i), bits));
    found += count_bits(bits);
  }
}

// Of `count` numbers and their places: leaves the places of the k greatest, in order, and keys in place of numbers.
template <typename T>
CONVEXT_INLINE Cut<LineLane<T>> keep_greatest(int64_t count, int64_t k, Index<LineLane<T>>* numbers,
                                              Index<LineLane<T>>* places) {
  Cut<LineLane<T>> cut = key_numbers<T>(numbers, count);
  cut.narrow(numbers, count, k, k);
  keep_places<LineLane<T>>(numbers, count, k, cut, places);
  return cut;
}
// The same, to y and indices. step: from place to place of x.
template <typename T>
CONVEXT_INLINE void put_greatest(const T* x, int64_t step, int64_t count, int64_t k, Index<LineLane<T>>* numbers,
                                 Index<LineLane<T>>* places, T* y, int64_t* indices) {
  keep_greatest<T>(count, k, numbers, places);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t place = places[j];
    indices[j] = place;
    y[j] = x[place * step];
  }
}

// y and indices: the k greatest of x[0 .. n) and their places, in order. keys, places: of n numbers and a vector more.
template <typename T>
void line_greatest(const T* x, int64_t n, int64_t k, Index<LineLane<T>>* keys, Index<LineLane<T>>* places, T* y,
                   int64_t* indices) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t vectors = n / kL;
  int64_t pieces = ceil_div(k + k / 2, kL), count = n;  // vectors of pieces
  if (pieces == 3) pieces = 4;
  if (pieces > 4 && pieces < 8) pieces = 8;
  static_assert(kLinePiece >= 3);  // what many_maxima counts on
  if (pieces * kLinePiece <= vectors) {
    if (pieces == 1)
      few_maxima<T, 1>(x, vectors, keys);
    else if (pieces == 2)
      few_maxima<T, 2>(x, vectors, keys);
    else if (pieces == 4)
      few_maxima<T, 4>(x, vectors, keys);
    else if (pieces == 8)
      few_maxima<T, 8>(x, vectors, keys);
    else
      many_maxima(x, vectors, pieces, keys);
    IndexVec<A> low = load_index<A>(keys), high = low;
    for (int64_t i = kL; i < pieces * kL; i += kL) {
      const IndexVec<A> v = load_index<A>(keys + i);
      low = smaller(low, v), high = larger(high, v);
    }
    Cut<A> bound = {least_lane<A>(low), greatest_lane<A>(high), pieces * kL};
    bound.narrow(keys, pieces * kL, k, k + k / 4);
    const bool rare = k * kLineRare <= vectors;
    const Numbers<T> number = number_of<T>(bound.key);
    count = rare ? sift<T, true>(x, n, number, keys, places) : sift<T, false>(x, n, number, keys, places);
  } else {
    take_all(x, n, keys, places);
  }
  put_greatest(x, 1, count, k, keys, places, y, indices);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
