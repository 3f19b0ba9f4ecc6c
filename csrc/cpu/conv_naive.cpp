// Convolution as its definition, the reference every other algorithm is held to:
//
//   y[n, k, o p q] = bias[k] + sum over c, t r s of  x[n, c, source(o p q, t r s)] * w[k, c, t r s]
//
// and its two gradients. One output element at a time, plain loops, no workspace, everything accepted: 1 to 3
// dimensions, any padding, both layouts. Parallel over output elements; each is summed by one thread in the order of
// the loops. Traffic: about one load per multiplication; a few tenths of a GFLOP/s.
#include "../algorithms.h"
#include "dtype.h"
#include "parallel.h"

namespace convext::cpu {
namespace {

struct Place {
  int64_t d, h, w;
};

Place unravel(int64_t at, const int64_t* size) {
  return {at / (size[2] * size[1]), at / size[2] % size[1], at % size[2]};
}

template <typename T>
Accumulate<T> output_element(const ConvGeometry& g, const T* x, const T* w, int64_t n, int64_t k, Place out) {
  Accumulate<T> sum = 0;
  const int64_t group = k / g.group_outputs(), inputs = g.group_inputs();
  for (int64_t c = 0; c < inputs; ++c)
    for (int64_t t = 0; t < g.kernel[0]; ++t)
      for (int64_t r = 0; r < g.kernel[1]; ++r)
        for (int64_t s = 0; s < g.kernel[2]; ++s) {
          const int64_t d = g.source(0, out.d, t), h = g.source(1, out.h, r), v = g.source(2, out.w, s);
          if (d < 0 || h < 0 || v < 0) continue;
          const int64_t at = (d * g.input[1] + h) * g.input[2] + v, tap = (t * g.kernel[1] + r) * g.kernel[2] + s;
          sum += to_accumulate(x[g.input_offset(n, group * inputs + c, at)]) *
                 to_accumulate(w[g.weight_offset(k, c, tap)]);
        }
  return sum;
}

// The gradient that padded input place (d, h, v) of channel c receives; an input place sums over all it is shown at.
template <typename T>
Accumulate<T> padded_gradient_element(const ConvGeometry& g, const T* dy, const T* w, int64_t n, int64_t c,
                                      Place padded) {
  Accumulate<T> sum = 0;
  const int64_t group = c / g.group_inputs(), outputs = g.group_outputs();
  for (int64_t t = 0; t < g.kernel[0]; ++t)
    for (int64_t r = 0; r < g.kernel[1]; ++r)
      for (int64_t s = 0; s < g.kernel[2]; ++s) {
        const int64_t o = g.seen_by(0, padded.d, t), p = g.seen_by(1, padded.h, r), q = g.seen_by(2, padded.w, s);
        if (o < 0 || p < 0 || q < 0) continue;
        const int64_t at = (o * g.output[1] + p) * g.output[2] + q, tap = (t * g.kernel[1] + r) * g.kernel[2] + s;
        for (int64_t k = group * outputs; k < (group + 1) * outputs; ++k)
          sum += to_accumulate(dy[g.output_offset(n, k, at)]) *
                 to_accumulate(w[g.weight_offset(k, c % g.group_inputs(), tap)]);
      }
  return sum;
}

template <typename T>
void forward(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const T *x = static_cast<const T*>(args.input), *w = static_cast<const T*>(args.weight),
          *bias = static_cast<const T*>(args.bias);
  T* y = static_cast<T*>(args.output);
  const int64_t places = g.output_places();
  parallel_for(g.batch * g.out_channels, [&](int64_t task, int) {
    const int64_t n = task / g.out_channels, k = task % g.out_channels;
    for (int64_t at = 0; at < places; ++at) {
      Accumulate<T> sum = output_element(g, x, w, n, k, unravel(at, g.output));
      if (bias != nullptr) sum += to_accumulate(bias[k]);
      y[g.output_offset(n, k, at)] = from_accumulate<T>(sum);
    }
  });
}

template <typename T>
void backward_input(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const T *dy = static_cast<const T*>(args.grad_output), *w = static_cast<const T*>(args.weight);
  T* dx = static_cast<T*>(args.output);
  const int64_t places = g.input_places();
  parallel_for(g.batch * g.in_channels, [&](int64_t task, int) {
    const int64_t n = task / g.in_channels, c = task % g.in_channels;
    for (int64_t at = 0; at < places; ++at) {
      const Place in = unravel(at, g.input);
      const Preimages ds = g.preimages(0, in.d), hs = g.preimages(1, in.h), ws = g.preimages(2, in.w);
      Accumulate<T> sum = 0;
      for (int64_t a = 0; a < ds.count(); ++a)
        for (int64_t b = 0; b < hs.count(); ++b)
          for (int64_t e = 0; e < ws.count(); ++e)
            sum += padded_gradient_element(g, dy, w, n, c, {ds[a], hs[b], ws[e]});
      dx[g.input_offset(n, c, at)] = from_accumulate<T>(sum);
    }
  });
}

template <typename T>
void backward_weight(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const T *dy = static_cast<const T*>(args.grad_output), *x = static_cast<const T*>(args.input);
  T* dw = static_cast<T*>(args.output);
  const int64_t inputs = g.group_inputs(), places = g.output_places();
  parallel_for(g.out_channels * inputs, [&](int64_t task, int) {
    const int64_t k = task / inputs, c = task % inputs, channel = k / g.group_outputs() * inputs + c;
    const auto at = args.gradient_taps(k, c);
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const Place kernel = unravel(tap, g.kernel);
      Accumulate<T> sum = 0;
      for (int64_t n = 0; n < g.batch; ++n)
        for (int64_t place = 0; place < places; ++place) {
          const Place out = unravel(place, g.output);
          const int64_t d = g.source(0, out.d, kernel.d), h = g.source(1, out.h, kernel.h),
                        v = g.source(2, out.w, kernel.w);
          if (d < 0 || h < 0 || v < 0) continue;
          sum += to_accumulate(x[g.input_offset(n, channel, (d * g.input[1] + h) * g.input[2] + v)]) *
                 to_accumulate(dy[g.output_offset(n, k, place)]);
        }
      dw[at.first + tap * at.step] = from_accumulate<T>(sum);
    }
  });
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }
int64_t workspace_bytes(const ConvGeometry&, DType, Direction) { return 0; }

template <typename F>
void run(const ConvArguments& args, F f) {
  dispatch_floating(args.dtype, f);
}

}  // namespace

const ConvAlgorithm conv_naive = {
    "naive",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) { run(args, [&](auto type) { forward<typename decltype(type)::type>(args); }); },
    [](const ConvArguments& args) {
      run(args, [&](auto type) { backward_input<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      run(args, [&](auto type) { backward_weight<typename decltype(type)::type>(args); });
    },
    /*packing=*/nullptr,
    /*pack=*/nullptr,
    /*finishes=*/false,
    /*packs_on_the_way=*/nullptr,
    /*writes_channels_last=*/true,
};

}  // namespace convext::cpu
