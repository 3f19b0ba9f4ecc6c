// Boxes: contiguous windows of unequal sizes (adaptive pooling), wide ones of the average, and one window over all.
//
// The rows of a box are shared by all boxes beside it, so first they are reduced into one, with vectors of columns, and
// that is then cut along its columns, one by one: rows x columns / lanes steps for the first, columns for the second.
// The gradient of an average goes the other way: rows of dy that see an input row are summed and spread over their
// columns, and the next input row, often seen by the same, is a copy. That of a maximum adds each dy to the place that
// won, in the order of the outputs: one addition whatever the box; halves are added up in memory of their own. One
// window over all needs no tables: a plane is a run of numbers, its gradient of the maximum one number among zeros.
// A task is some rows of a plane, or several small planes. Traffic: input and output once from memory; a reduced row
// stays in the nearest cache.
#include "pool_direct_boxes.h"

#include <cstring>

#include "isa.h"
#include "parallel.h"
#include "simd.h"

#define CONVEXT_KERNELS "pool_direct_boxes.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

constexpr int64_t kScatterChannels = 128;     // channels_last: of a task that adds to dx itself
constexpr int64_t kScatterHalfChannels = 16;  // of one that adds up in memory of its own

// One output per plane: run(first plane, planes).
template <typename Run>
void run_planes(const PoolGeometry& g, const Run& run) {
  const int64_t planes = g.batch * g.channels, together = ceil_div(kPoolPart, g.input_places());
  parallel_for(ceil_div(planes, together), [&](int64_t task, int) {
    const int64_t first = task * together;
    run(first, first + together < planes ? together : planes - first);
  });
}

// The gradient of one maximum over all: every plane is zero but for one place. Either layout.
template <typename T>
void max_backward_global(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const bool last = g.layout == Layout::channels_last;
  const int64_t places = g.input_places(), together = last ? g.channels : 1;
  parallel_for(g.batch * g.channels / together, [&](int64_t task, int) {
    const int64_t first = task * together;
    T* dx = static_cast<T*>(args.output) + first * places;
    std::memset(static_cast<void*>(dx), 0, sizeof(T) * places * together);
    for (int64_t c = 0; c < together; ++c) {
      const int64_t winner = g.byte_places() ? int64_t(static_cast<const uint8_t*>(args.places)[first + c])
                                             : int64_t(static_cast<const int32_t*>(args.places)[first + c]);
      if (winner >= 0 && winner < places)
        dx[winner * together + c] = static_cast<const T*>(args.grad_output)[first + c];
    }
  });
}

// Some channels of an image: sum[place * pitch + channel] collects their dy.
template <typename T, typename P>
void scatter(const PoolArguments& args, const Boxes& boxes, const int64_t* offset, int64_t image, Range channels,
             Accumulate<T>* sum, int64_t pitch) {
  const PoolGeometry& g = args.geometry;
  const bool last = g.layout == Layout::channels_last;
  const int64_t lanes = channels.last - channels.first, step = last ? g.channels : 1;
  const int64_t out = last ? image * g.channels * g.output_places() + channels.first
                           : (image * g.channels + channels.first) * g.output_places();
  const T* dy = static_cast<const T*>(args.grad_output) + out;
  const P* places = static_cast<const P*>(args.places) + out;
  const uint64_t window = g.window(), inputs = g.input_places();
  for (int64_t o = 0; o < g.output[0]; ++o)
    for (int64_t p = 0; p < g.output[1]; ++p) {
      const int64_t row = (boxes.spans[0][o].first * g.input[1] + boxes.spans[1][p].first) * g.input[2];
      for (int64_t q = 0; q < g.output[2]; ++q, dy += step, places += step) {
        const int64_t start = row + boxes.spans[2][q].first;
        for (int64_t l = 0; l < lanes; ++l) {
          if (uint64_t(places[l]) >= window) continue;  // no such place
          const int64_t at = start + offset[places[l]];
          if (uint64_t(at) < inputs) sum[at * pitch + l] += to_accumulate(dy[l]);
        }
      }
    }
}

