#include "arena.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace convext {
namespace {

constexpr int64_t kBlockAlignment = 64, kHugePage = int64_t(2) << 20, kSlabBytes = int64_t(32) << 20;
// Idle slabs that are kept as they are, in bytes. Beyond, they are lent to the system, which takes their pages if it
// needs them: a step of training that found them gone would spend a twentieth of its time on faults. One that was not
// used for so many frees goes back.
constexpr int64_t kKeptIdle = int64_t(256) << 20;
constexpr uint64_t kForgotten = 1 << 16;

int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

struct Block {
  int64_t size;
  bool used;
  uint64_t freed;     // when, counted in frees
  bool told = false;  // the profiler of its being taken: it is to hear of its end then, and of no other's
};

// A free block of any slab; the one that was in use last comes first.
struct Free {
  uint64_t freed;
  char* data;
  int64_t size;
  bool operator<(const Free& other) const {
    return freed != other.freed ? freed > other.freed : std::less<char*>()(data, other.data);
  }
};

struct Slab {
  char* memory;
  int64_t size, used = 0;
  bool lent = false;
  std::map<int64_t, Block> blocks;  // by offset; neighbours that are free are one

  explicit Slab(int64_t bytes) : size(bytes) {
    memory = static_cast<char*>(std::aligned_alloc(kHugePage, bytes));
    TORCH_CHECK(memory != nullptr, "convext: cannot allocate ", bytes, " bytes");
#if defined(__linux__)
    (void)madvise(memory, bytes, MADV_HUGEPAGE);  // advice: a refusal does no harm
#endif
    blocks[0] = {bytes, false, 0};
  }
  ~Slab() { std::free(memory); }
  // What is in it may be lost until it is written again. Whether the system can do that.
  bool lend() {
#if defined(MADV_FREE)
    if (!lent) lent = madvise(memory, size, MADV_FREE) == 0;
#endif
    return lent;
  }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
};

class Arena final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, &give_back, c10::Device(c10::DeviceType::CPU)};
    void* data = take(rounded(int64_t(n), kBlockAlignment));
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  ArenaBytes bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ArenaBytes all = {0, 0};
    for (const auto& [end, slab] : slabs_) all = {all.held + slab->size, all.used + slab->used};
    return all;
  }
  void trim(int64_t keep) {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop_idle(keep, /*lend=*/false);
  }

 private:
  // To torch's profiler, as its own allocator does.
  void report(void* data, int64_t bytes) {
    int64_t held = 0;
    for (const auto& [end, slab] : slabs_) held += slab->size;
    c10::reportMemoryUsageToProfiler(data, bytes, size_t(used_), size_t(held), c10::Device(c10::DeviceType::CPU));
  }
  static void give_back(void* data);

  // The slab that holds an address: the first that ends behind it.
  Slab& slab_of(char* data) { return *slabs_.upper_bound(data)->second; }

  // The free block that was in use last among those that are large enough. Blocks in use, which packed weights are for
  // as long as their model, are not looked at.
  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = std::find_if(free_.begin(), free_.end(), [&](const Free& block) { return block.size >= bytes; });
    if (best == free_.end()) {
      auto slab = std::make_unique<Slab>(rounded(std::max(bytes, kSlabBytes), kHugePage));
      best = free_.insert({0, slab->memory, slab->size}).first;
      slabs_.emplace(slab->memory + slab->size, std::move(slab));
    }
    char* data = best->data;
    Slab& slab = slab_of(data);
    Block& block = slab.blocks.at(data - slab.memory);
    free_.erase(best);
    if (const int64_t rest = block.size - bytes; rest > 0) {
      block.size = bytes;
      slab.blocks[data - slab.memory + bytes] = {rest, false, block.freed};
      free_.insert({block.freed, data + bytes, rest});
    }
    block.used = true;
    slab.lent = false;
    slab.used += bytes;
    used_ += bytes;
    block.told = c10::memoryProfilingEnabled();
    if (block.told) report(data, bytes);
    return data;
  }

  void put(char* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slab& slab = slab_of(data);
    auto at = slab.blocks.find(data - slab.memory);
    Block& block = at->second;
    block.used = false;
    block.freed = ++frees_;
    slab.used -= block.size;
    used_ -= block.size;
    if (block.told && c10::memoryProfilingEnabled()) report(data, -block.size);
    if (const auto next = std::next(at); next != slab.blocks.end() && !next->second.used) {
      free_.erase(free_block(slab, next));
      block.size += next->second.size;
      slab.blocks.erase(next);
    }
    if (at != slab.blocks.begin())
      if (const auto before = std::prev(at); !before->second.used) {
        free_.erase(free_block(slab, before));
        before->second.size += block.size;
        before->second.freed = block.freed;
        slab.blocks.erase(at);
        at = before;
      }
    free_.insert(free_block(slab, at));
    if (slab.used == 0) drop_idle(kKeptIdle, /*lend=*/true);
  }

  static Free free_block(const Slab& slab, std::map<int64_t, Block>::const_iterator at) {
    return {at->second.freed, slab.memory + at->first, at->second.size};
  }

  // Idle slabs but for `keep` bytes of them: lends them if it may, or gives them back.
  void drop_idle(int64_t keep, bool lend) {
    int64_t idle = 0;
    for (auto at = slabs_.begin(); at != slabs_.end();) {
      Slab& slab = *at->second;
      if (slab.used == 0) idle += slab.size;
      const bool one_too_many = slab.used == 0 && idle > keep;
      // All of an idle slab is one block.
      if (one_too_many && !(lend && frees_ - slab.blocks.begin()->second.freed < kForgotten && slab.lend())) {
        free_.erase(free_block(slab, slab.blocks.begin()));
        at = slabs_.erase(at);
      } else {
        ++at;
      }
    }
  }

  std::mutex mutex_;
  std::map<char*, std::unique_ptr<Slab>> slabs_;  // by end
  std::set<Free> free_;
  int64_t used_ = 0;
  uint64_t frees_ = 0;
};

Arena& the_arena() {
  static auto* one = new Arena;  // outlives every tensor
  return *one;
}

void Arena::give_back(void* data) {
  if (data != nullptr) the_arena().put(static_cast<char*>(data));
}

thread_local bool on = false;

}  // namespace

c10::Allocator* arena() { return &the_arena(); }
bool arena_is_on() { return on; }
bool use_arena(bool wish) { return std::exchange(on, wish); }
ArenaBytes arena_bytes() { return the_arena().bytes(); }
void trim_arena() { the_arena().trim(0); }

}  // namespace convext
