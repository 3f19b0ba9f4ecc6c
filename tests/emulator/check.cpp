// Runs the CUDA algorithms on the CPU stand-in and compares them with the naive ones of csrc/cpu.
//
//   check MODE < problems      MODE: exact | bits | error
//
// Problems are lines, written by tests/test_cuda_emulator.py, all numbers, spatial ones in threes (d h w):
//   conv  dtype layout mode flip batch channels outputs groups  input kernel stride dilation before after  tf32
//   pool  dtype layout special batch channels  input kernel stride dilation before after  ceil include_pad divisor
//   parts
//
// (parts: how many windows an adaptive pooling cuts the input into, or zeros)
//
// exact: every algorithm, direction and thread order against the naive CPU one, on small integers (winograd: after
// rounding to the nearest integer). Outputs hold NaN
// beforehand and workspaces 0xa5; every buffer ends at a page that faults. bits: images of random numbers must come out
// the same alone, displaced by an element (so that whole vectors of them are not aligned), and in company. error:
// random float32 numbers against naive in float64; prints a line per algorithm and direction: "error", name, direction,
// norm-wise error, largest error, the largest of input, weight and output gradient, bytes of workspace. Prints a line
// per mismatch and, last, how many comparisons were made and how many algorithms refused a problem, by name; the exit
// status is 1 if anything was wrong, 3 for a barrier fault (see cuda_runtime.h), 4 for an access out of bounds.
#include "checking.h"

namespace {

ConvGeometry read_conv(Reader& reader) {
  ConvGeometry g;
  g.layout = static_cast<Layout>(reader.next());
  g.padding_mode = static_cast<PaddingMode>(reader.next());
  g.flip_kernel = reader.next() != 0;
  g.batch = reader.next(), g.in_channels = reader.next(), g.out_channels = reader.next(), g.groups = reader.next();
  for (int64_t* triple : {g.input, g.kernel, g.stride, g.dilation, g.pad_before, g.pad_after}) reader.next3(triple);
  g.tf32 = reader.next() != 0;
  g.spatial = 3;
  for (int i = 0; i < kMaxSpatial; ++i)
    g.output[i] =
        conv_output_size(g.input[i], g.kernel[i], g.stride[i], g.dilation[i], g.pad_before[i], g.pad_after[i]);
  return g;
}

#if defined(CONVEXT_CHECK_ONLY)  // the name of one
const ConvAlgorithm* const kConvs[] = {&cuda::CONVEXT_CHECK_ONLY};
const std::vector<const PoolAlgorithm*> kPools;
#else
#if !defined(CONVEXT_CHECK_CONVS)  // fewer: a program that is linked with these alone
#define CONVEXT_CHECK_CONVS &cuda::conv_naive, &cuda::conv_im2col, &cuda::conv_direct, &cuda::conv_winograd
#endif
const ConvAlgorithm* const kConvs[] = {CONVEXT_CHECK_CONVS};
const PoolAlgorithm* const kPools[] = {&cuda::pool_naive, &cuda::pool_direct};
#endif

// The tensors of a convolution and the three things to compute from them.
template <typename T>
struct ConvProblem {
  static constexpr Direction kDirections[] = {Direction::forward, Direction::backward_input,
                                              Direction::backward_weight};
  ConvArguments args;
  Buffer x, w, bias, dy;

