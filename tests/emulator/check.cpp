// Runs the CUDA algorithms on the CPU stand-in and compares them with the naive ones of csrc/cpu.
//
//   check MODE < problems      MODE: exact | bits
//
// Problems are lines, written by tests/test_cuda_emulator.py, all numbers, spatial ones in threes (d h w):
//   conv  dtype layout mode flip batch channels outputs groups  input kernel stride dilation before after
//   pool  dtype layout special batch channels  input kernel stride dilation before after  ceil include_pad divisor
//
// exact: every algorithm, direction and thread order against the naive CPU one, on small integers. Outputs hold NaN
// beforehand and workspaces 0xa5; every buffer ends at a page that faults. bits: images of random numbers must come out
// the same alone and in company. Prints a line per mismatch and, last, how many comparisons were made and how many
// algorithms refused a problem, by name; the exit status is 1 if anything was wrong, 3 for a barrier fault (see
// cuda_runtime.h), 4 for an access out of bounds.
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

// Bytes that end where a page that cannot be touched begins; another lies before their first page.
class Buffer {
 public:
  Buffer(int64_t size, int64_t alignment) : size_(size) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    mapped_ = (size + alignment + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    data_ = base_ + (mapped_ - page - size) / alignment * alignment;
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

template <typename T>
void compare(Buffer& got, Buffer& expected) {
  ++comparisons;
  const T *a = static_cast<const T*>(got.data()), *b = static_cast<const T*>(expected.data());
  const int64_t count = got.size() / int64_t(sizeof(T));
  int64_t wrong = 0, first = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!same(a[i], b[i]) && wrong++ == 0) first = i;
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

ConvGeometry read_conv(Reader& reader) {
  ConvGeometry g;
  g.layout = static_cast<Layout>(reader.next());
  g.padding_mode = static_cast<PaddingMode>(reader.next());
  g.flip_kernel = reader.next() != 0;
  g.batch = reader.next(), g.in_channels = reader.next(), g.out_channels = reader.next(), g.groups = reader.next();
  for (int64_t* triple : {g.input, g.kernel, g.stride, g.dilation, g.pad_before, g.pad_after}) reader.next3(triple);
  g.spatial = 3;
  for (int i = 0; i < kMaxSpatial; ++i)
    g.output[i] =
        conv_output_size(g.input[i], g.kernel[i], g.stride[i], g.dilation[i], g.pad_before[i], g.pad_after[i]);
  return g;
}

const ConvAlgorithm* const kConvs[] = {&cuda::conv_naive, &cuda::conv_im2col, &cuda::conv_direct};
const PoolAlgorithm* const kPools[] = {&cuda::pool_naive, &cuda::pool_direct};

// The tensors of a convolution and the three things to compute from them.
template <typename T>
struct ConvProblem {
  static constexpr Direction kDirections[] = {Direction::forward, Direction::backward_input,
                                              Direction::backward_weight};
  ConvArguments args;
  Buffer x, w, bias, dy;

  ConvProblem(const ConvGeometry& g, DType dtype)
      : x(g.input_elements() * sizeof(T), sizeof(T)),
        w(g.weight_elements() * sizeof(T), sizeof(T)),
        bias(g.out_channels * sizeof(T), sizeof(T)),
        dy(g.output_elements() * sizeof(T), sizeof(T)) {
    args.geometry = g;
    args.dtype = dtype;
    args.input = x.data(), args.weight = w.data(), args.bias = bias.data(), args.grad_output = dy.data();
  }
  static int64_t result_bytes(const ConvGeometry& g, Direction direction) {
    const int64_t elements = direction == Direction::forward          ? g.output_elements()
                             : direction == Direction::backward_input ? g.input_elements()
                                                                      : g.weight_elements();
    return elements * sizeof(T);
  }
  void run(const ConvAlgorithm& algorithm, Direction direction, Buffer& result) {
    Buffer workspace(algorithm.workspace_bytes(args.geometry, args.dtype, direction), 64);
    workspace.fill(0xa5);
    result.fill(0xff);
    args.workspace = workspace.data();
    args.output = result.data();
    const auto f = direction == Direction::forward          ? algorithm.forward
                   : direction == Direction::backward_input ? algorithm.backward_input
                                                            : algorithm.backward_weight;
    f(args);
    expect_intact(workspace, "the workspace");
    expect_intact(result, "the output");
  }
};

template <typename T>
void check_conv_exact(const ConvGeometry& g, DType dtype, const std::string& line) {
  std::mt19937 random(7);
  ConvProblem<T> problem(g, dtype);
  for (Buffer* buffer : {&problem.x, &problem.w, &problem.bias, &problem.dy}) fill_integers<T>(*buffer, random, false);
  if (g.batch % 2 == 0) problem.args.bias = nullptr;
  for (Direction direction : problem.kDirections) {
    Buffer expected(problem.result_bytes(g, direction), sizeof(T)), got(expected.size(), sizeof(T));
    problem.run(cpu::conv_naive, direction, expected);
    for (const ConvAlgorithm* algorithm : kConvs) {
      if (algorithm->unsupported(g, dtype, direction) != nullptr) {
        ++refused[algorithm->name];
        continue;
      }
      for (emulator::Order order : kOrders) {
        emulator::order = order;
        running = std::string(algorithm->name) + " direction " + std::to_string(int(direction)) + " threads " +
                  name_of(order) + ": " + line;
        problem.run(*algorithm, direction, got);
        compare<T>(got, expected);
      }
    }
  }
}

template <typename T>
void check_conv_bits(const ConvGeometry& g, DType dtype, const std::string& line) {
  std::mt19937 random(7);
  ConvProblem<T> all(g, dtype);
  for (Buffer* buffer : {&all.x, &all.w, &all.bias, &all.dy}) fill_reals<T>(*buffer, random);
  ConvGeometry single = g;
  single.batch = 1;
  for (const ConvAlgorithm* algorithm : kConvs) {
    if (algorithm->unsupported(g, dtype, Direction::forward) != nullptr) {
      ++refused[algorithm->name];
      continue;
    }
    for (Direction direction : {Direction::forward, Direction::backward_input}) {
      running = std::string(algorithm->name) + " alone, direction " + std::to_string(int(direction)) + ": " + line;
      Buffer together(all.result_bytes(g, direction), sizeof(T));
      all.run(*algorithm, direction, together);
      for (int64_t n = 0; n < g.batch; ++n) {
        ConvProblem<T> one(single, dtype);
        std::memcpy(one.x.data(), static_cast<char*>(all.x.data()) + n * one.x.size(), one.x.size());
        std::memcpy(one.dy.data(), static_cast<char*>(all.dy.data()) + n * one.dy.size(), one.dy.size());
        one.args.weight = all.w.data(), one.args.bias = all.bias.data();
        Buffer alone(one.result_bytes(single, direction), sizeof(T)), part(alone.size(), sizeof(T));
        one.run(*algorithm, direction, alone);
        std::memcpy(part.data(), static_cast<char*>(together.data()) + n * part.size(), part.size());
        compare<T>(alone, part);
      }
    }
  }
}

template <typename T, typename P>
void check_pool_exact(const PoolGeometry& g, DType dtype, bool special, const std::string& line) {
  std::mt19937 random(7);
  const auto buffer = [](int64_t elements, size_t size) {
    return std::make_unique<Buffer>(elements * int64_t(size), int64_t(size));
  };
  const int64_t in = g.input_elements(), out = g.output_elements();
  auto x = buffer(in, sizeof(T)), dy = buffer(out, sizeof(T));
  fill_integers<T>(*x, random, special);
  fill_integers<T>(*dy, random, false);
  auto y = buffer(out, sizeof(T)), y_expected = buffer(out, sizeof(T)), places = buffer(out, sizeof(P)),
       places_expected = buffer(out, sizeof(P)), dx = buffer(in, sizeof(T)), dx_expected = buffer(in, sizeof(T)),
       indices = buffer(out, 8), indices_expected = buffer(out, 8);

  PoolArguments args;
  args.geometry = g;
  args.dtype = dtype;
  const auto run = [&](void (*f)(const PoolArguments&), Buffer& result, Buffer* places_out, bool backward) {
    result.fill(0xff);
    if (places_out != nullptr) places_out->fill(0xff);
    args.input = x->data(), args.grad_output = backward ? dy->data() : nullptr;
    args.places = places_expected->data(), args.places_out = places_out != nullptr ? places_out->data() : nullptr;
    args.output = result.data();
    f(args);
    expect_intact(result, "the output");
    if (places_out != nullptr) expect_intact(*places_out, "the places");
  };
  constexpr bool kFloating = !std::is_integral_v<T>;
  for (const PoolAlgorithm* algorithm : kPools) {
    if (algorithm->unsupported(g, dtype) != nullptr) {
      ++refused[algorithm->name];
      continue;
    }
    for (emulator::Order order : kOrders) {
      emulator::order = order;
      const auto begin = [&](const char* what) {
        running = std::string(algorithm->name) + " " + what + " threads " + name_of(order) + ": " + line;
      };
      begin("max_forward");
      run(cpu::pool_naive.max_forward, *y_expected, places_expected.get(), false);
      run(algorithm->max_forward, *y, places.get(), false);
      compare<T>(*y, *y_expected);
      compare<P>(*places, *places_expected);
      run(algorithm->max_forward, *y, nullptr, false);
      compare<T>(*y, *y_expected);
      begin("max_indices");
      run(cpu::pool_naive.max_indices, *indices_expected, nullptr, false);
      run(algorithm->max_indices, *indices, nullptr, false);
      compare<int64_t>(*indices, *indices_expected);
      if (!kFloating) continue;
      begin("max_backward");
      run(cpu::pool_naive.max_backward, *dx_expected, nullptr, true);
      run(algorithm->max_backward, *dx, nullptr, true);
      compare<T>(*dx, *dx_expected);
      begin("avg_forward");
      run(cpu::pool_naive.avg_forward, *y_expected, nullptr, false);
      run(algorithm->avg_forward, *y, nullptr, false);
      compare<T>(*y, *y_expected);
      begin("avg_backward");
      run(cpu::pool_naive.avg_backward, *dx_expected, nullptr, true);
      run(algorithm->avg_backward, *dx, nullptr, true);
      compare<T>(*dx, *dx_expected);
    }
  }
}

void check_conv(Reader& reader, bool exact, const std::string& line) {
  const DType dtype = static_cast<DType>(reader.next());
  const ConvGeometry g = read_conv(reader);
  if (g.output_places() <= 0) {
    std::cerr << "the kernel does not fit: " << line << "\n";
    std::exit(2);
  }
  cpu::dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    exact ? check_conv_exact<T>(g, dtype, line) : check_conv_bits<T>(g, dtype, line);
  });
}

