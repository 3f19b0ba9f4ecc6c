// Convolution tap by tap: through one place of the kernel the whole output sees the whole input, shifted. So
//
//   y[k] = sum over c, taps of  w[k, c, tap] * x[c] shifted by the tap
//
// and its two gradients are the same walk: dx[c] shifted back gathers w * dy, and dw[k, c, tap] is the product of dy
// and the shifted x, summed. A walk goes run by run: a run is a row of outputs, or what the padding leaves of it, that
// sees input places one stride apart. Everything is accepted. Sums of an image's plane wait in the workspace, in the
// accumulate type. Traffic: a plane of the input and of the sums per tap, from the nearest cache that holds them.
#include "../algorithms.h"
#include "dtype.h"
#include "parallel.h"

namespace convext::cpu {
namespace {

// visit(output place, input place, count): `count` outputs side by side see, through `tap`, input places stride apart.
template <typename Visit>
void for_each_run(const ConvGeometry& g, int64_t tap, const Visit& visit) {
  const int64_t t = tap / (g.kernel[1] * g.kernel[2]), r = tap / g.kernel[2] % g.kernel[1], s = tap % g.kernel[2];
  int64_t first = 0, last = g.output[2];  // outputs whose place lies inside the row
  while (first < last && g.padded_place(2, first, s) < 0) ++first;
  while (last > first && g.padded_place(2, last - 1, s) >= g.input[2]) --last;
  for (int64_t o = 0; o < g.output[0]; ++o)
    for (int64_t p = 0; p < g.output[1]; ++p) {
      const int64_t d = g.source(0, o, t), h = g.source(1, p, r);
      if (d < 0 || h < 0) continue;
      const int64_t out = (o * g.output[1] + p) * g.output[2], in = (d * g.input[1] + h) * g.input[2];
      auto single = [&](int64_t q) {
        const int64_t w = g.source(2, q, s);
        if (w >= 0) visit(out + q, in + w, 1);
      };
      for (int64_t q = 0; q < first; ++q) single(q);
      if (first < last) visit(out + first, in + g.padded_place(2, first, s), last - first);
      for (int64_t q = last; q < g.output[2]; ++q) single(q);
    }
}

// From place to place of a channel.
int64_t input_step(const ConvGeometry& g) { return g.layout == Layout::contiguous ? 1 : g.in_channels; }
int64_t output_step(const ConvGeometry& g) { return g.layout == Layout::contiguous ? 1 : g.out_channels; }

template <typename T>
void forward(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const T *x = static_cast<const T*>(args.input), *w = static_cast<const T*>(args.weight),
          *bias = static_cast<const T*>(args.bias);
  T* y = static_cast<T*>(args.output);
  const int64_t inputs = g.group_inputs(), places = g.output_places(), step = input_step(g);
  parallel_for(g.batch * g.out_channels, [&](int64_t task, int thread) {
    const int64_t n = task / g.out_channels, k = task % g.out_channels, group = k / g.group_outputs();
    A* sums = static_cast<A*>(args.workspace) + thread * places;
    for (int64_t at = 0; at < places; ++at) sums[at] = bias == nullptr ? A(0) : to_accumulate(bias[k]);
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const A weight = to_accumulate(w[g.weight_offset(k, c, tap)]);
        const T* plane = x + g.input_offset(n, group * inputs + c, 0);
        for_each_run(g, tap, [&](int64_t out, int64_t in, int64_t count) {
          const T* from = plane + in * step;
          for (int64_t i = 0; i < count; ++i) sums[out + i] += weight * to_accumulate(from[i * g.stride[2] * step]);
        });
      }
    for (int64_t at = 0; at < places; ++at) y[g.output_offset(n, k, at)] = from_accumulate<T>(sums[at]);
  });
}

template <typename T>
void backward_input(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const T *dy = static_cast<const T*>(args.grad_output), *w = static_cast<const T*>(args.weight);
  T* dx = static_cast<T*>(args.output);
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs(), places = g.input_places();
  const int64_t step = output_step(g);
  parallel_for(g.batch * g.in_channels, [&](int64_t task, int thread) {
    const int64_t n = task / g.in_channels, c = task % g.in_channels, group = c / inputs;
    A* sums = static_cast<A*>(args.workspace) + thread * places;
    for (int64_t at = 0; at < places; ++at) sums[at] = A(0);
    for (int64_t k = group * outputs; k < (group + 1) * outputs; ++k)
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const A weight = to_accumulate(w[g.weight_offset(k, c % inputs, tap)]);
        const T* plane = dy + g.output_offset(n, k, 0);
        for_each_run(g, tap, [&](int64_t out, int64_t in, int64_t count) {
          const T* from = plane + out * step;
          for (int64_t i = 0; i < count; ++i) sums[in + i * g.stride[2]] += weight * to_accumulate(from[i * step]);
        });
      }
    for (int64_t at = 0; at < places; ++at) dx[g.input_offset(n, c, at)] = from_accumulate<T>(sums[at]);
  });
}

template <typename T>
void backward_weight(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const T *dy = static_cast<const T*>(args.grad_output), *x = static_cast<const T*>(args.input);
  T* dw = static_cast<T*>(args.output);
  const int64_t inputs = g.group_inputs(), in_step = input_step(g), out_step = output_step(g);
  parallel_for(g.out_channels * inputs, [&](int64_t task, int) {
    const int64_t k = task / inputs, c = task % inputs, channel = k / g.group_outputs() * inputs + c;
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      A sum = 0;
      for (int64_t n = 0; n < g.batch; ++n) {
        const T *seen = x + g.input_offset(n, channel, 0), *grad = dy + g.output_offset(n, k, 0);
        for_each_run(g, tap, [&](int64_t out, int64_t in, int64_t count) {
          for (int64_t i = 0; i < count; ++i)
            sum += to_accumulate(grad[(out + i) * out_step]) * to_accumulate(seen[(in + i * g.stride[2]) * in_step]);
        });
      }
      dw[g.weight_offset(k, c, tap)] = from_accumulate<T>(sum);
    }
  });
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return 0;
  const int64_t size = dtype == DType::float64 ? sizeof(double) : sizeof(float);
  return max_threads() * size * (direction == Direction::forward ? g.output_places() : g.input_places());
}

}  // namespace

const ConvAlgorithm conv_shift = {
    "shift",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { forward<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { backward_input<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { backward_weight<typename decltype(type)::type>(args); });
    },
};

}  // namespace convext::cpu
