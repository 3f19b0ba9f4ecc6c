// Pooling as its definition, the reference every other algorithm is held to. Over the taps t r s of output o p q that
// lie inside the input, in row-major order:
//
//   max:      y = the first greatest, or the last NaN if there is one; place = its tap
//   average:  y = sum / divisor(o p q)
//
// and the gradients, which an input place gathers, output after output, from the windows that cover it: dy where it won
// (max), dy / divisor (average). One element at a time, plain loops, everything accepted: 1 to 3 dimensions, any
// padding and dilation, adaptive windows, both layouts, integers for the maximum. Parallel over planes. Traffic: a load
// per tap.
#include <limits>

#include "dtype.h"
#include "parallel.h"
#include "pool.h"

namespace convext::cpu {
namespace {

struct Place {
  int64_t d, h, w;
};

Place unravel(int64_t at, const int64_t* size) {
  return {at / (size[2] * size[1]), at / size[2] % size[1], at % size[2]};
}
int64_t ravel(Place at, const int64_t* size) { return (at.d * size[1] + at.h) * size[2] + at.w; }

// The input place that output `out` sees through `tap`.
Place place_of(const PoolGeometry& g, Place out, Place tap) {
  return {g.place(0, out.d, tap.d), g.place(1, out.h, tap.h), g.place(2, out.w, tap.w)};
}

// run(tap, at): every tap of output `out` that sees a place of the input, `at` being that place; row-major.
template <typename Run>
void for_each_tap(const PoolGeometry& g, Place out, const Run& run) {
  for (int64_t t = g.first_tap(0, out.d); t < g.last_tap(0, out.d); ++t)
    for (int64_t r = g.first_tap(1, out.h); r < g.last_tap(1, out.h); ++r)
      for (int64_t s = g.first_tap(2, out.w); s < g.last_tap(2, out.w); ++s)
        run(ravel({t, r, s}, g.kernel), ravel(place_of(g, out, {t, r, s}), g.input));
}

// run(tap, out): every output that sees input place `in`, and the tap it does so through; outputs in row-major order.
template <typename Run>
void for_each_output(const PoolGeometry& g, Place in, const Run& run) {
  const Range os = g.spanning(0, in.d), ps = g.spanning(1, in.h), qs = g.spanning(2, in.w);
  for (int64_t o = os.first; o < os.last; ++o)
    for (int64_t p = ps.first; p < ps.last; ++p)
      for (int64_t q = qs.first; q < qs.last; ++q) {
        const Place tap = {g.tap_of(0, o, in.d), g.tap_of(1, p, in.h), g.tap_of(2, q, in.w)};
        if (tap.d >= 0 && tap.h >= 0 && tap.w >= 0) run(ravel(tap, g.kernel), Place{o, p, q});
      }
}

// run(n, c): every plane, in parallel.
template <typename Run>
void for_each_plane(const PoolGeometry& g, const Run& run) {
  parallel_for(g.batch * g.channels, [&](int64_t task, int) { run(task / g.channels, task % g.channels); });
}

// Calls f(Type<uint8_t>()) or f(Type<int32_t>()): what places are stored as.
template <typename F>
void dispatch_places(const PoolGeometry& g, const F& f) {
  if (g.byte_places())
    f(Type<uint8_t>());
  else
    f(Type<int32_t>());
}

template <typename T, typename P>
void max_forward(const PoolArguments& args) {
  using A = Accumulate<T>;
  using Limits = std::numeric_limits<A>;
  const PoolGeometry& g = args.geometry;
  const T* x = static_cast<const T*>(args.input);
  T* y = static_cast<T*>(args.output);
  P* places = static_cast<P*>(args.places_out);
  for_each_plane(g, [&](int64_t n, int64_t c) {
    for (int64_t at = 0; at < g.output_places(); ++at) {
      A best = Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
      int64_t winner = -1;
      for_each_tap(g, unravel(at, g.output), [&](int64_t tap, int64_t in) {
        const A value = to_accumulate(x[g.input_offset(n, c, in)]);
        if (winner < 0) winner = tap;
        if (value > best || value != value) best = value, winner = tap;
      });
      y[g.output_offset(n, c, at)] = from_accumulate<T>(best);
      if (places != nullptr) places[g.output_offset(n, c, at)] = P(winner < 0 ? 0 : winner);
    }
  });
}

template <typename T, typename P>
void max_backward(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const T* dy = static_cast<const T*>(args.grad_output);
  const P* places = static_cast<const P*>(args.places);
  T* dx = static_cast<T*>(args.output);
  for_each_plane(g, [&](int64_t n, int64_t c) {
    for (int64_t at = 0; at < g.input_places(); ++at) {
      Accumulate<T> sum = 0;
      for_each_output(g, unravel(at, g.input), [&](int64_t tap, Place out) {
        const int64_t offset = g.output_offset(n, c, ravel(out, g.output));
        if (places[offset] == tap) sum += to_accumulate(dy[offset]);
      });
      dx[g.input_offset(n, c, at)] = from_accumulate<T>(sum);
    }
  });
}

template <typename T>
void avg_forward(const PoolArguments& args) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const T* x = static_cast<const T*>(args.input);
  T* y = static_cast<T*>(args.output);
  for_each_plane(g, [&](int64_t n, int64_t c) {
    for (int64_t at = 0; at < g.output_places(); ++at) {
      const Place out = unravel(at, g.output);
      A sum = 0;
      for_each_tap(g, out, [&](int64_t, int64_t in) { sum += to_accumulate(x[g.input_offset(n, c, in)]); });
      y[g.output_offset(n, c, at)] = from_accumulate<T>(sum / A(g.divisor(out.d, out.h, out.w)));
    }
  });
}

template <typename T>
void avg_backward(const PoolArguments& args) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const T* dy = static_cast<const T*>(args.grad_output);
  T* dx = static_cast<T*>(args.output);
  for_each_plane(g, [&](int64_t n, int64_t c) {
    for (int64_t at = 0; at < g.input_places(); ++at) {
      A sum = 0;
      for_each_output(g, unravel(at, g.input), [&](int64_t, Place out) {
        sum += to_accumulate(dy[g.output_offset(n, c, ravel(out, g.output))]) / A(g.divisor(out.d, out.h, out.w));
      });
      dx[g.input_offset(n, c, at)] = from_accumulate<T>(sum);
    }
  });
}