  ConvProblem(const ConvGeometry& g, DType dtype, int64_t spare = 0)
      : x(g.input_elements() * sizeof(T), sizeof(T), spare),
        w(g.weight_elements() * sizeof(T), sizeof(T)),
        bias(g.out_channels * sizeof(T), sizeof(T)),
        dy(g.output_elements() * sizeof(T), sizeof(T), spare) {
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
        compare<T>(got, expected, algorithm->name == std::string("winograd"));
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
    for (Direction direction : {Direction::forward, Direction::backward_input}) {
      if (algorithm->unsupported(g, dtype, direction) != nullptr) {
        ++refused[algorithm->name];
        continue;
      }
      running = std::string(algorithm->name) + " alone, direction " + std::to_string(int(direction)) + ": " + line;
      Buffer together(all.result_bytes(g, direction), sizeof(T));
      all.run(*algorithm, direction, together);
      for (int64_t n = 0; n < g.batch; ++n) {
        ConvProblem<T> one(single, dtype, sizeof(T));
        std::memcpy(one.x.data(), static_cast<char*>(all.x.data()) + n * one.x.size(), one.x.size());
        std::memcpy(one.dy.data(), static_cast<char*>(all.dy.data()) + n * one.dy.size(), one.dy.size());
        one.args.weight = all.w.data(), one.args.bias = all.bias.data();
        Buffer alone(one.result_bytes(single, direction), sizeof(T), sizeof(T)), part(alone.size(), sizeof(T));
        one.run(*algorithm, direction, alone);
        std::memcpy(part.data(), static_cast<char*>(together.data()) + n * part.size(), part.size());
        compare<T>(alone, part);
      }
    }
  }
}

double largest(Buffer& buffer) {
  const float* data = static_cast<const float*>(buffer.data());
  double most = 0;
  for (int64_t i = 0; i < buffer.size() / 4; ++i) most = std::max(most, double(std::abs(data[i])));
  return most;
}

void print_conv_errors(const ConvGeometry& g) {
  std::mt19937 random(7);
  ConvProblem<float> problem(g, DType::float32);
  ConvProblem<double> exact(g, DType::float64);
  problem.args.bias = exact.args.bias = nullptr;
  for (auto [from, to] : {std::pair(&problem.x, &exact.x), {&problem.w, &exact.w}, {&problem.dy, &exact.dy}}) {
    fill_reals<float>(*from, random);
    const float* source = static_cast<const float*>(from->data());
    std::copy(source, source + from->size() / 4, static_cast<double*>(to->data()));
  }
  for (Direction direction : problem.kDirections) {
    Buffer expected(exact.result_bytes(g, direction), 8), got(problem.result_bytes(g, direction), 4);
    exact.run(cpu::conv_naive, direction, expected);
    for (const ConvAlgorithm* algorithm : kConvs) {
      if (algorithm->unsupported(g, DType::float32, direction) != nullptr) continue;
      problem.run(*algorithm, direction, got);
      const float* a = static_cast<const float*>(got.data());
      const double* b = static_cast<const double*>(expected.data());
      double error = 0, norm = 0, most = 0;
      for (int64_t i = 0; i < got.size() / 4; ++i) {
        const double off = double(a[i]) - b[i];
        error += off * off, norm += b[i] * b[i];
        most = !(std::abs(off) <= most) ? std::abs(off) : most;
      }
      std::cout << "error " << algorithm->name << " " << int(direction) << " " << std::sqrt(error / norm) << " " << most
                << " " << largest(problem.x) << " " << largest(problem.w) << " " << largest(problem.dy) << " "
                << algorithm->workspace_bytes(g, DType::float32, direction) << "\n";
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

void check_conv(Reader& reader, const std::string& mode, const std::string& line) {
  const DType dtype = static_cast<DType>(reader.next());
  const ConvGeometry g = read_conv(reader);
  if (g.output_places() <= 0) {
    std::cerr << "the kernel does not fit: " << line << "\n";
    std::exit(2);
  }
  if (mode == "error") return print_conv_errors(g);
  cpu::dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    mode == "exact" ? check_conv_exact<T>(g, dtype, line) : check_conv_bits<T>(g, dtype, line);
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
  int64_t parts[kMaxSpatial];
  reader.next3(parts);
  g.adaptive = parts[0] > 0;
  for (int i = 0; i < kMaxSpatial; ++i)
    g.output[i] = g.adaptive ? parts[i]
                             : pool_output_size(g.input[i], g.kernel[i], g.stride[i], g.dilation[i], g.pad_before[i],
                                                g.pad_after[i], ceil_mode);
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
  const std::string mode = count > 1 ? words[1] : "exact";
  catch_faults();
  std::string line, kind;
  while (std::getline(std::cin, line)) {
    Reader reader{std::istringstream(line)};
    reader.line >> kind;
    kind == "conv" ? check_conv(reader, mode, line) : check_pool(reader, line);
  }
  return report();
}
