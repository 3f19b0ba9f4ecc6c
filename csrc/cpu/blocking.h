// How sizes are cut into blocks and tasks, and who owns which part of a workspace: what the drivers of im2col and
// winograd share.
#pragma once
#include <algorithm>
#include <type_traits>

#include "../geometry.h"
#include "dtype.h"
#include "parallel.h"
#include "unfold.h"

namespace convext::cpu {

// How much of a sum is taken at once: a panel of gemm's b (this x nr) takes 32 to 48 kB with AVX-512, less elsewhere.
template <typename A>
constexpr int64_t kReduction = 1536 / int64_t(sizeof(A));
constexpr int64_t kTasksPerThread = 2;  // blocks are made smaller until there are so many

// [0, total) in `count` blocks of `size` (the last may be smaller), a multiple of `unit`.
struct Blocks {
  int64_t total, size, count;
  Span operator[](int64_t i) const { return {i * size, std::min((i + 1) * size, total)}; }
};

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// As equal as can be, none above `most` (but for one unit).
inline Blocks cut(int64_t total, int64_t unit, int64_t most) {
  const int64_t size = round_up(ceil_div(total, std::max(ceil_div(total, most), int64_t(1))), unit);
  return {total, size, size == 0 ? 0 : ceil_div(total, size)};
}

// [0, total) in `count` blocks of whole units (but the last), none of them more than a unit larger than another.
struct EvenBlocks {
  int64_t total, unit, count, size;  // size: of the largest
  Span operator[](int64_t i) const { return {begin(i), std::min(begin(i + 1), total)}; }

 private:
  int64_t begin(int64_t i) const { return ceil_div(total, unit) * i / count * unit; }
};

inline EvenBlocks cut_evenly(int64_t total, int64_t unit, int64_t count) {
  const int64_t units = ceil_div(total, unit), blocks = std::clamp(count, std::min(units, int64_t(1)), units);
  return {total, unit, blocks, blocks == 0 ? 0 : std::min(ceil_div(units, blocks) * unit, round_up(total, unit))};
}

// Rows of each of gemm's a panels: at most mr, and about as many in the last as in the others.
inline int64_t panel_width(int64_t rows, int64_t mr) {
  return ceil_div(rows, std::max(ceil_div(rows, mr), int64_t(1)));
}

// As many tasks as keep all threads busy; bits never depend on it.
inline int64_t wanted_tasks() { return max_threads() > 1 ? kTasksPerThread * max_threads() : 1; }

// Hands out a workspace from its start in aligned pieces; with a null start it only measures.
class Workspace {
 public:
  explicit Workspace(void* start) : start_(static_cast<char*>(start)) {}
  template <typename A>
  A* take(int64_t elements) {
    char* piece = start_ == nullptr ? nullptr : start_ + used_;
    used_ += round_up(elements * int64_t(sizeof(A)), 64);
    return reinterpret_cast<A*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* start_;
  int64_t used_ = 0;
};

// The bias in the type of the sums.
template <typename T, typename A = Accumulate<T>>
const A* widened(const T* bias, int64_t count, Workspace& workspace) {
  if constexpr (std::is_same_v<T, A>) {
    return bias;
  } else {
    A* wide = workspace.take<A>(count);
    if (bias == nullptr) return nullptr;
    for (int64_t i = 0; i < count; ++i) wide[i] = to_accumulate(bias[i]);
    return wide;
  }
}

}  // namespace convext::cpu
