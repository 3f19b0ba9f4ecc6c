// What the programs that check CUDA kernels on the CPU share: buffers that end at a page that faults, filling,
// comparing, counting, and what is said at the end.
#pragma once
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <map>
#include <random>
#include <sstream>

#include "../../csrc/algorithms.h"
#include "../../csrc/cpu/dtype.h"
#include "../../csrc/cpu/parallel.h"

namespace convext::cpu {
int max_threads() { return 1; }
void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t, int), void* data) { body(data, 0, tasks, 0); }
}  // namespace convext::cpu

namespace {

using namespace convext;

std::string running;  // what a fault is blamed on
int64_t comparisons = 0, mismatches = 0;
std::map<std::string, int64_t> refused;

void on_fault(int) {
  const std::string text = "access out of bounds: " + running + "\n";
  if (write(1, text.data(), text.size()) < 0) _exit(5);
  _exit(4);
}

// Bytes that end where a page that cannot be touched begins, or `spare` before; another lies before their first page.
class Buffer {
 public:
  Buffer(int64_t size, int64_t alignment, int64_t spare = 0) : size_(size) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    mapped_ = (size + spare + alignment + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    data_ = base_ + (mapped_ - page - size - spare) / alignment * alignment;
    inner_ = base_ + page;
    inner_size_ = mapped_ - 2 * page;
    std::memset(inner_, kAround, inner_size_);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { munmap(base_, mapped_); }
  void* data() { return data_; }
  int64_t size() const { return size_; }
  void fill(int byte) { std::memset(data_, byte, size_); }
  bool surroundings_intact() const {
    const auto intact = [](const char* from, const char* to) {
      return std::all_of(from, to, [](char c) { return static_cast<unsigned char>(c) == kAround; });
    };
    return intact(inner_, data_) && intact(data_ + size_, inner_ + inner_size_);
  }

 private:
  static constexpr unsigned char kAround = 0xc3;
  char *base_, *data_, *inner_;
  int64_t size_, mapped_, inner_size_;
};

int64_t bytes_of(DType dtype) {
  return cpu::dispatch_all(dtype, [](auto type) -> int64_t { return sizeof(typename decltype(type)::type); });
}

// Fills with integers from -4 to 4 (0 to 8 where there is no sign); special: some NaN and -infinity.
template <typename T>
void fill_integers(Buffer& buffer, std::mt19937& random, bool special) {
  T* data = static_cast<T*>(buffer.data());
  for (int64_t i = 0; i < buffer.size() / int64_t(sizeof(T)); ++i) {
    const int value = int(random() % 9) - 4, kind = special ? int(random() % 8) : 7;
    if constexpr (std::is_integral_v<T>) {
      data[i] = T(std::is_signed_v<T> ? value : value + 4);
    } else {
      using A = cpu::Accumulate<T>;
      const A number = kind == 0   ? std::numeric_limits<A>::quiet_NaN()
                       : kind <= 2 ? -std::numeric_limits<A>::infinity()
                                   : A(value);
      data[i] = cpu::from_accumulate<T>(number);
    }
  }
}

template <typename T>
void fill_reals(Buffer& buffer, std::mt19937& random) {
  std::normal_distribution<float> normal;
  T* data = static_cast<T*>(buffer.data());
  for (int64_t i = 0; i < buffer.size() / int64_t(sizeof(T)); ++i)
    data[i] = cpu::from_accumulate<T>(cpu::Accumulate<T>(normal(random)));
}

template <typename T>
bool same(T a, T b) {
  const auto x = cpu::to_accumulate(a), y = cpu::to_accumulate(b);
  return x == y || (x != x && y != y);
}

// nearest: the results of winograd, which lie so near integers that rounding gives the exact ones.
template <typename T>
bool near(T a, T b) {
  const auto x = cpu::to_accumulate(a), y = cpu::to_accumulate(b);
  return std::round(x) == y && std::abs(x - y) <= (sizeof(x) == 8 ? 1e-9 : 0.02);
}

template <typename T>
void compare(Buffer& got, Buffer& expected, bool nearest = false) {
  ++comparisons;
  const T *a = static_cast<const T*>(got.data()), *b = static_cast<const T*>(expected.data());
  const int64_t count = got.size() / int64_t(sizeof(T));
  int64_t wrong = 0, first = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!(nearest ? near(a[i], b[i]) : same(a[i], b[i])) && wrong++ == 0) first = i;
  if (wrong > 0) {
    ++mismatches;
    std::cout << "mismatch: " << running << ": " << wrong << " of " << count << " elements, first " << first << ": "
              << double(cpu::to_accumulate(a[first])) << " instead of " << double(cpu::to_accumulate(b[first])) << "\n";
  }
}

void expect_intact(const Buffer& buffer, const char* what) {
  if (buffer.surroundings_intact()) return;
  ++mismatches;
  std::cout << "written outside of " << what << ": " << running << "\n";
}

constexpr emulator::Order kOrders[] = {emulator::Order::forward, emulator::Order::reverse};
const char* name_of(emulator::Order order) { return order == emulator::Order::forward ? "forward" : "reverse"; }

struct Reader {
  std::istringstream line;
  int64_t next() {
    int64_t value;
    if (!(line >> value)) {
      std::cerr << "bad problem line\n";
      std::exit(2);
    }
    return value;
  }
  void next3(int64_t* to) {
    for (int i = 0; i < kMaxSpatial; ++i) to[i] = next();
  }
};

void catch_faults() {
  static char alternate[1 << 16];
  stack_t stack = {};
  stack.ss_sp = alternate, stack.ss_size = sizeof(alternate);
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_handler = on_fault;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  sigaction(SIGILL, &action, nullptr);  // the undefined-behaviour sanitizer's trap
}

// The last words, and the exit status.
int report() {
  std::cout << "comparisons " << comparisons << "\nmismatches " << mismatches << "\nbarriers " << emulator::barriers
            << "\n";
  for (const auto& [name, times] : refused) std::cout << "refused " << name << " " << times << "\n";
  return mismatches > 0;
}

}  // namespace
