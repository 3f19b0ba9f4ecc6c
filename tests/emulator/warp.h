// What the lanes of a warp do together. A lane parks until all lanes of the mask have come to the same step; then the
// last of them carries it out for all, and they go on in the order of their block's threads. Lanes of a mask that are
// at different steps, or one that never comes, end the program with a message and status 3. (A GPU lets lanes that have
// ended be named in a mask. Here they may not.)
#pragma once
#include "cuda_runtime.h"

namespace emulator {

constexpr unsigned kLanes = 32, kAllLanes = ~0u;

struct Arrival {
  const char* step = nullptr;
  unsigned mask = 0;
  void* data = nullptr;
  Fiber* fiber = nullptr;
};
struct Warp {
  Arrival lanes[kLanes];
  unsigned arrived = 0;
};
inline std::vector<Warp> warps;

inline void begin_warps() { warps.assign((block.threads + kLanes - 1) / kLanes, Warp()); }

inline const Fiber* lost_lane() {
  for (const Warp& warp : warps)
    if (warp.arrived != 0) return warp.lanes[__builtin_ctz(warp.arrived)].fiber;
  return nullptr;
}

inline unsigned lane_of(unsigned thread) { return thread % kLanes; }

// exchange(data, there): data[lane] is what that lane brought (null where it is not `there`, a mask of bits).
template <typename Data, typename Exchange>
void meet(const char* step, unsigned mask, Data& mine, const Exchange& exchange, const char* file, int line) {
  Fiber* self = block.current;
  Warp& warp = warps[self->thread / kLanes];
  const unsigned lane = lane_of(self->thread), first_thread = self->thread - lane;
  self->file = file, self->line = line;
  if ((mask >> lane & 1) == 0) fail("a lane outside of its own mask", self);
  if (block.threads - first_thread < kLanes) mask &= (1u << (block.threads - first_thread)) - 1;
  if ((warp.arrived & mask) != 0) {
    const Arrival& other = warp.lanes[__builtin_ctz(warp.arrived & mask)];
    if (other.mask != mask || std::strcmp(other.step, step) != 0 || other.fiber->line != line ||
        std::strcmp(other.fiber->file, file) != 0)
      fail("divergent steps within a warp", self);
  }
  warp.lanes[lane] = {step, mask, &mine, self};
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) == mask) {
    Data* data[kLanes];
    for (unsigned i = 0; i < kLanes; ++i)
      data[i] = (mask >> i & 1) != 0 ? static_cast<Data*>(warp.lanes[i].data) : nullptr;
    exchange(data, mask);
    warp.arrived &= ~mask;
    for (unsigned i = 0; i < kLanes; ++i) {  // at the front, in order
      const unsigned at = order == Order::forward ? kLanes - 1 - i : i;
      if ((mask >> at & 1) != 0) block.ready.push_front(warp.lanes[at].fiber);
    }
  }
  park(true, file, line);
}

// Each lane gets the value of the lane that from(lane) names: its own where that is outside of the `width` lanes around
// it.
template <typename T, typename From>
T shuffle(const char* step, unsigned mask, T value, int width, const From& from, const char* file, int line) {
  struct Data {
    T value, result;
    int from;
  };
  const int lane = int(lane_of(block.current->thread)), first = lane / width * width, source = from(lane, first);
  Data mine = {value, value, source < first || source >= first + width ? lane : source};
  meet(
      step, mask, mine,
      [&](Data** data, unsigned) {
        for (unsigned i = 0; i < kLanes; ++i) {
          if (data[i] == nullptr) continue;
          if (data[data[i]->from] == nullptr) fail("a shuffle from a lane outside of the mask", block.current);
          data[i]->result = data[data[i]->from]->value;
        }
      },
      file, line);
  return mine.result;
}

inline unsigned ballot(const char* step, unsigned mask, bool vote, const char* file, int line) {
  struct Data {
    bool vote;
    unsigned result;
  } mine = {vote, 0};
  meet(
      step, mask, mine,
      [](Data** data, unsigned there) {
        unsigned votes = 0;
        for (unsigned i = 0; i < kLanes; ++i)
          if ((there >> i & 1) != 0 && data[i]->vote) votes |= 1u << i;
        for (unsigned i = 0; i < kLanes; ++i)
          if ((there >> i & 1) != 0) data[i]->result = votes;
      },
      file, line);
  return mine.result;
}

}  // namespace emulator

#define EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncwarp(unsigned mask = emulator::kAllLanes, EMULATOR_HERE) {
  emulator::ballot("__syncwarp", mask, true, file, line);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_HERE) {
  const auto from = [&](int, int first) { return first + (lane & (width - 1)); };
  return emulator::shuffle("__shfl_sync", mask, value, width, from, file, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_HERE) {
  const auto from = [&](int lane, int) { return lane - int(by); };
  return emulator::shuffle("__shfl_up_sync", mask, value, width, from, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_HERE) {
  const auto from = [&](int lane, int) { return lane + int(by); };
  return emulator::shuffle("__shfl_down_sync", mask, value, width, from, file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, EMULATOR_HERE) {
  const auto from = [&](int lane, int) { return lane ^ by; };
  return emulator::shuffle("__shfl_xor_sync", mask, value, width, from, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMULATOR_HERE) {
  return emulator::ballot("__ballot_sync", mask, vote != 0, file, line);
}
inline int __any_sync(unsigned mask, int vote, EMULATOR_HERE) {
  return emulator::ballot("__any_sync", mask, vote != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int vote, EMULATOR_HERE) {
  return emulator::ballot("__all_sync", mask, vote == 0, file, line) == 0;
}
