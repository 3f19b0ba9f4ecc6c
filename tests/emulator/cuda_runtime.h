// A stand-in for <cuda_runtime.h> that runs CUDA kernels on the CPU, so that the .cu files of csrc/cuda, compiled by
// g++ as C++, can be tested on machines without a GPU.
//
// A grid runs block by block. Each CUDA thread of a block is a fiber; __syncthreads() parks it until all the others of
// its block have arrived. A fiber whose thread ends takes up the next thread, so that kernels without barriers run in a
// single fiber and never switch. What a GPU would only sometimes show is made to show:
//   * between barriers, threads run one after another, first to last or last to first (order, or EMULATOR_ORDER=forward
//     | reverse in the environment): where a barrier is missing, one of the two reads what is not yet written;
//   * shared memory, static and dynamic, is filled with 0xff (NaN, -1) at the start of every block; past the end of the
//     dynamic lies a page that faults;
//   * a barrier that not all threads of a block reach, or that they reach at different places of the source, ends the
//     program with a message and status 3;
//   * a launch that a GPU would refuse (threads, grid, shared memory) is refused.
// What the lanes of a warp do together (shuffles, matrix fragments) is in warp.h and tensor_core.h, copies to shared
// memory that have to be waited for in async_copy.h. Lanes that have met run on before other warps do: warps are as far
// apart as barriers let them be.
// Static __shared__ variables are thread-local ones here, because the loader can tell where those lie. Switches are
// made by _setjmp and _longjmp once a fiber has started, as swapcontext makes a system call each time: compile with
// -U_FORTIFY_SOURCE. One host thread only; Linux only.
#pragma once
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __thread
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define threadIdx emulator::thread_idx
#define blockIdx emulator::block_idx
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Fibers take turns, so a plain step is an atomic one.
inline long long atomicMax(long long* at, long long value) {
  const long long before = *at;
  if (value > before) *at = value;
  return before;
}

namespace emulator {

enum class Order { forward, reverse };
inline Order order = [] {
  const char* text = std::getenv("EMULATOR_ORDER");
  return text != nullptr && std::strcmp(text, "reverse") == 0 ? Order::reverse : Order::forward;
}();

constexpr size_t kStackBytes = 64 * 1024, kMaxSharedBytes = 227 * 1024;
inline uint3 thread_idx, block_idx;
inline dim3 block_dim, grid_dim;
inline cudaError_t last_error = cudaSuccess;
inline int64_t barriers = 0, blocks = 0;  // passed and run so far
struct Bytes {
  void* data = nullptr;
  size_t size = 0;
};
inline Bytes dynamic_bytes;

// What the address sanitizer is told of stacks that are left and entered.
struct Stack {
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake = nullptr;
};
#if defined(__SANITIZE_ADDRESS__)
inline void leave_stack(Stack& left, const Stack& next) {
  __sanitizer_start_switch_fiber(&left.fake, next.bottom, next.size);
}
inline void enter_stack(const Stack& entered, Stack* left) {
  __sanitizer_finish_switch_fiber(entered.fake, left != nullptr ? &left->bottom : nullptr,
                                  left != nullptr ? &left->size : nullptr);
}
#else
inline void leave_stack(Stack&, const Stack&) {}
inline void enter_stack(const Stack&, Stack*) {}
#endif

struct Fiber {
  Stack own;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t start;
  jmp_buf resume;
  bool started = false, waiting = false, with_lanes = false;  // waits for all of its block, or lanes of its warp
  unsigned thread = 0;
  const char* file = nullptr;  // where it waits
  int line = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle, parked;
  std::deque<Fiber*> ready;  // have met those that they waited for
  Fiber* current = nullptr;
  jmp_buf scheduler;
  Stack main;  // the scheduler's
  unsigned threads = 0, begun = 0;
  void (*body)(void*) = nullptr;
  void* data = nullptr;
};
inline Block block;

inline void become(unsigned thread) {
  block.current->thread = thread;
  thread_idx.x = thread % block_dim.x;
  thread_idx.y = thread / block_dim.x % block_dim.y;
  thread_idx.z = thread / (block_dim.x * block_dim.y);
}

inline void leave() {
  Fiber* self = block.current;
  if (_setjmp(self->resume) == 0) {
    leave_stack(self->own, block.main);
    _longjmp(block.scheduler, 1);
  }
  enter_stack(block.current->own, nullptr);
}

inline void fiber_main() {
  enter_stack(Stack(), &block.main);
  for (;;) {
    while (block.begun < block.threads) {
      const unsigned i = block.begun++;
      become(order == Order::forward ? i : block.threads - 1 - i);
      block.body(block.data);
    }
    block.current->waiting = false;
    leave();
  }
}

inline void park(bool with_lanes, const char* file, int line) {
  Fiber* self = block.current;
  self->waiting = true;
  self->with_lanes = with_lanes;
  self->file = file;
  self->line = line;
  leave();
  become(self->thread);
}

inline void barrier(const char* file, int line) { park(false, file, line); }

inline void enter(Fiber* fiber) {
  block.current = fiber;
  if (_setjmp(block.scheduler) != 0) {
    enter_stack(block.main, nullptr);
    return;
  }
  fiber->own = {fiber->stack.get(), kStackBytes, fiber->own.fake};
  leave_stack(block.main, fiber->own);
  if (fiber->started) _longjmp(fiber->resume, 1);
  fiber->started = true;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = fiber->stack.get();
  fiber->start.uc_stack.ss_size = kStackBytes;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, fiber_main, 0);
  setcontext(&fiber->start);
}