void check_pool(Reader& reader, const std::string& line) {
  const DType dtype = static_cast<DType>(reader.next());
  PoolGeometry g;
  g.layout = static_cast<Layout>(reader.next());
  const bool special = reader.next() != 0;
  g.batch = reader.next(), g.channels = reader.next();
  for (int64_t* triple : {g.input, g.kernel, g.stride, g.dilation, g.pad_before, g.pad_after}) reader.next3(triple);
  const bool ceil_mode = reader.next() != 0;
  g.count_include_pad = reader.next() != 0;
  g.divisor_override = reader.next();
  g.spatial = 3;
  for (int i = 0; i < kMaxSpatial; ++i)
    g.output[i] = pool_output_size(g.input[i], g.kernel[i], g.stride[i], g.dilation[i], g.pad_before[i], g.pad_after[i],
                                   ceil_mode);
  if (g.output_places() <= 0) {
    std::cerr << "the window does not fit: " << line << "\n";
    std::exit(2);
  }
  cpu::dispatch_all(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    g.byte_places() ? check_pool_exact<T, uint8_t>(g, dtype, special, line)
                    : check_pool_exact<T, int32_t>(g, dtype, special, line);
  });
}

}  // namespace

int main(int count, char** words) {
  const bool exact = count > 1 && std::strcmp(words[1], "exact") == 0;
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

  std::string line, kind;
  while (std::getline(std::cin, line)) {
    Reader reader{std::istringstream(line)};
    reader.line >> kind;
    kind == "conv" ? check_conv(reader, exact, line) : check_pool(reader, line);
  }
  std::cout << "comparisons " << comparisons << "\nmismatches " << mismatches << "\nbarriers " << emulator::barriers
            << "\n";
  for (const auto& [name, times] : refused) std::cout << "refused " << name << " " << times << "\n";
  return mismatches > 0;
}
