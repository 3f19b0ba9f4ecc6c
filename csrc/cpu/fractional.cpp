// Fractional max pooling: see other_pools.h. A task is a plane: its starts along each axis are drawn once, then windows
// are looked at one by one. The gradient adds each dy to the place that won, in the order of the outputs, in the
// accumulate type. Traffic: a load per place of a window, from the nearest cache where windows overlap.
#include <limits>
#include <vector>

#include "../other_pools.h"
#include "dtype.h"
#include "parallel.h"

namespace convext::cpu {
namespace {

// The first places of a plane's windows, axis by axis.
template <typename T>
class Starts {
 public:
  Starts(const FractionalArguments& args, int64_t plane) : g_(args.geometry) {
    const T* samples = static_cast<const T*>(args.samples) + plane * g_.spatial;
    for (int axis = kMaxSpatial - g_.spatial; axis < kMaxSpatial; ++axis) {
      const auto sample = to_accumulate(samples[fractional_sample(g_.spatial, axis)]);
      for (int64_t out = 0; out < g_.output[axis]; ++out)
        starts_[axis].push_back(fractional_start(out, sample, g_.input[axis], g_.kernel[axis], g_.output[axis],
                                                 [](Accumulate<T> x) { return to_accumulate(from_accumulate<T>(x)); }));
    }
    for (int axis = 0; axis < kMaxSpatial - g_.spatial; ++axis) starts_[axis].push_back(0);
  }
  // The place of tap (t, r, s) of output (o, p, q) in the plane; -1 outside of it.
  int64_t place(int64_t o, int64_t p, int64_t q, int64_t t, int64_t r, int64_t s) const {
    const int64_t d = starts_[0][o] + t, h = starts_[1][p] + r, w = starts_[2][q] + s;
    const bool inside = d >= 0 && d < g_.input[0] && h >= 0 && h < g_.input[1] && w >= 0 && w < g_.input[2];
    return inside ? (d * g_.input[1] + h) * g_.input[2] + w : -1;
  }
  int64_t place(int64_t o, int64_t p, int64_t q, int64_t tap) const {
    const int64_t row = tap / g_.kernel[2];
    return place(o, p, q, row / g_.kernel[1], row % g_.kernel[1], tap % g_.kernel[2]);
  }

 private:
  const PoolGeometry& g_;
  std::vector<int64_t> starts_[kMaxSpatial];
};

// run(output, o, p, q) for each output of a plane, in order.
template <typename Run>
void for_each_output(const PoolGeometry& g, const Run& run) {
  int64_t at = 0;
  for (int64_t o = 0; o < g.output[0]; ++o)
    for (int64_t p = 0; p < g.output[1]; ++p)
      for (int64_t q = 0; q < g.output[2]; ++q) run(at++, o, p, q);
}

// run(element type, type of places)
template <typename Run>
void dispatch(const FractionalArguments& args, const Run& run) {
  dispatch_floating(args.dtype, [&](auto type) {
    if (args.geometry.byte_places())
      run(type, Type<uint8_t>());
    else
      run(type, Type<int32_t>());
  });
}

template <typename T, typename P>
void forward_plane(const FractionalArguments& args, int64_t plane) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const Starts<T> starts(args, plane);
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  P* places = args.places_out == nullptr ? nullptr : static_cast<P*>(args.places_out) + plane * g.output_places();
  for_each_output(g, [&](int64_t at, int64_t o, int64_t p, int64_t q) {
    A best = -std::numeric_limits<A>::infinity();
    int64_t winner = 0, tap = 0;
    for (int64_t t = 0; t < g.kernel[0]; ++t)
      for (int64_t r = 0; r < g.kernel[1]; ++r) {
        const T* row = x + starts.place(o, p, q, t, r, 0);
        for (int64_t s = 0; s < g.kernel[2]; ++s, ++tap) {
          const A value = to_accumulate(row[s]);
          if (value > best || value != value) best = value, winner = tap;
        }
      }
    y[at] = from_accumulate<T>(best);
    if (places != nullptr) places[at] = P(winner);
  });
}

}  // namespace

void fractional_max_pool(const FractionalArguments& args) {
  dispatch(args, [&](auto type, auto place) {
    parallel_for(args.geometry.batch * args.geometry.channels, [&](int64_t plane, int) {
      forward_plane<typename decltype(type)::type, typename decltype(place)::type>(args, plane);
    });
  });
}

void fractional_max_pool_backward(const FractionalArguments& args) {
  const PoolGeometry& g = args.geometry;
  dispatch(args, [&](auto type, auto place) {
    using T = typename decltype(type)::type;
    using P = typename decltype(place)::type;
    parallel_for(g.batch * g.channels, [&](int64_t plane, int) {
      const Starts<T> starts(args, plane);
      const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
      const P* places = static_cast<const P*>(args.places) + plane * g.output_places();
      std::vector<Accumulate<T>> sum(g.input_places());
      for_each_output(g, [&](int64_t at, int64_t o, int64_t p, int64_t q) {
        const int64_t in = starts.place(o, p, q, places[at]);
        if (in >= 0) sum[in] += to_accumulate(dy[at]);
      });
      T* dx = static_cast<T*>(args.output) + plane * g.input_places();
      for (int64_t i = 0; i < g.input_places(); ++i) dx[i] = from_accumulate<T>(sum[i]);
    });
  });
}

void fractional_max_pool_indices(const FractionalArguments& args) {
  const PoolGeometry& g = args.geometry;
  dispatch(args, [&](auto type, auto place) {
    using T = typename decltype(type)::type;
    using P = typename decltype(place)::type;
    parallel_for(g.batch * g.channels, [&](int64_t plane, int) {
      const Starts<T> starts(args, plane);
      const P* places = static_cast<const P*>(args.places) + plane * g.output_places();
      int64_t* indices = static_cast<int64_t*>(args.output) + plane * g.output_places();
      for_each_output(g, [&](int64_t at, int64_t o, int64_t p, int64_t q) {
        const int64_t in = starts.place(o, p, q, places[at]);
        indices[at] = in < 0 ? 0 : in;
      });
    });
  });
}

}  // namespace convext::cpu
