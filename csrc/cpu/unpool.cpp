// Max unpooling: see other_pools.h. Numbers are moved, not looked at, so elements are taken by their size. A task is a
// plane of a contiguous tensor, or a block of channels of a channels_last image. Indices mostly grow with the places of
// the input, so the output is cleared a block at a time, just before the first number is put there, and written to
// memory once; whatever the indices, a place is cleared before anything is put behind it.
//
// Where there are more threads than tasks, a task is some rows of the input and as large a part of the output: right
// where windows did not overlap. A number that belongs into another part shows that they did, and all is done again by
// fewer channels a task, which is slower: threads then share pages and clear a few cache lines at a time.
//
// Traffic: input, indices and output once; the gradient, which reads where the output was written, likewise.
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

// Some channels of an image, or of a part of it: their numbers are `step` apart from place to place.
template <typename E>
struct Cleared {
  E* y;
  int64_t step, count, first, end;  // the part's places
  int64_t until = first;            // places before `until` are clear, or have been written

  // Makes place `at` one of them.
  void reach(int64_t at) {
    const int64_t block = ceil_div(kCleared, int64_t(sizeof(E)) * count), wanted = (at / block + 1) * block;
    const int64_t last = wanted < end ? wanted : end;
    if (step == count)
      std::memset(y + until * count, 0, sizeof(E) * (last - until) * count);
    else
      for (int64_t i = until; i < last; ++i) std::memset(y + i * step, 0, sizeof(E) * count);
    until = last;
  }
};

// The greatest index that is outside, negative ones above all others: the same one whichever thread comes first.
void keep_outside(std::atomic<int64_t>* outside, int64_t at) {
  int64_t seen = outside->load(std::memory_order_relaxed);
  while (uint64_t(at) > uint64_t(seen) && !outside->compare_exchange_weak(seen, at, std::memory_order_relaxed)) {}
}

struct Found {
  std::atomic<int64_t>* outside;  // an index that is outside of the output
  std::atomic<bool> crossed;      // whether one is in another part than its number
};

// x: of the places [from, until) that are put in the part. kPlane: of one channel, its places side by side; kAll: the
// part is all of it.
template <bool kPlane, bool kAll, typename E>
void unpool(const E* x, const int64_t* indices, int64_t from, int64_t until, int64_t places_out, Cleared<E> out,
            Found* found) {
  const int64_t step = kPlane ? 1 : out.step, count = kPlane ? 1 : out.count, first = kAll ? 0 : out.first;
  int64_t clear = 0;  // so many places
  for (int64_t i = from; i < until; ++i)
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = indices[i * step + c];
      if (uint64_t(at - first) >= uint64_t(clear)) {
        if (uint64_t(at) >= uint64_t(places_out)) {
          keep_outside(found->outside, at);
          continue;
        }
        if (!kAll) {
          if (at < first || at >= out.end) found->crossed.store(true, std::memory_order_relaxed);
          if (found->crossed.load(std::memory_order_relaxed)) return;
        }
        out.reach(at);
        clear = out.until - first;
      }
      out.y[at * step + c] = x[i * step + c];
    }
  if (out.until < out.end) out.reach(out.end - 1);
}

// A task: `lanes` channels of one of the parts, of as many rows each, of an image. False, and to be done again, where
// numbers go from one part to another.
template <typename E>
bool unpool_parts(const UnpoolArguments& args, int64_t lanes, int64_t parts, std::atomic<int64_t>* outside) {
  const bool last = args.layout == Layout::channels_last;
  const int64_t blocks = ceil_div(args.channels, lanes), step = last ? args.channels : 1;
  const int64_t rows = parts == 1 ? 1 : args.places_in / args.row;
  const int64_t row_in = args.places_in / rows, row_out = args.places_out / rows;
  Found found = {outside, {false}};
  parallel_for(args.batch * blocks * parts, [&](int64_t task, int) {
    if (found.crossed.load(std::memory_order_relaxed)) return;
    const int64_t part = task % parts, image = task / parts / blocks, first = task / parts % blocks * lanes;
    const int64_t count = first + lanes < args.channels ? lanes : args.channels - first;
    const int64_t begin = part * rows / parts, end = (part + 1) * rows / parts;
    const int64_t plane = image * args.channels + first;
    const int64_t in = last ? image * args.channels * args.places_in + first : plane * args.places_in;
    const int64_t out = last ? image * args.channels * args.places_out + first : plane * args.places_out;
    const E* x = static_cast<const E*>(args.input) + in;
    const int64_t* indices = args.indices + in;
    const Cleared<E> to = {static_cast<E*>(args.output) + out, step, count, begin * row_out, end * row_out};
    const auto run = parts == 1 ? (step == 1 ? unpool<true, true, E> : unpool<false, true, E>)
                                : (step == 1 ? unpool<true, false, E> : unpool<false, false, E>);
    run(x, indices, begin * row_in, end * row_in, args.places_out, to, &found);
  });
  return !found.crossed;
}

template <typename E>
void unpool_planes(const UnpoolArguments& args, std::atomic<int64_t>* outside) {
  const bool last = args.layout == Layout::channels_last;
  int64_t lanes = last ? kChannels : 1;
  const int64_t threads = max_threads(), tasks = args.batch * ceil_div(args.channels, lanes);
  const int64_t rows = args.row == 0 ? 1 : args.places_in / args.row, wanted = ceil_div(threads, tasks);
  const int64_t parts = wanted < rows ? wanted : rows;
  if (parts > 1 && args.places_out % rows == 0 && unpool_parts<E>(args, lanes, parts, outside)) return;
  while (lanes > kFewChannels && args.batch * ceil_div(args.channels, lanes) < threads) lanes /= 2;
  unpool_parts<E>(args, lanes, 1, outside);
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
          dx[i * count + c] = 0, keep_outside(outside, at);
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
