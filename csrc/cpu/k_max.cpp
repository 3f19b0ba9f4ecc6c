// k-max pooling: see other_pools.h. A line is a plane of a contiguous tensor; of a channels_last image some planes are
// turned into lines first, in scratch memory.
//
// Nothing is sorted. The maxima of m disjoint pieces of a line, m at least k, are m of its numbers, so the k-th
// greatest of them is a lower bound of its k-th greatest number: about m ln(m / (m - k)) numbers, 1.6 k for m = 1.5 k,
// are no less and are collected with their places, by a compare, a mask and a shuffle per vector. Where pieces would be
// short all numbers are. A number is compared as an integer in the same order, which settles NaN and the two zeros, and
// the k-th greatest of those collected is found by halving the interval that it lies in: one count per step, at most as
// many steps as a number has bits, whatever the numbers are, and few, since a step that leaves exactly k above it is
// the last. Then what is greater is kept, and of what is equal the first.
//
// Pieces are lanes: element i is of piece i modulo m. Work per line: two passes over it (from the second on in cache),
// then steps over what is left. Traffic: the plane once; of a channels_last image a cache line of channels at a time.
// A line of 2^31 numbers and more is done by std::nth_element.
#include <algorithm>
#include <functional>
#include <memory>
#include <type_traits>

#include "../other_pools.h"
#include "dtype.h"
#include "isa.h"
#include "parallel.h"
#include "simd.h"

namespace convext::cpu {
namespace {

constexpr int64_t kGathered = 16;  // channels_last: planes turned at once
constexpr int64_t kLinePiece = 3;  // the least numbers in a piece that pay for looking for a bound
constexpr int64_t kLineRare = 20;  // vectors of a line per k where most vectors hold nothing that counts
// Numbers are compared in lanes of this size.
template <typename T>
using LineLane = std::conditional_t<sizeof(T) == 8, double, float>;

}  // namespace
}  // namespace convext::cpu

#define CONVEXT_KERNELS "k_max.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

template <typename T>
using Key = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

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
void choose_planes(const KMaxArguments& args) {
  const int64_t n = args.places, k = args.k, planes = args.batch * args.channels;
  const bool last = args.layout == Layout::channels_last, vectors = sizeof(T) == 8 || n <= INT32_MAX;
  const int64_t lanes = last ? kGathered : 1, blocks = ceil_div(args.channels, lanes);
  const int64_t tasks = last ? args.batch * blocks : planes, room = vectors ? n + kWidestVector : 0;
  const int64_t threads = tasks < max_threads() ? tasks : max_threads();
  const T* input = static_cast<const T*>(args.input);
  T* output = static_cast<T*>(args.output);
  const std::unique_ptr<T[]> gathered(last ? new T[threads * n * lanes] : nullptr);
  const std::unique_ptr<Key<T>[]> memory(new Key<T>[2 * threads * room]);
  const auto greatest = CONVEXT_SELECT_ISA(line_greatest<T>);
  parallel_for(tasks, [&](int64_t task, int thread) {
    Key<T>* const keys = memory.get() + 2 * thread * room;
    const auto choose = [&](const T* x, int64_t plane) {
      if (vectors)
        greatest(x, n, k, keys, keys + room, output + plane * k, args.indices + plane * k);
      else
        long_line_greatest(x, n, k, output + plane * k, args.indices + plane * k);
    };
    if (!last) return choose(input + task * n, task);
    const int64_t image = task / blocks, first = task % blocks * lanes;
    const int64_t count = first + lanes < args.channels ? lanes : args.channels - first;
    T* const lines = gathered.get() + thread * n * lanes;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < count; ++c) lines[c * n + i] = input[(image * n + i) * args.channels + first + c];
    for (int64_t c = 0; c < count; ++c) choose(lines + c * n, image * args.channels + first + c);
  });
}

}  // namespace

void k_max_pool(const KMaxArguments& args) {
  dispatch_all(args.dtype, [&](auto type) { choose_planes<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu
