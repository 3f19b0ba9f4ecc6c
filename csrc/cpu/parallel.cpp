#include "parallel.h"

#include <ATen/Parallel.h>
#include <utility>
#if defined(CONVEXT_STD_THREADS)
#include <algorithm>
#include <thread>
#include <vector>
#endif

namespace convext::cpu {
namespace {

thread_local bool alone = false;

}  // namespace

OneThread::OneThread() : before_(std::exchange(alone, true)) {}
OneThread::~OneThread() { alone = before_; }

int max_threads() { return alone ? 1 : at::get_num_threads(); }

#if defined(CONVEXT_STD_THREADS)

// The same shares on threads whose start and end the thread sanitizer sees, which OpenMP's it does not.
void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t, int), void* data) {
  if (tasks <= 0) return;
  if (alone) return body(data, 0, tasks, 0);
  const int64_t threads = std::min<int64_t>(max_threads(), tasks), share = (tasks + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int thread = 1; thread * share < tasks; ++thread)
    others.emplace_back([=] { body(data, thread * share, std::min<int64_t>((thread + 1) * share, tasks), thread); });
  body(data, 0, std::min(share, tasks), 0);
  for (std::thread& other : others) other.join();
}

#else

void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t, int), void* data) {
  if (alone) return body(data, 0, tasks, 0);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { body(data, begin, end, at::get_thread_num()); });
}

#endif

}  // namespace convext::cpu
