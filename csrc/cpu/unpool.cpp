// Max unpooling: see other_pools.h. Numbers are moved, not looked at, so elements are taken by their size. A task is a
// plane of a contiguous tensor, or a block of channels of a channels_last image. Indices mostly grow with the places of
// the input, so the output is cleared a block at a time, just before the first number is put there, and written to
// memory once; whatever the indices, a place is cleared before anything is put behind it. Traffic: input, indices and
// output once; the gradient, which reads where the output was written, likewise.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "../other_pools.h"
#include "parallel.h"

namespace convext::cpu {
namespace {

constexpr int64_t kChannels = 64, kFewChannels = 16;  // of a task, channels_last; where there are few tasks
constexpr int64_t kCleared = 16384;                   // bytes of a task's output cleared at once, about
constexpr int64_t kGathered = 4096;                   // elements of a task of the gradient, about

// Some channels of an image: their numbers are `step` apart from place to place.
template <typename E>
struct Cleared {
  E* y;
  int64_t step, count, places, until = 0;  // places before `until` are clear, or have been written

  // Makes place `at` one of them.
  void reach(int64_t at) {
    const int64_t block = ceil_div(kCleared, int64_t(sizeof(E)) * count), end = (at / block + 1) * block;
    const int64_t last = end < places ? end : places;
    if (step == count)
      std::memset(y + until * count, 0, sizeof(E) * (last - until) * count);
    else
      for (int64_t i = until; i < last; ++i) std::memset(y + i * step, 0, sizeof(E) * count);
    until = last;
  }
};

// kPlane: of one channel, its places side by side.
template <bool kPlane, typename E>
void unpool(const E* x, const int64_t* indices, int64_t places_in, Cleared<E> out, std::atomic<int64_t>* outside) {
  const int64_t step = kPlane ? 1 : out.step, count = kPlane ? 1 : out.count;
  int64_t clear = 0;
  for (int64_t i = 0; i < places_in; ++i)
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = indices[i * step + c];
      if (uint64_t(at) >= uint64_t(clear)) {
        if (uint64_t(at) >= uint64_t(out.places)) {
          outside->store(at, std::memory_order_relaxed);
          continue;
        }
        out.reach(at);
        clear = out.until;
      }
      out.y[at * step + c] = x[i * step + c];
    }
  if (clear < out.places) out.reach(out.places - 1);
}

template <typename E>
void unpool_planes(const UnpoolArguments& args, std::atomic<int64_t>* outside) {
  const bool last = args.layout == Layout::channels_last;
  int64_t lanes = last ? kChannels : 1;
  while (lanes > kFewChannels && args.batch * ceil_div(args.channels, lanes) < max_threads()) lanes /= 2;
  const int64_t blocks = ceil_div(args.channels, lanes), step = last ? args.channels : 1;
  parallel_for(args.batch * blocks, [&](int64_t task, int) {
    const int64_t image = task / blocks, first = task % blocks * lanes;
    const int64_t count = first + lanes < args.channels ? lanes : args.channels - first;
    const int64_t plane = image * args.channels + first;
    const int64_t in = last ? image * args.channels * args.places_in + first : plane * args.places_in;
    const int64_t out = last ? image * args.channels * args.places_out + first : plane * args.places_out;
    const E* x = static_cast<const E*>(args.input) + in;
    const Cleared<E> to = {static_cast<E*>(args.output) + out, step, count, args.places_out};
    if (step == 1)
      unpool<true>(x, args.indices + in, args.places_in, to, outside);
    else
      unpool<false>(x, args.indices + in, args.places_in, to, outside);
  });
}

// dx[i] = dy[indices[i]], a task being some places of one plane, or of all channels of a channels_last image.
template <typename E>
void gather_planes(const UnpoolArguments& args, std::atomic<int64_t>* outside) {
  const bool last = args.layout == Layout::channels_last;
  const int64_t planes = last ? args.batch : args.batch * args.channels, count = last ? args.channels : 1;
  const int64_t places = std::max<int64_t>(kGathered / count, 1), blocks = ceil_div(args.places_in, places);
  parallel_for(planes * blocks, [&](int64_t task, int) {
    const int64_t plane = task / blocks, first = task % blocks * places;
    const int64_t end = std::min(first + places, args.places_in);
    const E* dy = static_cast<const E*>(args.input) + plane * args.places_out * count;
    E* dx = static_cast<E*>(args.output) + plane * args.places_in * count;
    const int64_t* indices = args.indices + plane * args.places_in * count;
    for (int64_t i = first; i < end; ++i)
      for (int64_t c = 0; c < count; ++c) {
        const int64_t at = indices[i * count + c];
        if (uint64_t(at) < uint64_t(args.places_out))
          dx[i * count + c] = dy[at * count + c];
        else
          dx[i * count + c] = 0, outside->store(at, std::memory_order_relaxed);
      }
  });
}

// An index that `run`, called with an element of that size, found outside.
template <typename Run>
std::optional<int64_t> by_size(DType dtype, const Run& run) {
  constexpr int64_t kNone = 0;  // lies inside of every output that is not empty
  std::atomic<int64_t> outside{kNone};
  switch (dtype) {
    case DType::float64:
    case DType::int64: run(uint64_t(), &outside); break;
    case DType::float32:
    case DType::int32: run(uint32_t(), &outside); break;
    case DType::uint8:
    case DType::int8: run(uint8_t(), &outside); break;
    default: run(uint16_t(), &outside);
  }
  const int64_t found = outside.load();
  return found == kNone ? std::nullopt : std::optional(found);
}

}  // namespace

std::optional<int64_t> max_unpool(const UnpoolArguments& args) {
  return by_size(args.dtype, [&](auto element, auto* outside) { unpool_planes<decltype(element)>(args, outside); });
}
std::optional<int64_t> max_unpool_backward(const UnpoolArguments& args) {
  return by_size(args.dtype, [&](auto element, auto* outside) { gather_planes<decltype(element)>(args, outside); });
}

}  // namespace convext::cpu
