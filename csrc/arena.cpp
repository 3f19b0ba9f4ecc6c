#include "arena.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace convext {
namespace {

constexpr int64_t kBlockAlignment = 64, kHugePage = int64_t(2) << 20, kSlabBytes = int64_t(32) << 20;
// Idle slabs that are kept, in bytes; beyond, a slab goes back as soon as nothing in it is used.
constexpr int64_t kKeptIdle = int64_t(256) << 20;

int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

struct Block {
  int64_t size;
  bool used;
  uint64_t freed;     // when, counted in frees
  bool told = false;  // the profiler of its being taken: it is to hear of its end then, and of no other's
};

struct Slab {
  char* memory;
  int64_t size, used = 0;
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
    drop_idle(keep);
  }

 private:
  // To torch's profiler, as its own allocator does.
  void report(void* data, int64_t bytes) {
    int64_t held = 0;
    for (const auto& [end, slab] : slabs_) held += slab->size;
    c10::reportMemoryUsageToProfiler(data, bytes, size_t(used_), size_t(held), c10::Device(c10::DeviceType::CPU));
  }
  static void give_back(void* data);

  // The free block that was in use last among those that fit without much waste; else the smallest that fits.
  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slab* best_slab = nullptr;
    std::map<int64_t, Block>::iterator best;
    for (auto& [end, slab] : slabs_)
      for (auto at = slab->blocks.begin(); at != slab->blocks.end(); ++at) {
        const Block& block = at->second;
        if (block.used || block.size < bytes) continue;
        if (best_slab == nullptr || block.freed > best->second.freed) best_slab = slab.get(), best = at;
      }
    if (best_slab == nullptr) {
      auto slab = std::make_unique<Slab>(rounded(std::max(bytes, kSlabBytes), kHugePage));
      best_slab = slab.get();
      best = best_slab->blocks.begin();
      slabs_.emplace(slab->memory + slab->size, std::move(slab));
    }
    Block& block = best->second;
    const int64_t offset = best->first, rest = block.size - bytes;
    if (rest > 0) {
      block.size = bytes;
      best_slab->blocks[offset + bytes] = {rest, false, block.freed};
    }
    block.used = true;
    best_slab->used += bytes;
    used_ += bytes;
    block.told = c10::memoryProfilingEnabled();
    if (block.told) report(best_slab->memory + offset, bytes);
    return best_slab->memory + offset;
  }

  void put(char* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slab& slab = *slabs_.upper_bound(data)->second;  // the first that ends behind it
    auto at = slab.blocks.find(data - slab.memory);
    at->second.used = false;
    at->second.freed = ++frees_;
    slab.used -= at->second.size;
    used_ -= at->second.size;
    if (at->second.told && c10::memoryProfilingEnabled()) report(data, -at->second.size);
    if (const auto next = std::next(at); next != slab.blocks.end() && !next->second.used) {
      at->second.size += next->second.size;
      slab.blocks.erase(next);
    }
    if (at != slab.blocks.begin())
      if (const auto before = std::prev(at); !before->second.used) {
        before->second.size += at->second.size;
        before->second.freed = at->second.freed;
        slab.blocks.erase(at);
      }
    if (slab.used == 0) drop_idle(kKeptIdle);
  }

  void drop_idle(int64_t keep) {
    int64_t idle = 0;
    for (auto at = slabs_.begin(); at != slabs_.end();) {
      const bool unused = at->second->used == 0;
      if (unused) idle += at->second->size;
      at = unused && idle > keep ? slabs_.erase(at) : std::next(at);
    }
  }

  std::mutex mutex_;
  std::map<char*, std::unique_ptr<Slab>> slabs_;  // by end
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
