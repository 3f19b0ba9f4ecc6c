// Where the time of an algorithm goes, by named phases ("pack", "gemm", "transform"), for convext.profile(). A driver
// says
//
//   Phase phase("pack");
//   ... packs ...
//   phase.next("gemm");
//   ... multiplies ...          // the end of the scope ends the phase
//
// on whatever thread it runs. While nobody records, a Phase costs one relaxed load; while somebody does, two readings
// of the clock and an uncontended lock (about 0.1 us), so time panels and blocks, not tiles. Phases may nest: an outer
// one's time includes the inner one's. For drivers (.cpp); an .inl knows nothing of it.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace convext::cpu {

class Phase {
 public:
  // name: a literal, or text that lives as long as the program.
  explicit Phase(const char* name) {
    if (recording_.load(std::memory_order_relaxed)) start(name);
  }
  ~Phase() {
    if (name_ != nullptr) stop();
  }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;

  void next(const char* name) {
    if (name_ == nullptr) return;
    stop();
    start(name);
  }

 private:
  friend bool start_phases();
  friend std::vector<struct PhaseTime> stop_phases();
  void start(const char* name);
  void stop();

  inline static std::atomic<bool> recording_{false};
  const char* name_ = nullptr;  // null: not recorded
  int64_t begin_ = 0;
};

// The sum over all phases of a name that one thread went through.
struct PhaseTime {
  std::string name;
  int thread;  // 0, 1, ... in the order in which threads first went through a phase
  int64_t nanoseconds, calls;
};

// Begins recording, with nothing recorded; false if it had begun already. And ends it, giving what was recorded.
bool start_phases();
std::vector<PhaseTime> stop_phases();

}  // namespace convext::cpu
