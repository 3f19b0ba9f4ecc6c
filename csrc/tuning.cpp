#include "tuning.h"

#include <array>
#include <atomic>
#include <limits>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace convext {
namespace {

std::atomic<int64_t> limit{std::numeric_limits<int64_t>::max()};

// All that tells one call from another, but for the batch, as numbers; zeros to the end.
struct Key {
  std::array<int64_t, 36> numbers{};
  size_t count = 0;

  void add(int64_t number) { numbers[count++] = number; }
  void add(const int64_t (&axes)[kMaxSpatial]) {
    for (int64_t number : axes) add(number);
  }
  bool operator==(const Key& other) const { return numbers == other.numbers; }
};

template <typename Geometry>
Key window_key(Device device, const Geometry& g, DType dtype) {
  Key key;
  for (int number : {int(device), int(dtype), int(g.layout), g.spatial}) key.add(number);
  for (const auto* axes : {&g.input, &g.kernel, &g.output, &g.stride, &g.dilation, &g.pad_before, &g.pad_after})
    key.add(*axes);
  return key;
}

Key key_of(Device device, const ConvGeometry& g, DType dtype, Direction direction) {
  Key key = window_key(device, g, dtype);
  for (int64_t number : {int64_t(direction), g.in_channels, g.out_channels, g.groups, int64_t(g.padding_mode),
                         int64_t(g.flip_kernel), int64_t(g.winograd), int64_t(g.tf32)})
    key.add(number);
  return key;
}

Key key_of(Device device, const PoolGeometry& g, DType dtype, PoolPass pass) {
  Key key = window_key(device, g, dtype);
  for (int64_t number :
       {int64_t(pass), g.channels, int64_t(g.adaptive), int64_t(g.count_include_pad), g.divisor_override})
    key.add(number);
  return key;
}

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 14695981039346656037u;  // FNV-1a, a number at a time
    for (int64_t number : key.numbers) hash = (hash ^ uint64_t(number)) * 1099511628211u;
    return size_t(hash ^ (hash >> 32));
  }
};

template <typename Algorithm>
class Choices {
 public:
  const Algorithm* find(const auto&... call) const {
    if (!any_.load(std::memory_order_acquire)) return nullptr;
    const Key key = key_of(call...);
    const std::shared_lock lock(mutex_);
    const auto found = best_.find(key);
    return found == best_.end() ? nullptr : found->second;
  }
  void set(const Algorithm* best, const auto&... call) {
    const std::unique_lock lock(mutex_);
    if (best == nullptr)
      best_.erase(key_of(call...));
    else
      best_[key_of(call...)] = best;
    any_.store(!best_.empty(), std::memory_order_release);
  }
  void clear() {
    const std::unique_lock lock(mutex_);
    best_.clear();
    any_.store(false, std::memory_order_release);
  }

 private:
  std::atomic<bool> any_{false};
  mutable std::shared_mutex mutex_;
  std::unordered_map<Key, const Algorithm*, Hash> best_;
};

Choices<ConvAlgorithm> conv_choices;
Choices<PoolAlgorithm> pool_choices;

}  // namespace

int64_t workspace_limit() { return limit.load(std::memory_order_relaxed); }
void set_workspace_limit(int64_t bytes) { limit.store(bytes); }

const ConvAlgorithm* tuned(Device device, const ConvGeometry& geometry, DType dtype, Direction direction) {
  return conv_choices.find(device, geometry, dtype, direction);
}

const PoolAlgorithm* tuned(Device device, const PoolGeometry& geometry, DType dtype, PoolPass pass) {
  return pool_choices.find(device, geometry, dtype, pass);
}

void set_tuned(Device device, const ConvGeometry& geometry, DType dtype, Direction direction,
               const ConvAlgorithm* best) {
  conv_choices.set(best, device, geometry, dtype, direction);
}

void set_tuned(Device device, const PoolGeometry& geometry, DType dtype, PoolPass pass, const PoolAlgorithm* best) {
  pool_choices.set(best, device, geometry, dtype, pass);
}

void clear_tuned() {
  conv_choices.clear();
  pool_choices.clear();
}

}  // namespace convext
