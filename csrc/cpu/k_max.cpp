// k-max pooling: see other_pools.h. Numbers are compared as integers in the same order (ordered_key), which settles NaN
// and the two zeros once and for all.
//
// Few (k <= kFew): one pass over the plane keeps the k best in a sorted list; a number enters only if it is greater
// than the last of them, which of n numbers in random order about k ln(n / k) are. Many: the k-th greatest key is found
// by selection (std::nth_element, about 3 n steps) and one pass takes what is greater, and of what is equal the first.
// Traffic: the plane once; of a channels_last image a cache line of channels at a time, which for many is first brought
// together.
#include <algorithm>
#include <memory>

#include "../other_pools.h"
#include "dtype.h"
#include "parallel.h"

namespace convext::cpu {
namespace {

constexpr int64_t kFew = 64;
constexpr int64_t kGathered = 16;  // channels_last: planes brought together at once

// Integers in the order of the numbers: zeros of both signs are equal, NaN is above infinity.
inline int32_t ordered_key(float x) {
  const int32_t bits = int32_t(float_to_bits(x + 0.0f));
  return x != x ? INT32_MAX : bits < 0 ? bits ^ INT32_MAX : bits;
}
inline int64_t ordered_key(double x) {
  x += 0.0;
  int64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return x != x ? INT64_MAX : bits < 0 ? bits ^ INT64_MAX : bits;
}
template <typename T>
auto key_of(T x) {
  if constexpr (std::is_integral_v<T>)
    return int64_t(x);
  else
    return ordered_key(to_accumulate(x));
}
template <typename T>
using KeyOf = decltype(key_of(T()));

// `key`, of place `i`, enters the descending list of the best so far; of equal ones the first comes first.
template <typename Key>
void enter(Key key, int64_t i, int64_t k, Key* keys, int64_t* chosen, int64_t* count) {
  int64_t at = *count < k ? (*count)++ : k - 1;
  for (; at > 0 && keys[at - 1] < key; --at) keys[at] = keys[at - 1], chosen[at] = chosen[at - 1];
  keys[at] = key, chosen[at] = i;
}

// The places of the k greatest of x[0 .. n), in order.
template <typename T>
void few_greatest(const T* x, int64_t n, int64_t k, int64_t* chosen) {
  using Key = KeyOf<T>;
  Key keys[kFew];
  int64_t count = 0;
  auto least = to_accumulate(x[0]);  // of the best so far: most numbers are no greater, and are passed over by that
  for (int64_t i = 0; i < n; ++i) {
    const auto value = to_accumulate(x[i]);
    if (count == k && value <= least) continue;
    const Key key = key_of(x[i]);
    if (count == k && key <= keys[k - 1]) continue;
    enter(key, i, k, keys, chosen, &count);
    least = to_accumulate(x[chosen[k - 1 < count ? k - 1 : count - 1]]);
  }
  std::sort(chosen, chosen + k);
}
// Of `lanes` planes that lie side by side, `step` from one place to the next; chosen: k per plane.
template <typename T>
void few_greatest_beside(const T* x, int64_t n, int64_t step, int64_t lanes, int64_t k, int64_t* chosen) {
  using Key = KeyOf<T>;
  Key keys[kGathered][kFew];
  int64_t count[kGathered] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < lanes; ++c) {
      const Key key = key_of(x[i * step + c]);
      if (count[c] < k || key > keys[c][k - 1]) enter(key, i, k, keys[c], chosen + c * k, &count[c]);
    }
  for (int64_t c = 0; c < lanes; ++c) std::sort(chosen + c * k, chosen + (c + 1) * k);
}
template <typename T>
void many_greatest(const T* x, int64_t n, int64_t k, KeyOf<T>* keys, int64_t* chosen) {
  using Key = KeyOf<T>;
  for (int64_t i = 0; i < n; ++i) keys[i] = key_of(x[i]);
  std::nth_element(keys, keys + (k - 1), keys + n, std::greater<Key>());
  const Key least = keys[k - 1];
  int64_t equal = k - std::count_if(keys, keys + k, [&](Key key) { return key > least; });
  for (int64_t i = 0, found = 0; found < k; ++i) {
    const Key key = key_of(x[i]);
    if (key < least || (key == least && equal-- <= 0)) continue;
    chosen[found++] = i;
  }
}

template <typename T>
void choose_planes(const KMaxArguments& args) {
  const int64_t n = args.places, k = args.k, planes = args.batch * args.channels;
  const bool last = args.layout == Layout::channels_last;
  const int64_t lanes = last ? kGathered : 1, blocks = ceil_div(args.channels, lanes);
  const T* input = static_cast<const T*>(args.input);
  T* output = static_cast<T*>(args.output);
  parallel_for(last ? args.batch * blocks : planes, [&](int64_t task, int) {
    const std::unique_ptr<T[]> gathered(last && k > kFew ? new T[n * lanes] : nullptr);
    const std::unique_ptr<KeyOf<T>[]> keys(k > kFew ? new KeyOf<T>[n] : nullptr);
    const int64_t image = task / blocks, first = task % blocks * lanes;
    const int64_t count = !last ? 1 : first + lanes < args.channels ? lanes : args.channels - first;
    if (last && k <= kFew) {
      const int64_t plane = image * args.channels + first;
      const T* x = input + image * n * args.channels + first;
      few_greatest_beside(x, n, args.channels, count, k, args.indices + plane * k);
      for (int64_t j = 0; j < count * k; ++j)
        output[plane * k + j] = x[args.indices[plane * k + j] * args.channels + j / k];
      return;
    }
    if (last)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < count; ++c) gathered[c * n + i] = input[(image * n + i) * args.channels + first + c];
    for (int64_t c = 0; c < count; ++c) {
      const int64_t plane = last ? image * args.channels + first + c : task;
      const T* x = last ? gathered.get() + c * n : input + plane * n;
      int64_t* chosen = args.indices + plane * k;
      if (k <= kFew)
        few_greatest(x, n, k, chosen);
      else
        many_greatest(x, n, k, keys.get(), chosen);
      for (int64_t j = 0; j < k; ++j) output[plane * k + j] = x[chosen[j]];
    }
  });
}

}  // namespace

void k_max_pool(const KMaxArguments& args) {
  dispatch_all(args.dtype, [&](auto type) { choose_planes<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu
