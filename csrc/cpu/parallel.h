// The only door to threads. parallel.cpp, the only file of the CPU kernels that includes torch, opens it onto
// at::parallel_for. A task's result must not depend on which thread runs it, nor on how tasks are grouped.
#pragma once
#include <cstdint>

namespace convext::cpu {

int max_threads();

// While one lives, what its thread calls runs there alone: max_threads() is 1, and tasks come one after the other.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  bool before_;
};

// body(data, begin, end, thread), as often as it takes: tasks [begin, end) on thread number `thread`, 0 <= thread <
// max_threads().
void parallel_ranges(int64_t tasks, void (*body)(void* data, int64_t begin, int64_t end, int thread), void* data);

// run(task, thread) for every task in [0, tasks).
template <typename Run>
void parallel_for(int64_t tasks, const Run& run) {
  auto body = [](void* data, int64_t begin, int64_t end, int thread) {
    const Run& r = *static_cast<const Run*>(data);
    for (int64_t task = begin; task < end; ++task) r(task, thread);
  };
  parallel_ranges(tasks, body, const_cast<Run*>(&run));
}

}  // namespace convext::cpu
