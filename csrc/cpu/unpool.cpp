// Max unpooling: see other_pools.h. Numbers are moved, not looked at, so elements are taken by their size. A task is a
// plane of a contiguous tensor, or a block of channels of a channels_last image, cleared and filled while it is near.
#include <atomic>
#include <cstring>

#include "../other_pools.h"
#include "parallel.h"

namespace convext::cpu {
namespace {

constexpr int64_t kChannels = 64;  // of a task, channels_last

template <typename E>
void unpool_planes(const UnpoolArguments& args, std::atomic<int64_t>* outside) {
  const bool last = args.layout == Layout::channels_last;
  const int64_t lanes = last ? kChannels : 1, blocks = ceil_div(args.channels, lanes);
  const int64_t step = last ? args.channels : 1;
  parallel_for(args.batch * blocks, [&](int64_t task, int) {
    const int64_t image = task / blocks, first = task % blocks * lanes;
    const int64_t count = first + lanes < args.channels ? lanes : args.channels - first;
    const int64_t plane = image * args.channels + first;
    const int64_t in = last ? image * args.channels * args.places_in + first : plane * args.places_in;
    const int64_t out = last ? image * args.channels * args.places_out + first : plane * args.places_out;
    const E* x = static_cast<const E*>(args.input) + in;
    const int64_t* indices = args.indices + in;
    E* y = static_cast<E*>(args.output) + out;
    if (step == count)
      std::memset(y, 0, sizeof(E) * args.places_out * count);
    else
      for (int64_t i = 0; i < args.places_out; ++i) std::memset(y + i * step, 0, sizeof(E) * count);
    for (int64_t i = 0; i < args.places_in; ++i)
      for (int64_t c = 0; c < count; ++c) {
        const int64_t at = indices[i * step + c];
        if (uint64_t(at) < uint64_t(args.places_out))
          y[at * step + c] = x[i * step + c];
        else
          outside->store(at, std::memory_order_relaxed);
      }
  });
}

}  // namespace

std::optional<int64_t> max_unpool(const UnpoolArguments& args) {
  constexpr int64_t kNone = 0;  // lies inside of every output that is not empty
  std::atomic<int64_t> outside{kNone};
  switch (args.dtype) {
    case DType::float64:
    case DType::int64: unpool_planes<uint64_t>(args, &outside); break;
    case DType::float32:
    case DType::int32: unpool_planes<uint32_t>(args, &outside); break;
    case DType::uint8:
    case DType::int8: unpool_planes<uint8_t>(args, &outside); break;
    default: unpool_planes<uint16_t>(args, &outside);
  }
  const int64_t found = outside.load();
  return found == kNone ? std::nullopt : std::optional(found);
}

}  // namespace convext::cpu
