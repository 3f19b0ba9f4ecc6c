#include "parallel.h"

#include <ATen/Parallel.h>

namespace convext::cpu {

int max_threads() { return at::get_num_threads(); }

void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t, int), void* data) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { body(data, begin, end, at::get_thread_num()); });
}

}  // namespace convext::cpu
