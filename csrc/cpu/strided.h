// Moving elements of any type that lie a step apart.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "unfold.h"

namespace convext::cpu {

// Of the places first, first + step, ..., `count` of them, those in [0, size): which ones.
inline Span steps_inside(int64_t first, int64_t step, int64_t count, int64_t size) {
  const int64_t begin = first < 0 ? ceil_div(-first, step) : 0, end = first < size ? ceil_div(size - first, step) : 0;
  const int64_t some = begin < count ? begin : count, last = end < count ? end : count;
  return {some, last > some ? last : some};
}

// to[i] = from[i step] for i < count; nothing past the last of them is read.
template <typename Bits>
void take_every(const Bits* from, int64_t step, Bits* to, int64_t count) {
  typedef Bits Vec __attribute__((vector_size(16)));
  constexpr int64_t kLanes = 16 / sizeof(Bits);
  int64_t i = 0;
  if (step == 1) {
    std::memcpy(to, from, count * sizeof(Bits));
    return;
  }
  if (step == 2)
    for (; i + kLanes <= count; i += kLanes) {
      Vec a, b, even;
      std::memcpy(&a, from + 2 * i, sizeof(a));
      std::memcpy(&b, from + 2 * i + kLanes - 1, sizeof(b));
      if constexpr (kLanes == 2)
        even = __builtin_shufflevector(a, b, 0, 3);
      else if constexpr (kLanes == 4)
        even = __builtin_shufflevector(a, b, 0, 2, 5, 7);
      else
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 9, 11, 13, 15);
      std::memcpy(to + i, &even, sizeof(even));
    }
  for (; i < count; ++i) to[i] = from[i * step];
}

// to[i step] = from[i]; null: zeros.
template <typename Bits>
void put_every(const Bits* from, Bits* to, int64_t step, int64_t count) {
  if (from == nullptr) {
    for (int64_t i = 0; i < count; ++i) to[i * step] = 0;
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * step] = from[i];
  }
}

// to[2 i] = even[i], to[2 i + 1] = odd[i] for i < count; null: zeros.
template <typename Bits>
void interleave(const Bits* even, const Bits* odd, Bits* to, int64_t count) {
  typedef Bits Vec __attribute__((vector_size(16)));
  constexpr int64_t kLanes = 16 / sizeof(Bits);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec a = {}, b = {}, low, high;
    if (even != nullptr) std::memcpy(&a, even + i, sizeof(a));
    if (odd != nullptr) std::memcpy(&b, odd + i, sizeof(b));
    if constexpr (kLanes == 2) {
      low = __builtin_shufflevector(a, b, 0, 2);
      high = __builtin_shufflevector(a, b, 1, 3);
    } else if constexpr (kLanes == 4) {
      low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else {
      low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::memcpy(to + 2 * i, &low, sizeof(low));
    std::memcpy(to + 2 * i + kLanes, &high, sizeof(high));
  }
  for (; i < count; ++i) {
    to[2 * i] = even == nullptr ? Bits(0) : even[i];
    to[2 * i + 1] = odd == nullptr ? Bits(0) : odd[i];
  }
}

// to[j to_step + i] = from[i from_step + j] for i < rows, j < columns.
template <typename Bits>
void turn(const Bits* from, int64_t from_step, int64_t rows, int64_t columns, Bits* to, int64_t to_step) {
  if constexpr (sizeof(Bits) == 2) {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < rows; ++i) to[j * to_step + i] = from[i * from_step + j];
  } else {
    using A = std::conditional_t<sizeof(Bits) == 4, float, double>;
    unfold<A>().transpose(reinterpret_cast<const A*>(from), from_step, rows, columns, reinterpret_cast<A*>(to), to_step,
                          rows);
  }
}

// run(an unsigned number as wide as dtype), for moving elements of any type.
template <typename Run>
void with_bits(int64_t bytes, const Run& run) {
  switch (bytes) {
    case 2: return run(uint16_t());
    case 4: return run(uint32_t());
    default: return run(uint64_t());
  }
}

}  // namespace convext::cpu
