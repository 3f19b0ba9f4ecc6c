// The k greatest numbers of channels side by side, which are lanes: see k_max.cpp. Maxima of 2 k pieces of the places,
// a bound per channel, and per channel a list of what is not below it.

#include "k_max.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename T>
CONVEXT_INLINE Numbers<T> load_channels(const T* x, int64_t count) {
  return count >= kLanes<LineLane<T>> ? load_numbers(x) : load_first_numbers(x, count);
}
// Per lane a key that at least k of the maxima of its pieces are no less than.
template <typename A>
CONVEXT_INLINE IndexVec<A> lane_bounds(const Index<A>* maxima, int64_t pieces, int64_t pitch, int64_t k) {
  const IndexVec<A> one = splat_index<A>(1), zero = {}, enough = splat_index<A>(k + k / 4), wanted = splat_index<A>(k);
  IndexVec<A> low = load_index<A>(maxima), high = low, kept = splat_index<A>(pieces);
  for (int64_t i = 1; i < pieces; ++i) {
    const IndexVec<A> v = load_index<A>(maxima + i * pitch);
    low = smaller(low, v), high = larger(high, v);
  }
  for (int step = 0; step < 2 * kLineSteps; ++step) {
    const IndexVec<A> open = choose(less(enough, kept), choose(less(low, high), one, zero), zero);
    if (bits_of(less(zero, open)) == 0) break;
    const IndexVec<A> middle = mean_of(low, high) + open;
    IndexVec<A> found = {};
    for (int64_t i = 0; i < pieces; ++i) found += choose(less(load_index<A>(maxima + i * pitch), middle), zero, one);
    const IndexVec<A> up = choose(less(found, wanted), zero, open), down = open - up;
    low = choose(less(zero, up), middle, low), kept = choose(less(zero, up), found, kept);
    high = choose(less(zero, down), middle - open, high);
  }
  return low;
}
// The maxima so far, over three places of so many channels.
template <typename T>
CONVEXT_INLINE void raise_maxima(const T* a, const T* b, const T* c, int64_t channels, Index<LineLane<T>>* maxima) {
  using A = LineLane<T>;
  for (int64_t i = 0; i < channels; i += kLanes<A>) {
    const int64_t count = channels - i;
    const Numbers<T> most = reinterpret_cast<Numbers<T>>(load_index<A>(maxima + i));
    const Numbers<T> two =
        greater_number(greater_number(most, load_channels(a + i, count)), load_channels(b + i, count));
    store_index<A>(maxima + i, reinterpret_cast<IndexVec<A>>(greater_number(two, load_channels(c + i, count))));
  }
}
template <typename T>
CONVEXT_INLINE Numbers<T> number_at(const Index<LineLane<T>>* p) {
  return reinterpret_cast<Numbers<T>>(load_index<LineLane<T>>(p));
}
// What has been collected of one channel.
template <typename T>
struct List {
  using A = LineLane<T>;
  const T* x;
  int64_t step, k;
  Index<A>*numbers, *places, *bound, *count;

  // Leaves the k greatest, and the bound above all that could not be one of them any more.
  __attribute__((noinline)) void thin() {
    const Cut<A> cut = keep_greatest<T>(*count, k, numbers, places);
    for (int64_t j = 0; j < k; ++j)
      numbers[j] = reinterpret_cast<IndexVec<A>>(load_first_numbers(x + places[j] * step, 1))[0];
    *count = Index<A>(k);
    const Index<A> next = cut.key == kGreatestKey<A> ? cut.key : cut.key + 1;
    *bound = reinterpret_cast<IndexVec<A>>(number_of<T>(next))[0];
  }
};
// To each channel's list what is not below its bound.
template <typename T>
CONVEXT_INLINE void collect(const List<T>& first, int64_t channels, int64_t place, int64_t room) {
  using A = LineLane<T>;
  const Numbers<T> v = load_channels(first.x + place * first.step, channels);
  uint32_t bits = bits_not_below(v, number_at<T>(first.bound));
  if (channels < kLanes<A>) bits &= (uint32_t(1) << channels) - 1;
  for (; bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    Index<A>*const numbers = first.numbers + lane * room, *const places = first.places + lane * room;
    const Index<A> count = first.count[lane]++;
    numbers[count] = reinterpret_cast<IndexVec<A>>(v)[lane];
    places[count] = Index<A>(place);
    if (count + 1 < room - kLanes<A>) continue;
    List<T> list = {first.x + lane, first.step, first.k, numbers, places, first.bound + lane, first.count + lane};
    list.thin();
  }
}
// As line_greatest for each of `channels`, `step` from place to place. keys, places: of whole vectors of channels,
// times `room`, which is more than k and a vector; maxima: of as many, times 2 k; counts: as many.
template <typename T>
void channels_greatest(const T* x, int64_t step, int64_t n, int64_t channels, int64_t k, int64_t room,
                       Index<LineLane<T>>* keys, Index<LineLane<T>>* places, Index<LineLane<T>>* maxima,
                       Index<LineLane<T>>* counts, T* y, int64_t* indices) {
  using A = LineLane<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t pieces = 2 * k, pitch = ceil_div(channels, kL) * kL, round = pieces * step;
  for (int64_t i = 0; i < pieces * pitch; i += kL)
    store_index<A>(maxima + i, reinterpret_cast<IndexVec<A>>(lowest_number<T>()));
  int64_t first = 0;
  for (; first + 3 * pieces <= n; first += 3 * pieces)
    for (int64_t i = 0; i < pieces; ++i) {
      const T* const from = x + (first + i) * step;
      raise_maxima(from, from + round, from + 2 * round, channels, maxima + i * pitch);
    }
  for (int64_t i = 0; first < n; ++first, i = i + 1 < pieces ? i + 1 : 0) {
    const T* const from = x + first * step;
    raise_maxima(from, from, from, channels, maxima + i * pitch);
  }
  for (int64_t i = 0; i < pieces * pitch; i += kL)
    store_index<A>(maxima + i, ordered_keys(reinterpret_cast<Numbers<T>>(load_index<A>(maxima + i))));
  Index<A>* const bounds = maxima;  // in place of the first piece's
  for (int64_t c = 0; c < pitch; c += kL) {
    IndexVec<A> bound = lane_bounds<A>(maxima + c, pieces, pitch, k);
    if constexpr (!std::is_integral_v<T>) bound = turned_negatives<A>(bound);
    store_index<A>(bounds + c, bound);
    store_index<A>(counts + c, IndexVec<A>{});
  }
  for (int64_t place = 0; place < n; ++place) {
    const T* const from = x + place * step;
    for (int64_t c = 0; c < channels; c += 4 * kL) {
      const int64_t end = least(c + 4 * kL, channels);
      if (end == c + 4 * kL) {
        const uint32_t bits = bits_not_below(load_numbers(from + c), number_at<T>(bounds + c)) |
                              bits_not_below(load_numbers(from + c + kL), number_at<T>(bounds + c + kL)) |
                              bits_not_below(load_numbers(from + c + 2 * kL), number_at<T>(bounds + c + 2 * kL)) |
                              bits_not_below(load_numbers(from + c + 3 * kL), number_at<T>(bounds + c + 3 * kL));
        if (bits == 0) continue;
      }
      for (int64_t i = c; i < end; i += kL)
        collect<T>({x + i, step, k, keys + i * room, places + i * room, bounds + i, counts + i}, end - i, place, room);
    }
  }
  for (int64_t c = 0; c < channels; ++c)
    put_greatest(x + c, step, counts[c], k, keys + c * room, places + c * room, y + c * k, indices + c * k);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
