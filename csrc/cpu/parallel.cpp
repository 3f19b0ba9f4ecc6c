#include "parallel.h"

#include <ATen/Parallel.h>
#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#if defined(CONVEXT_STD_THREADS)
#include <vector>
#endif

namespace convext::cpu {
namespace {

thread_local bool alone = false;

constexpr int64_t kMostShares = 128;  // of one call, and with them threads

// What a task hands out: whoever comes takes the next part. One after the other, from one thread.
class Offer {
 public:
  // Hands out [0, tasks), takes part, and returns when all are done.
  void run(int64_t tasks, TaskRange* body, void* data, int thread) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      body_ = body, data_ = data, next_ = 0, end_ = tasks;
    }
    open_.store(true, std::memory_order_relaxed);
    const Closing closing{*this};
    while (take(thread)) {}
  }

  // Whether there was something to take.
  bool help(int thread) { return open_.load(std::memory_order_relaxed) && take(thread); }

 private:
  // Nobody takes what is gone, also where a part ends in an exception.
  struct Closing {
    Offer& offer;
    ~Closing() {
      offer.open_.store(false, std::memory_order_relaxed);
      for (;; std::this_thread::yield()) {
        const std::lock_guard<std::mutex> lock(offer.mutex_);
        offer.end_ = 0;
        if (offer.running_ == 0) return;
      }
    }
  };
  struct Running {
    Offer& offer;
    ~Running() {
      const std::lock_guard<std::mutex> lock(offer.mutex_);
      --offer.running_;
    }
  };

  bool take(int thread) {
    int64_t part;
    TaskRange* body;
    void* data;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (next_ >= end_) {
        open_.store(false, std::memory_order_relaxed);
        return false;
      }
      part = next_++, body = body_, data = data_;
      ++running_;
    }
    const Running running{*this};
    body(data, part, part + 1, thread);
    return true;
  }

  std::mutex mutex_;
  std::atomic<bool> open_{false};  // a hint
  TaskRange* body_ = nullptr;
  void* data_ = nullptr;
  int64_t next_ = 0, end_ = 0, running_ = 0;
};

// The task that a thread is in.
struct Inside {
  bool task = false;
  Offer* offer = nullptr;  // of its share; null: nobody could help
  int thread = 0;
};
thread_local Inside inside;

class Entered {
 public:
  explicit Entered(const Inside& now) : before_(std::exchange(inside, now)) {}
  ~Entered() { inside = before_; }

 private:
  Inside before_;
};

// Tasks in equal shares. A thread takes those of its own one by one, then what others have left of theirs, then parts
// of the tasks they are in: cores are not equally fast, nor tasks equally long.
class Shares {
 public:
  Shares(int64_t tasks, int64_t count) : shares_(reinterpret_cast<Share*>(memory_)), count_(count) {
    for (int64_t i = 0; i < count; ++i) new (shares_ + i) Share{{tasks * i / count}, tasks * (i + 1) / count, {}};
  }
  ~Shares() {
    for (int64_t i = 0; i < count_; ++i) shares_[i].~Share();
  }
  Shares(const Shares&) = delete;
  Shares& operator=(const Shares&) = delete;

  void work(int64_t own, TaskRange* body, void* data, int thread) {
    take_tasks(own, body, data, thread);
    const Entered entered({true, nullptr, thread});
    while (working_.load(std::memory_order_acquire) > 0) {
      bool helped = false;
      for (int64_t i = 1; i < count_; ++i) helped = shares_[(own + i) % count_].offer.help(thread) || helped;
      if (!helped) std::this_thread::yield();
    }
  }

 private:
  struct alignas(64) Share {  // in cache lines of its own
    std::atomic<int64_t> next;
    int64_t end;
    Offer offer;
  };
  struct Working {
    std::atomic<int64_t>& count;
    explicit Working(std::atomic<int64_t>& all) : count(all) { count.fetch_add(1, std::memory_order_relaxed); }
    ~Working() { count.fetch_sub(1, std::memory_order_release); }
  };

  void take_tasks(int64_t own, TaskRange* body, void* data, int thread) {
    const Working working(working_);
    const Entered entered({true, &shares_[own].offer, thread});
    for (int64_t i = 0; i < count_; ++i) {
      Share& share = shares_[(own + i) % count_];
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
        if (task < share.end) body(data, task, task + 1, thread);
      }
    }
  }

  alignas(Share) char memory_[kMostShares * sizeof(Share)];  // of which `count` are there
  Share* shares_;
  int64_t count_;
  std::atomic<int64_t> working_{0};  // threads that have tasks
};

void run_here(int64_t tasks, TaskRange* body, void* data, int thread) {
  const Entered entered({true, nullptr, thread});
  body(data, 0, tasks, thread);
}

}  // namespace

OneThread::OneThread() : before_(std::exchange(alone, true)) {}
OneThread::~OneThread() { alone = before_; }

int max_threads() { return alone ? 1 : at::get_num_threads(); }

void parallel_ranges(int64_t tasks, TaskRange* body, void* data) {
  if (tasks <= 0) return;
  if (alone) return run_here(tasks, body, data, 0);
  const int64_t threads = std::min({int64_t(max_threads()), tasks, kMostShares});
  if (threads == 1) return run_here(tasks, body, data, at::get_thread_num());
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

void share_ranges(int64_t tasks, TaskRange* body, void* data) {
  const Inside here = inside;
  if (!here.task) return parallel_ranges(tasks, body, data);
  if (here.offer == nullptr || tasks <= 1) return run_here(tasks, body, data, here.thread);
  const Entered entered({true, nullptr, here.thread});
  here.offer->run(tasks, body, data, here.thread);
}

}  // namespace convext::cpu
