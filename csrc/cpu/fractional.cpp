// Fractional max pooling: see other_pools.h. A task is a plane: its windows along each axis are drawn and spelled out,
// and then are boxes, for whose maximum and gradient pool_direct_boxes.cpp has the kernels.
#include <vector>

#include "../other_pools.h"
#include "pool_direct_boxes.h"

namespace convext::cpu {
namespace {

// The windows of a plane.
template <typename T>
class Drawn {
 public:
  Drawn(const FractionalArguments& args, int64_t plane) {
    const PoolGeometry& g = args.geometry;
    const T* samples = static_cast<const T*>(args.samples) + plane * g.spatial;
    for (int axis = 0; axis < kMaxSpatial; ++axis) {
      const bool given = axis >= kMaxSpatial - g.spatial;
      const auto sample = to_accumulate(samples[given ? fractional_sample(g.spatial, axis) : 0]);
      for (int64_t out = 0; out < g.output[axis]; ++out) {
        const int64_t start = !given ? 0
                                     : fractional_start(out, sample, g.input[axis], g.kernel[axis], g.output[axis],
                                                        [](auto x) { return to_accumulate(from_accumulate<T>(x)); });
        spans_[axis].push_back({start, start + g.kernel[axis]});
      }
      boxes_.spans[axis] = spans_[axis].data();
    }
  }
  const Boxes& boxes() const { return boxes_; }

 private:
  std::vector<Range> spans_[kMaxSpatial];
  Boxes boxes_ = {};
};

// run(element type, plane), in parallel.
template <typename Run>
void for_each_plane(const FractionalArguments& args, const Run& run) {
  dispatch_floating(args.dtype, [&](auto type) {
    parallel_for(args.geometry.batch * args.geometry.channels, [&](int64_t plane, int) { run(type, plane); });
  });
}

}  // namespace

void fractional_max_pool(const FractionalArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t outputs = g.output_places(), bytes = g.byte_places() ? 1 : 4;
  for_each_plane(args, [&](auto type, int64_t plane) {
    using T = typename decltype(type)::type;
    const Drawn<T> windows(args, plane);
    const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
    T* y = static_cast<T*>(args.output) + plane * outputs;
    const Range rows = {0, g.output[0] * g.output[1]};
    if (args.places_out == nullptr)
      box_values<T>()(g, windows.boxes(), x, 1, rows, y);
    else
      box_maxima<T>()(g, windows.boxes(), x, rows, y, static_cast<char*>(args.places_out) + plane * outputs * bytes);
  });
}

void fractional_max_pool_backward(const FractionalArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t inputs = g.input_places(), outputs = g.output_places();
  const auto distances = tap_distances(g, 1);
  for_each_plane(args, [&](auto type, int64_t plane) {
    using T = typename decltype(type)::type;
    const Drawn<T> windows(args, plane);
    const T* dy = static_cast<const T*>(args.grad_output) + plane * outputs;
    std::vector<Accumulate<T>> sum(inputs);
    const auto starts = box_starts(g, windows.boxes(), 1);
    add_to_winners(g, starts.get(), distances.get(), dy, args.places, plane * outputs, Lanes{1, 1, 0, 0}, sum.data(),
                   1);
    T* dx = static_cast<T*>(args.output) + plane * inputs;
    for (int64_t i = 0; i < inputs; ++i) dx[i] = from_accumulate<T>(sum[i]);
  });
}

void fractional_max_pool_indices(const FractionalArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t inputs = g.input_places(), outputs = g.output_places();
  const auto distances = tap_distances(g, 1);
  for_each_plane(args, [&](auto type, int64_t plane) {
    const Drawn<typename decltype(type)::type> windows(args, plane);
    const auto starts = box_starts(g, windows.boxes(), 1);
    int64_t* indices = static_cast<int64_t*>(args.output) + plane * outputs;
    const auto find = [&](const auto* places) {
      for (int64_t at = 0; at < outputs; ++at) {
        const int64_t tap = places[at];
        const int64_t in = starts[at] + distances[tap >= 0 && tap < g.window() ? tap : 0];
        indices[at] = in < inputs ? in : 0;
      }
    };
    g.byte_places() ? find(static_cast<const uint8_t*>(args.places) + plane * outputs)
                    : find(static_cast<const int32_t*>(args.places) + plane * outputs);
  });
}

}  // namespace convext::cpu