template <typename T>
void max_backward(const PoolArguments& args) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const BoxTables tables(g);
  const std::unique_ptr<int64_t[]> offset(new int64_t[g.window()]);  // of a tap, from the window's first place
  for (int64_t tap = 0; tap < g.window(); ++tap) {
    const int64_t row = tap / g.kernel[2];
    offset[tap] = (row / g.kernel[1] * g.input[1] + row % g.kernel[1]) * g.input[2] + tap % g.kernel[2];
  }
  const bool last = g.layout == Layout::channels_last, apart = sizeof(T) != sizeof(A);
  const int64_t most = !last ? 1 : apart ? kScatterHalfChannels : kScatterChannels, places = g.input_places();
  const int64_t blocks = ceil_div(g.channels, most), step = last ? g.channels : 1;
  parallel_for(g.batch * blocks, [&](int64_t task, int) {
    const int64_t image = task / blocks, first = task % blocks * most;
    const int64_t lanes = first + most < g.channels ? most : g.channels - first, pitch = apart ? lanes : step;
    T* dx = static_cast<T*>(args.output) + image * g.channels * places + (last ? first : first * places);
    const std::unique_ptr<A[]> memory(apart ? new A[places * lanes] : nullptr);
    A* sum = apart ? memory.get() : reinterpret_cast<A*>(dx);
    if (pitch == lanes)
      std::memset(sum, 0, sizeof(A) * places * lanes);
    else
      for (int64_t i = 0; i < places; ++i) std::memset(sum + i * pitch, 0, sizeof(A) * lanes);
    const Range channels = {first, first + lanes};
    if (g.byte_places())
      scatter<T, uint8_t>(args, tables.boxes(), offset.get(), image, channels, sum, pitch);
    else
      scatter<T, int32_t>(args, tables.boxes(), offset.get(), image, channels, sum, pitch);
    for (int64_t i = 0; apart && i < places; ++i)
      for (int64_t l = 0; l < lanes; ++l) dx[i * step + l] = from_accumulate<T>(sum[i * lanes + l]);
  });
}

}  // namespace

void pool_boxes_average(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = static_cast<const T*>(args.input);
    T* y = static_cast<T*>(args.output);
    const int64_t inputs = g.input_places(), outputs = g.output_places();
    if (over_all(g)) {
      const auto kernel = CONVEXT_SELECT_ISA(avg_forward_global<T>);
      return run_planes(g, [&](int64_t first, int64_t planes) {
        kernel(x + first * inputs, planes, inputs, g.divisor(0, 0, 0), y + first);
      });
    }
    const BoxTables tables(g);
    const auto kernel = CONVEXT_SELECT_ISA(avg_forward_boxes<T>);
    run_box_rows(g, g.output, [&](int64_t plane, Range rows) {
      kernel(g, tables.boxes(), x + plane * inputs, rows, y + plane * outputs);
    });
  });
}

void pool_boxes_average_backward(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* dy = static_cast<const T*>(args.grad_output);
    T* dx = static_cast<T*>(args.output);
    const int64_t inputs = g.input_places(), outputs = g.output_places();
    if (over_all(g)) {
      const auto kernel = CONVEXT_SELECT_ISA(avg_backward_global<T>);
      return run_planes(g, [&](int64_t first, int64_t planes) {
        kernel(dy + first, planes, inputs, g.divisor(0, 0, 0), dx + first * inputs);
      });
    }
    const BoxTables tables(g, /*with_seers=*/true);
    const auto kernel = CONVEXT_SELECT_ISA(avg_backward_boxes<T>);
    run_box_rows(g, g.input, [&](int64_t plane, Range rows) {
      kernel(g, tables.boxes(), dy + plane * outputs, rows, dx + plane * inputs);
    });
  });
}

void pool_boxes_max(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const int64_t place_bytes = g.byte_places() ? 1 : 4;
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = static_cast<const T*>(args.input);
    T* y = static_cast<T*>(args.output);
    const int64_t inputs = g.input_places(), outputs = g.output_places();
    const auto places = [&](int64_t plane) {
      char* all = static_cast<char*>(args.places_out);
      return static_cast<void*>(all == nullptr ? nullptr : all + plane * outputs * place_bytes);
    };
    if (over_all(g)) {
      const auto kernel = CONVEXT_SELECT_ISA(max_forward_global<T>);
      return run_planes(g, [&](int64_t first, int64_t planes) {
        kernel(x + first * inputs, planes, inputs, y + first, places(first));
      });
    }
    const BoxTables tables(g);
    const auto kernel = CONVEXT_SELECT_ISA(max_forward_boxes<T>);
    run_box_rows(g, g.output, [&](int64_t plane, Range rows) {
      kernel(g, tables.boxes(), x + plane * inputs, rows, y + plane * outputs, places(plane));
    });
  });
}

void pool_boxes_max_backward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    over_all(args.geometry) ? max_backward_global<T>(args) : max_backward<T>(args);
  });
}

}  // namespace convext::cpu
