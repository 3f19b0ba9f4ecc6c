#include "parallel.h"

#include <ATen/Parallel.h>
#include <algorithm>
#include <atomic>
#include <new>
#include <utility>
#if defined(CONVEXT_STD_THREADS)
#include <thread>
#include <vector>
#endif

namespace convext::cpu {
namespace {

thread_local bool alone = false;

constexpr int64_t kMostShares = 128;  // of one call, and with them threads

// Tasks in equal shares. A thread takes those of its own one by one, then what others have left of theirs: cores are
// not equally fast, nor tasks equally long.
class Shares {
 public:
  Shares(int64_t tasks, int64_t count) : shares_(reinterpret_cast<Share*>(memory_)), count_(count) {
    for (int64_t i = 0; i < count; ++i) new (shares_ + i) Share{{tasks * i / count}, tasks * (i + 1) / count};
  }

  void work(int64_t own, void (*body)(void*, int64_t, int64_t, int), void* data, int thread) {
    for (int64_t i = 0; i < count_; ++i) {
      Share& share = shares_[(own + i) % count_];
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
        if (task < share.end) body(data, task, task + 1, thread);
      }
    }
  }

 private:
  struct alignas(64) Share {  // in a cache line of its own
    std::atomic<int64_t> next;
    int64_t end;
  };
  alignas(Share) char memory_[kMostShares * sizeof(Share)];  // of which `count` are there
  Share* shares_;
  int64_t count_;
};

}  // namespace

OneThread::OneThread() : before_(std::exchange(alone, true)) {}
OneThread::~OneThread() { alone = before_; }

int max_threads() { return alone ? 1 : at::get_num_threads(); }

void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t, int), void* data) {
  if (tasks <= 0) return;
  if (alone) return body(data, 0, tasks, 0);
  const int64_t threads = std::min({int64_t(max_threads()), tasks, kMostShares});
  if (threads == 1) return body(data, 0, tasks, at::get_thread_num());
  Shares shares(tasks, threads);
#if defined(CONVEXT_STD_THREADS)
  // threads whose start and end the thread sanitizer sees, which OpenMP's it does not
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread)
    others.emplace_back([&, thread] { shares.work(thread, body, data, thread); });
  shares.work(0, body, data, 0);
  for (std::thread& other : others) other.join();
#else
  at::parallel_for(0, threads, 1, [&](int64_t own, int64_t) { shares.work(own, body, data, at::get_thread_num()); });
#endif
}

}  // namespace convext::cpu
