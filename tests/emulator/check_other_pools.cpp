// As check.cpp, for the pools that have one kernel per device (csrc/other_pools.h), against the CPU's or, fractional
// pooling, its definition. Problems, written by tests/test_cuda_emulator.py, all numbers:
//   unpool      dtype layout batch channels places_in places_out
//   k_max       dtype layout batch channels places k
//   fractional  dtype spatial batch channels  input kernel output  (in threes)
#include "checking.h"

#include "../../csrc/other_pools.h"

namespace {

using Bytes = std::unique_ptr<Buffer>;
Bytes buffer(int64_t elements, size_t size) {
  return std::make_unique<Buffer>(elements * int64_t(size), int64_t(size));
}

// run(order): forward and reverse; each must leave what is expected.
template <typename Run>
void in_both_orders(const std::string& what, const Run& run) {
  for (emulator::Order order : kOrders) {
    emulator::order = order;
    running = what + " threads " + name_of(order);
    run();
  }
}

template <typename T>
void check_unpool(Reader& reader, DType dtype, const std::string& line) {
  UnpoolArguments args{};
  args.dtype = dtype;
  args.layout = static_cast<Layout>(reader.next());
  args.batch = reader.next(), args.channels = reader.next(), args.places_in = reader.next();
  args.places_out = reader.next();
  const int64_t planes = args.batch * args.channels, in = planes * args.places_in, out = planes * args.places_out;
  std::mt19937 random(7);
  const Bytes x = buffer(in, sizeof(T)), indices = buffer(in, 8), y = buffer(out, sizeof(T)),
              expected = buffer(out, sizeof(T)), workspace = buffer(cuda::max_unpool_workspace_bytes(args), 1);
  fill_integers<T>(*x, random, false);
  // Some outside: below and above.
  for (int64_t i = 0; i < in; ++i)
    static_cast<int64_t*>(indices->data())[i] = int64_t(random() % (args.places_out + 2)) - 1;
  args.input = x->data(), args.indices = static_cast<const int64_t*>(indices->data());
  expected->fill(0xff);
  args.output = expected->data();
  cpu::max_unpool(args);
  in_both_orders(line, [&] {
    y->fill(0xff), workspace->fill(0xa5);
    args.output = y->data(), args.workspace = workspace->data();
    cuda::max_unpool(args);
    compare<T>(*y, *expected);
    expect_intact(*y, "the output");
  });
}

template <typename T>
void check_k_max(Reader& reader, DType dtype, const std::string& line) {
  KMaxArguments args{};
  args.dtype = dtype;
  args.layout = static_cast<Layout>(reader.next());
  args.batch = reader.next(), args.channels = reader.next(), args.places = reader.next(), args.k = reader.next();
  const int64_t planes = args.batch * args.channels, in = planes * args.places, out = planes * args.k;
  std::mt19937 random(7);
  const Bytes x = buffer(in, sizeof(T)), y = buffer(out, sizeof(T)), y_expected = buffer(out, sizeof(T)),
              indices = buffer(out, 8), expected = buffer(out, 8);
  fill_integers<T>(*x, random, true);
  args.input = x->data();
  const auto into = [&](const Bytes& values, const Bytes& places) {
    values->fill(0xff), places->fill(0xff);
    args.output = values->data(), args.indices = static_cast<int64_t*>(places->data());
  };
  into(y_expected, expected);
  cpu::k_max_pool(args);
  in_both_orders(line, [&] {
    into(y, indices);
    cuda::k_max_pool(args);
    compare<T>(*y, *y_expected);
    compare<int64_t>(*indices, *expected);
    expect_intact(*y, "the output"), expect_intact(*indices, "the indices");
  });
}

// The definition, window by window.
template <typename T, typename P>
void define(const FractionalArguments& args, T* y, P* places, const T* dy, T* dx, int64_t* indices) {
  using A = cpu::Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const T *x = static_cast<const T*>(args.input), *samples = static_cast<const T*>(args.samples);
  const auto round = [](A value) { return cpu::to_accumulate(cpu::from_accumulate<T>(value)); };
  std::vector<A> sums(g.input_elements());
  for (int64_t plane = 0, at = 0; plane < g.batch * g.channels; ++plane)
    for (int64_t out = 0; out < g.output_places(); ++out, ++at) {
      const int64_t of[] = {out / (g.output[1] * g.output[2]), out / g.output[2] % g.output[1], out % g.output[2]};
      int64_t start[kMaxSpatial] = {};
      for (int axis = kMaxSpatial - g.spatial; axis < kMaxSpatial; ++axis) {
        const A sample = cpu::to_accumulate(samples[plane * g.spatial + fractional_sample(g.spatial, axis)]);
        start[axis] = fractional_start(of[axis], sample, g.input[axis], g.kernel[axis], g.output[axis], round);
      }
      A best = -std::numeric_limits<A>::infinity();
      int64_t winner = 0;
      const auto place = [&](int64_t tap) {
        const int64_t row = tap / g.kernel[2];
        return ((start[0] + row / g.kernel[1]) * g.input[1] + start[1] + row % g.kernel[1]) * g.input[2] + start[2] +
               tap % g.kernel[2];
      };
      for (int64_t tap = 0; tap < g.window(); ++tap) {
        const A value = cpu::to_accumulate(x[plane * g.input_places() + place(tap)]);
        if (value > best || value != value) best = value, winner = tap;
      }
      y[at] = cpu::from_accumulate<T>(best);
      places[at] = P(winner);
      indices[at] = place(winner);
      sums[plane * g.input_places() + place(winner)] += cpu::to_accumulate(dy[at]);
    }
  for (int64_t i = 0; i < g.input_elements(); ++i) dx[i] = cpu::from_accumulate<T>(sums[i]);
}

template <typename T, typename P>
void check_fractional_of(FractionalArguments args, const std::string& line) {
  const PoolGeometry& g = args.geometry;
  const int64_t in = g.input_elements(), out = g.output_elements(), drawn = g.batch * g.channels * g.spatial;
  std::mt19937 random(7);
  const Bytes x = buffer(in, sizeof(T)), dy = buffer(out, sizeof(T)), samples = buffer(drawn, sizeof(T)),
              y = buffer(out, sizeof(T)), y_expected = buffer(out, sizeof(T)), places = buffer(out, sizeof(P)),
              places_expected = buffer(out, sizeof(P)), dx = buffer(in, sizeof(T)), dx_expected = buffer(in, sizeof(T)),
              indices = buffer(out, 8), indices_expected = buffer(out, 8);
  fill_integers<T>(*x, random, true);
  fill_integers<T>(*dy, random, false);
  std::uniform_real_distribution<float> uniform(0, 0.99f);
  for (int64_t i = 0; i < drawn; ++i)
    static_cast<T*>(samples->data())[i] = cpu::from_accumulate<T>(cpu::Accumulate<T>(uniform(random)));
  args.input = x->data(), args.grad_output = dy->data(), args.samples = samples->data();
  define<T, P>(args, static_cast<T*>(y_expected->data()), static_cast<P*>(places_expected->data()),
               static_cast<const T*>(dy->data()), static_cast<T*>(dx_expected->data()),
               static_cast<int64_t*>(indices_expected->data()));
  args.places = places_expected->data();
  in_both_orders(line, [&] {
    for (Buffer* result : {y.get(), places.get(), dx.get(), indices.get()}) result->fill(0xff);
    args.output = y->data(), args.places_out = places->data();
    cuda::fractional_max_pool(args);
    compare<T>(*y, *y_expected);
    compare<P>(*places, *places_expected);
    args.output = dx->data();
    cuda::fractional_max_pool_backward(args);
    compare<T>(*dx, *dx_expected);
    args.output = indices->data();
    cuda::fractional_max_pool_indices(args);
    compare<int64_t>(*indices, *indices_expected);
    for (const Buffer* result : {y.get(), places.get(), dx.get(), indices.get()}) expect_intact(*result, "a result");
  });
}
template <typename T>
void check_fractional(Reader& reader, DType dtype, const std::string& line) {
  FractionalArguments args{};
  args.dtype = dtype;
  PoolGeometry& g = args.geometry;
  g.spatial = int(reader.next());
  g.batch = reader.next(), g.channels = reader.next();
  for (int64_t* triple : {g.input, g.kernel, g.output}) reader.next3(triple);
  g.byte_places() ? check_fractional_of<T, uint8_t>(args, line) : check_fractional_of<T, int32_t>(args, line);
}

}  // namespace

int main() {
  catch_faults();
  std::string line, kind;
  while (std::getline(std::cin, line)) {
    Reader reader{std::istringstream(line)};
    reader.line >> kind;
    const DType dtype = static_cast<DType>(reader.next());
    if (kind == "fractional") {
      cpu::dispatch_floating(dtype,
                             [&](auto type) { check_fractional<typename decltype(type)::type>(reader, dtype, line); });
      continue;
    }
    cpu::dispatch_all(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      kind == "unpool" ? check_unpool<T>(reader, dtype, line) : check_k_max<T>(reader, dtype, line);
    });
  }
  return report();
}
