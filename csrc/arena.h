// Memory for the activations and packed weights of optimised models, and for what training makes (autograd_*.cpp,
// gradients of weights): a few large slabs in huge pages, cut as needed, where a block that is freed is the next to be
// given out. A network that runs through its layers then touches the same few megabytes again and again, still in cache
// and behind few page table entries, instead of wherever malloc puts each output. A block goes back when the last
// tensor that lies in it dies, whoever holds it: nothing is planned, so nothing can be wrong about lifetimes, and any
// number of threads may run.
//
// On while a thread has said so (use_arena, ArenaScope), and for what operators make within an autograd Function or a
// backward pass (tensors.cpp); tensors made meanwhile may outlive it. Smaller tensors come from torch.
#pragma once
#include <c10/core/Allocator.h>

#include <cstdint>

namespace convext {

constexpr int64_t kArenaFrom = 16 * 1024;  // bytes of a tensor

c10::Allocator* arena();
bool arena_is_on();
// Whether it was on for this thread.
bool use_arena(bool on);
// On in a scope: what training makes, it makes anew in every step, in the same order.
class ArenaScope {
 public:
  ArenaScope() : before_(use_arena(true)) {}
  ~ArenaScope() { use_arena(before_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  bool before_;
};
// Bytes of its slabs, and of the blocks that are in use.
struct ArenaBytes {
  int64_t held, used;
};
ArenaBytes arena_bytes();
// Gives slabs without a block in use back to the system.
void trim_arena();

}  // namespace convext
