// What the programs that check max and average pooling share: a problem's line, and every pass of the algorithms given
// against the naive CPU one. After the numbers that check.cpp lists, a line may have one more: by how many elements all
// buffers begin before a page's end allows, so that what lies well for 16-byte accesses lies badly.
#pragma once
#include <vector>

#include "checking.h"

namespace {

template <typename T, typename P>
void check_pool_exact(const std::vector<const PoolAlgorithm*>& algorithms, const PoolGeometry& g, DType dtype,
                      bool special, int64_t skew, const std::string& line) {
  std::mt19937 random(7);
  const auto buffer = [&](int64_t elements, size_t size) {
    return std::make_unique<Buffer>(elements * int64_t(size), int64_t(size), 0, skew * int64_t(size));
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
  for (const PoolAlgorithm* algorithm : algorithms) {
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

void check_pool(Reader& reader, const std::vector<const PoolAlgorithm*>& algorithms, const std::string& line) {
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
  int64_t skew = 0;
  reader.line >> skew;
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
    g.byte_places() ? check_pool_exact<T, uint8_t>(algorithms, g, dtype, special, skew, line)
                    : check_pool_exact<T, int32_t>(algorithms, g, dtype, special, skew, line);
  });
}

}  // namespace