const char* unsupported(const PoolGeometry&, DType) { return nullptr; }

}  // namespace

// A place outside the input, that of a window wholly outside it, is moved to the input's nearest. A task is a row of
// outputs (n, o, p) of all channels. Taps that fit a byte are looked up: divisions would take longer than the pooling.
void max_pool_indices(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  int64_t* indices = static_cast<int64_t*>(args.output);
  constexpr int64_t kTable = 256;
  Place table[kTable];
  for (int64_t tap = 0; tap < kTable; ++tap) table[tap] = unravel(tap, g.kernel);
  const auto nearest = [&](int64_t i, int axis) { return i < 0 ? 0 : i < g.input[axis] ? i : g.input[axis] - 1; };
  dispatch_places(g, [&](auto type) {
    const auto* places = static_cast<const typename decltype(type)::type*>(args.places);
    const int64_t rows = g.output[0] * g.output[1], width = g.output[2];
    parallel_for(g.batch * rows, [&](int64_t task, int) {
      const int64_t n = task / rows, row = task % rows, o = row / g.output[1], p = row % g.output[1];
      for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t q = 0; q < width; ++q) {
          const int64_t offset = g.output_offset(n, c, row * width + q), tap = places[offset];
          const Place in = place_of(g, {o, p, q}, tap >= 0 && tap < kTable ? table[tap] : unravel(tap, g.kernel));
          indices[offset] = ravel({nearest(in.d, 0), nearest(in.h, 1), nearest(in.w, 2)}, g.input);
        }
    });
  });
}

const PoolAlgorithm pool_naive = {
    "naive",
    unsupported,
    [](const PoolArguments& args) {
      dispatch_all(args.dtype, [&](auto type) {
        dispatch_places(args.geometry, [&](auto place) {
          max_forward<typename decltype(type)::type, typename decltype(place)::type>(args);
        });
      });
    },
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) {
        dispatch_places(args.geometry, [&](auto place) {
          max_backward<typename decltype(type)::type, typename decltype(place)::type>(args);
        });
      });
    },
    max_pool_indices,
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { avg_forward<typename decltype(type)::type>(args); });
    },
    [](const PoolArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { avg_backward<typename decltype(type)::type>(args); });
    },
};

}  // namespace convext::cpu