[[noreturn]] inline void fail(const char* what, const Fiber* fiber) {
  std::fflush(stdout);
  std::fprintf(stderr, "emulator: %s, thread %u at %s:%d\n", what, fiber->thread, fiber->file, fiber->line);
  std::_Exit(3);
}

// The thread-local variables of the main program: the static __shared__ ones.
inline Bytes static_shared() {
  Bytes bytes;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS)
            *static_cast<Bytes*>(found) = {info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz};
        return 1;  // the main program comes first
      },
      &bytes);
  return bytes;
}

inline bool in_shared(const void* from, size_t bytes) {
  static const Bytes statics = static_shared();
  const auto within = [&](const void* data, size_t size) {
    const auto first = reinterpret_cast<uintptr_t>(data), at = reinterpret_cast<uintptr_t>(from);
    return at >= first && at + bytes <= first + size;
  };
  return within(dynamic_bytes.data, dynamic_bytes.size) || within(statics.data, statics.size);
}

inline void begin_warps();         // warp.h
inline const Fiber* lost_lane();   // one that still waits for lanes of its warp
inline void begin_async_copies();  // async_copy.h

// Lets fibers run until each has ended or waits.
inline void run_fibers() {
  for (;;) {
    Fiber* fiber;
    if (!block.ready.empty()) {
      fiber = block.ready.front();
      block.ready.pop_front();
    } else if (block.begun < block.threads) {
      if (block.idle.empty()) {
        block.fibers.push_back(std::make_unique<Fiber>());
        block.idle.push_back(block.fibers.back().get());
      }
      fiber = block.idle.back();
      block.idle.pop_back();
    } else {
      return;
    }
    enter(fiber);
    if (!fiber->waiting)
      block.idle.push_back(fiber);
    else if (!fiber->with_lanes)
      block.parked.push_back(fiber);
  }
}

inline void run_block() {
  static const Bytes shared = static_shared();
  if (shared.size > 0) std::memset(shared.data, 0xff, shared.size);
  if (dynamic_bytes.size > 0) std::memset(dynamic_bytes.data, 0xff, dynamic_bytes.size);
  ++blocks;
  block.begun = 0;
  begin_warps();
  begin_async_copies();
  for (;;) {
    run_fibers();
    if (const Fiber* lane = lost_lane()) fail("a step of a warp that other lanes never reach", lane);
    if (block.parked.empty()) return;
    const Fiber* first = block.parked.front();
    if (block.parked.size() != block.threads) fail("a barrier that other threads of the block never reach", first);
    for (const Fiber* fiber : block.parked)
      if (fiber->line != first->line || std::strcmp(fiber->file, first->file) != 0)
        fail("divergent barriers within a block", fiber);
    ++barriers;
    block.ready.assign(block.parked.begin(), block.parked.end());
    block.parked.clear();
  }
}

// Dynamic shared memory ends, rounded up to 16 bytes, where a page that faults begins.
inline Bytes guarded(size_t size) {
  static char* const end = [] {
    constexpr size_t kPage = 4096, kRoom = (kMaxSharedBytes + kPage - 1) / kPage * kPage;
    char* const base =
        static_cast<char*>(mmap(nullptr, kRoom + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED || mprotect(base + kRoom, kPage, PROT_NONE) != 0) std::abort();
    return base + kRoom;
  }();
  return {end - (size + 15) / 16 * 16, size};
}
inline void* dynamic_shared() { return dynamic_bytes.data; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t,
            Arguments... arguments) {
  const uint64_t count = uint64_t(threads.x) * threads.y * threads.z;
  if (count == 0 || count > 1024 || threads.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX ||
      grid.y > 65535 || grid.z > 65535) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (shared_bytes > kMaxSharedBytes) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  auto body = [&] { kernel(arguments...); };
  block.body = [](void* data) { (*static_cast<decltype(body)*>(data))(); };
  block.data = &body;
  block.threads = unsigned(count);
  dynamic_bytes = guarded(shared_bytes);
  block_dim = threads;
  grid_dim = grid;
  for (block_idx.z = 0; block_idx.z < grid.z; ++block_idx.z)
    for (block_idx.y = 0; block_idx.y < grid.y; ++block_idx.y)
      for (block_idx.x = 0; block_idx.x < grid.x; ++block_idx.x) run_block();
}

}  // namespace emulator

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess             ? "no error"
         : error == cudaErrorInvalidValue ? "invalid argument"
                                          : "invalid configuration argument";
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  if (bytes > int(emulator::kMaxSharedBytes)) emulator::last_error = cudaErrorInvalidValue;
  return emulator::last_error;
}

#include "async_copy.h"
#include "tensor_core.h"
#include "warp.h"
