// k-max pooling: see other_pools.h.
//
// Nothing is sorted. The maxima of m disjoint pieces of a line, m at least k, are m of its numbers, so the k-th
// greatest of them is a lower bound of its k-th greatest number: about m ln(m / (m - k)) numbers, 1.6 k for m = 1.5 k,
// are no less, and are collected with their places. Where pieces would be short all numbers are. A number is compared
// as an integer in the same order, which settles NaN and the two zeros, and the k-th greatest of those collected is
// found by halving the interval that it lies in: a count per step, at most as many steps as a number has bits, whatever
// the numbers are, and few, since a step that leaves exactly k above it is the last. Then what is greater is kept, and
// of what is equal the first.
//
// Of a plane of a contiguous tensor pieces are lanes: element i is of piece i modulo m; a compare, a mask and a shuffle
// per vector collect. Of a channels_last image channels are lanes, place i is of piece i modulo 2 k, and each channel
// has a list, of which, whenever it is full, the k greatest are kept and the bound is raised; where pieces would be
// short the channels are turned into lines. Two passes over the input, the second of which finds a line, or the block
// of channels if it is small, in cache. Lines of 2^31 numbers of less than 64 bits and more are done by
// std::nth_element.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "../other_pools.h"
#include "dtype.h"
#include "isa.h"
#include "parallel.h"
#include "simd.h"

namespace convext::cpu {
namespace {

constexpr int64_t kTogether = 64;  // channels_last: channels of a task,
constexpr int64_t kGathered = 16;  // where there are few tasks, or channels are turned into lines
constexpr int64_t kLinePiece = 3;  // the least numbers in a piece that pay for looking for a bound
constexpr int64_t kLineRare = 20;  // vectors of a line per k where most vectors hold nothing that counts
constexpr int kLineSteps = 8;      // of halving, after which keys are looked at again
// Numbers are compared in lanes of this size.
template <typename T>
using LineLane = std::conditional_t<sizeof(T) == 8, double, float>;

}  // namespace
}  // namespace convext::cpu

#define CONVEXT_KERNELS "k_max_channels.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

template <typename T>
using Key = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Keys, or places, of a line.
int64_t line_room(int64_t n) { return ceil_div(n + kWidestVector, kWidestVector) * kWidestVector; }

// So many keys for each thread that takes part in `tasks`, from the start of a cache line.
template <typename T>
class Scratch {
 public:
  Scratch(int64_t tasks, int64_t keys)
      : keys_(ceil_div(keys, kWidestVector) * kWidestVector),
        memory_(new Key<T>[(tasks < max_threads() ? tasks : max_threads()) * keys_ + kCacheLine / sizeof(Key<T>)]) {}
  Key<T>* of(int thread) const {
    const uintptr_t first = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<Key<T>*>((first + kCacheLine - 1) / kCacheLine * kCacheLine) + thread * keys_;
  }

 private:
  static constexpr int64_t kCacheLine = 64;
  int64_t keys_;
  std::unique_ptr<Key<T>[]> memory_;
};

// As line_greatest of k_max.inl, whatever the length.
template <typename T>
void long_line_greatest(const T* x, int64_t n, int64_t k, T* y, int64_t* indices) {
  using A = Accumulate<T>;
  const auto greater = [](A a, A b) { return a > b || (a != a && b == b); };
  const std::unique_ptr<A[]> numbers(new A[n]);
  for (int64_t i = 0; i < n; ++i) numbers[i] = to_accumulate(x[i]);
  std::nth_element(numbers.get(), numbers.get() + (k - 1), numbers.get() + n, greater);
  const A least = numbers[k - 1];
  int64_t equal = k - std::count_if(numbers.get(), numbers.get() + k, [&](A a) { return greater(a, least); });
  for (int64_t i = 0, found = 0; found < k; ++i) {
    const A number = to_accumulate(x[i]);
    if (greater(least, number) || (!greater(number, least) && equal-- <= 0)) continue;
    indices[found] = i, y[found++] = x[i];
  }
}

template <typename T>
void choose_plane(const T* x, int64_t n, int64_t k, Key<T>* scratch, T* y, int64_t* indices) {
  if (sizeof(T) == 8 || n <= INT32_MAX)
    CONVEXT_SELECT_ISA(line_greatest<T>)(x, n, k, scratch, scratch + line_room(n), y, indices);
  else
    long_line_greatest(x, n, k, y, indices);
}

template <typename T>
void choose_planes(const KMaxArguments& args) {
  const int64_t n = args.places, k = args.k, planes = args.batch * args.channels;
  const T* input = static_cast<const T*>(args.input);
  T* output = static_cast<T*>(args.output);
  const Scratch<T> scratch(planes, 2 * line_room(n));
  parallel_for(planes, [&](int64_t plane, int thread) {
    choose_plane(input + plane * n, n, k, scratch.of(thread), output + plane * k, args.indices + plane * k);
  });
}

template <typename T>
void choose_channels(const KMaxArguments& args) {
  const int64_t n = args.places, k = args.k;
  const bool beside = 2 * k * kLinePiece <= n && n <= INT32_MAX;
  int64_t together = beside ? kTogether : kGathered;
  while (together > kGathered && args.batch * ceil_div(args.channels, together) < max_threads()) together /= 2;
  const int64_t blocks = ceil_div(args.channels, together), room = beside ? line_room(4 * k) : line_room(n);
  const int64_t keys_of_task = beside ? together * (2 * room + 2 * k + 1) : 2 * room;
  const Scratch<T> scratch(args.batch * blocks, keys_of_task);
  parallel_for(args.batch * blocks, [&](int64_t task, int thread) {
    const int64_t image = task / blocks, first = task % blocks * together;
    const int64_t count = first + together < args.channels ? together : args.channels - first;
    const T* x = static_cast<const T*>(args.input) + image * n * args.channels + first;
    T* y = static_cast<T*>(args.output) + (image * args.channels + first) * k;
    int64_t* indices = args.indices + (image * args.channels + first) * k;
    Key<T>* const keys = scratch.of(thread);
    if (beside) {
      Key<T>*const places = keys + together * room, *const maxima = places + together * room;
      CONVEXT_SELECT_ISA(channels_greatest<T>)
      (x, args.channels, n, count, k, room, keys, places, maxima, maxima + together * 2 * k, y, indices);
      return;
    }
    const std::unique_ptr<T[]> lines(new T[count * n]);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < count; ++c) lines[c * n + i] = x[i * args.channels + c];
    for (int64_t c = 0; c < count; ++c) choose_plane(lines.get() + c * n, n, k, keys, y + c * k, indices + c * k);
  });
}

}  // namespace

void k_max_pool(const KMaxArguments& args) {
  dispatch_all(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    args.layout == Layout::contiguous ? choose_planes<T>(args) : choose_channels<T>(args);
  });
}

}  // namespace convext::cpu
