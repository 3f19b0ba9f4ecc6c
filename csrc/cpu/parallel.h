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

// A range of tasks on a thread: body(data, begin, end, thread).
using TaskRange = void(void* data, int64_t begin, int64_t end, int thread);

// body(data, begin, end, thread), as often as it takes: tasks [begin, end) on thread number `thread`, 0 <= thread <
// max_threads().
void parallel_ranges(int64_t tasks, TaskRange* body, void* data);
void share_ranges(int64_t tasks, TaskRange* body, void* data);

template <typename Run>
void run_range(void* run, int64_t begin, int64_t end, int thread) {
  for (int64_t task = begin; task < end; ++task) (*static_cast<const Run*>(run))(task, thread);
}

// run(task, thread) for every task in [0, tasks).
template <typename Run>
void parallel_for(int64_t tasks, const Run& run) {
  parallel_ranges(tasks, run_range<Run>, const_cast<Run*>(&run));
}

// The same inside of a task, which is then cut into smaller ones: its thread takes them one by one, and those that have
// no task left take some. `run` must use what belongs to the thread it is told, where it writes for itself alone.
template <typename Run>
void share(int64_t tasks, const Run& run) {
  share_ranges(tasks, run_range<Run>, const_cast<Run*>(&run));
}

}  // namespace convext::cpu
