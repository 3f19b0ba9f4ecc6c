// Twin of csrc/cuda/async_copy.cuh: copies to shared memory that are made when they are waited for, and not before.
// Until then the place holds 0xff (NaN, -1), so that a missing wait shows; and as each thread waits for its own, so
// does a missing barrier after it. A copy that a GPU would refuse (alignment, a target that is not shared memory) ends
// the program with a message and status 3.
#pragma once
#include "cuda_runtime.h"

namespace emulator {

struct AsyncCopy {
  void* to;
  const void* from;
  size_t size, valid;  // bytes; from `valid` on, zeros
  int group;
};
struct AsyncCopies {  // of a thread
  std::vector<AsyncCopy> pending;
  int open = 0;  // the group that copies now join
};
inline std::vector<AsyncCopies> async_copies;

inline void begin_async_copies() {
  async_copies.resize(block.threads);
  for (AsyncCopies& copies : async_copies) copies.pending.clear(), copies.open = 0;
}

inline void copy_async(void* to, const void* from, size_t size, size_t valid) {
  block.current->file = __FILE__, block.current->line = __LINE__;
  if (reinterpret_cast<uintptr_t>(to) % size != 0 || (valid > 0 && reinterpret_cast<uintptr_t>(from) % size != 0))
    fail("a misaligned asynchronous copy", block.current);
  if (!in_shared(to, size)) fail("an asynchronous copy to what is not shared memory", block.current);
  std::memset(to, 0xff, size);
  AsyncCopies& copies = async_copies[block.current->thread];
  copies.pending.push_back({to, from, size, valid, copies.open});
}

inline void commit_async_copies() { ++async_copies[block.current->thread].open; }

// Makes the copies of all groups but the latest `but`.
inline void wait_async_copies(int but) {
  AsyncCopies& copies = async_copies[block.current->thread];
  size_t made = 0;
  for (; made < copies.pending.size() && copies.pending[made].group < copies.open - but; ++made) {
    const AsyncCopy& copy = copies.pending[made];
    std::memset(copy.to, 0, copy.size);
    std::memcpy(copy.to, copy.from, copy.valid);
  }
  copies.pending.erase(copies.pending.begin(), copies.pending.begin() + long(made));
}

}  // namespace emulator
