// Boxes: contiguous windows of unequal sizes (adaptive pooling), wide ones of the average, and one window over all.
//
// The rows of a box are shared by all boxes beside it: averages, and maxima without places, first join them into one,
// with vectors of columns, then a vector's lanes of such rows, turned, along their columns
// (pool_direct_boxes_reduce.inl): rows x columns / lanes steps for the first, half a cycle per column for turning,
// columns / lanes for the second. Planes of a few hundred places are turned whole instead, and windows read in order
// (pool_direct_boxes_small.inl); averages of single rows are added up where they lie (pool_direct_boxes_windows.inl,
// AVX-512). With places small boxes are read tap by tap, with planes as lanes
// (pool_direct_boxes_lanes.inl); of more rows each column gets its greatest and the row that has it, and windows are
// cut along the columns one by one. The gradient of an average goes the other way: rows of dy that see an input row are
// summed, turned, added up column by column and turned back, and the next input rows, often seen by the same, are
// copies. That of a maximum adds each dy to the place that won, in the order of the outputs: one addition whatever the
// box; halves are added up in memory of their own. Small channels_last boxes are looked at by their places instead,
// which are then written once and in order. One window over all needs no tables: a plane is a run of numbers, its
// gradient of the maximum one number among zeros. A task is some rows of a vector's lanes of planes, or several small
// planes. Traffic: input and output once from memory; reduced rows stay in the nearest cache.
#include "pool_direct_boxes.h"

#include <algorithm>
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
constexpr int64_t kClearedBytes = 1 << 18;    // at once
constexpr int64_t kSeenWindow = 64;           // places of a window, up to which input places look at their outputs

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
  const int64_t places = g.input_places(), planes = g.batch * g.channels;
  const int64_t together = last ? g.channels : std::min(ceil_div(kPoolPart, places), planes);
  const int64_t step = last ? g.channels : 1, pitch = last ? 1 : places;  // to the next place, to the next plane
  parallel_for(ceil_div(planes, together), [&](int64_t task, int) {
    const int64_t first = task * together, count = std::min(together, planes - first);
    T* dx = static_cast<T*>(args.output) + first * places;
    std::memset(static_cast<void*>(dx), 0, sizeof(T) * places * count);
    for (int64_t c = 0; c < count; ++c) {
      const int64_t winner = g.byte_places() ? int64_t(static_cast<const uint8_t*>(args.places)[first + c])
                                             : int64_t(static_cast<const int32_t*>(args.places)[first + c]);
      if (winner >= 0 && winner < places)
        dx[c * pitch + winner * step] = static_cast<const T*>(args.grad_output)[first + c];
    }
  });
}

// Zeros, and what was won. S: what is added up in; dx itself (T) where that is precise enough or no place is won twice.
// A task has a few planes, or some channels of a channels_last image, where dx is cleared beforehand.
template <typename T, typename S>
void max_backward_in(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const BoxTables tables(g);
  constexpr bool kApart = !std::is_same_v<T, S>;
  const bool last = g.layout == Layout::channels_last;
  const int64_t most = !last ? kPoolPlanes : kApart ? kScatterHalfChannels : kScatterChannels;
  const int64_t places = g.input_places(), outputs = g.output_places(), blocks = ceil_div(g.channels, most);
  const int64_t pitch = !last ? 1 : kApart ? most : g.channels;  // of sums, from place to place
  const auto distances = tap_distances(g, pitch), starts = box_starts(g, tables.boxes(), pitch);
  if (last && !kApart) {
    const int64_t bytes = g.input_elements() * sizeof(T), parts = ceil_div(bytes, kClearedBytes);
    parallel_for(parts, [&](int64_t part, int) {
      const int64_t first = part * kClearedBytes, end = first + kClearedBytes < bytes ? first + kClearedBytes : bytes;
      std::memset(static_cast<char*>(args.output) + first, 0, end - first);
    });
  }
  parallel_for(g.batch * blocks, [&](int64_t task, int) {
    const int64_t image = task / blocks, first = task % blocks * most, plane = image * g.channels;
    const int64_t lanes = first + most < g.channels ? most : g.channels - first;
    T* dx = static_cast<T*>(args.output) + plane * places + (last ? first : first * places);
    const int64_t from = plane * outputs + (last ? first : first * outputs);
    const std::unique_ptr<S[]> memory(kApart ? new S[places * most] : nullptr);
    S* sum = kApart ? memory.get() : reinterpret_cast<S*>(dx);
    if (kApart || !last) std::memset(static_cast<void*>(sum), 0, sizeof(S) * places * (last ? most : lanes));
    const Lanes at = last ? Lanes{lanes, g.channels, 1, 1} : Lanes{lanes, 1, outputs, places};
    add_to_winners(g, starts.get(), distances.get(), static_cast<const T*>(args.grad_output) + from, args.places, from,
                   at, sum, pitch);
    if constexpr (kApart) {
      for (int64_t i = 0; !last && i < places * lanes; ++i) dx[i] = from_accumulate<T>(sum[i]);
      for (int64_t i = 0; last && i < places; ++i)
        for (int64_t l = 0; l < lanes; ++l) dx[i * g.channels + l] = from_accumulate<T>(sum[i * most + l]);
    }
  });
}
template <typename T>
void max_backward(const PoolArguments& args) {
  if (disjoint(args.geometry))
    max_backward_in<T, T>(args);
  else
    max_backward_in<T, Accumulate<T>>(args);
}

// Rows of the input's gradient, channels_last: run(image, rows [first, last)).
template <typename Run>
void run_image_rows(const PoolGeometry& g, const Run& run) {
  const int64_t rows = g.input[0] * g.input[1];
  int64_t splits = g.input_places() * g.channels / kPoolPart;
  splits = splits < 1 ? 1 : splits < rows ? splits : rows;
  parallel_for(g.batch * splits, [&](int64_t task, int) {
    const int64_t split = task % splits;
    run(task / splits, Range{rows * split / splits, rows * (split + 1) / splits});
  });
}

// channels_last: every place of the input looks at the outputs that see it.
template <typename T>
void max_backward_channels(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const BoxTables tables(g, /*with_seers=*/true);
  const auto kernel = CONVEXT_SELECT_ISA(max_backward_boxes_channels<T>);
  const int64_t inputs = g.input_places() * g.channels, outputs = g.output_places() * g.channels;
  run_image_rows(g, [&](int64_t image, Range rows) {
    kernel(g, tables.boxes(), static_cast<const T*>(args.grad_output) + image * outputs, args.places, image * outputs,
           rows, static_cast<T*>(args.output) + image * inputs);
  });
}
template <typename T>
void avg_backward_channels(const PoolArguments& args) {
  const PoolGeometry& g = args.geometry;
  const BoxTables tables(g, /*with_seers=*/true);
  const auto kernel = CONVEXT_SELECT_ISA(avg_backward_boxes_channels<T>);
  const int64_t inputs = g.input_places() * g.channels, outputs = g.output_places() * g.channels;
  run_image_rows(g, [&](int64_t image, Range rows) {
    kernel(g, tables.boxes(), static_cast<const T*>(args.grad_output) + image * outputs, rows,
           static_cast<T*>(args.output) + image * inputs);
  });
}

}  // namespace

template <typename T>
BoxMaxima<T> box_maxima() {
  return CONVEXT_SELECT_ISA(max_forward_boxes<T>);
}
template <typename T>
BoxValues<T> box_values() {
  return CONVEXT_SELECT_ISA(max_values_boxes<T>);
}
#define CONVEXT_BOXES_OF(T)           \
  template BoxMaxima<T> box_maxima(); \
  template BoxValues<T> box_values()
CONVEXT_BOXES_OF(float);
CONVEXT_BOXES_OF(double);
CONVEXT_BOXES_OF(Half);
CONVEXT_BOXES_OF(BFloat16);
#undef CONVEXT_BOXES_OF

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
    run_box_planes(g, CONVEXT_SELECT_ISA(box_lanes<T>)(), g.output, [&](int64_t first, int64_t planes, Range rows) {
      kernel(g, tables.boxes(), x + first * inputs, planes, rows, y + first * outputs);
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
    if (g.layout == Layout::channels_last) return avg_backward_channels<T>(args);
    if (over_all(g)) {
      const auto kernel = CONVEXT_SELECT_ISA(avg_backward_global<T>);
      return run_planes(g, [&](int64_t first, int64_t planes) {
        kernel(dy + first, planes, inputs, g.divisor(0, 0, 0), dx + first * inputs);
      });
    }
    const BoxTables tables(g, /*with_seers=*/true);
    const auto kernel = CONVEXT_SELECT_ISA(avg_backward_boxes<T>);
    run_box_planes(g, CONVEXT_SELECT_ISA(box_lanes<T>)(), g.input, [&](int64_t first, int64_t planes, Range rows) {
      kernel(g, tables.boxes(), dy + first * outputs, planes, rows, dx + first * inputs);
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
    if (args.places_out == nullptr) {
      const auto kernel = CONVEXT_SELECT_ISA(max_values_boxes<T>);
      return run_box_planes(g, CONVEXT_SELECT_ISA(box_lanes<T>)(), g.output,
                            [&](int64_t first, int64_t planes, Range rows) {
                              kernel(g, tables.boxes(), x + first * inputs, planes, rows, y + first * outputs);
                            });
    }
    const int lanes = CONVEXT_SELECT_ISA(box_lanes<T>)();
    if (lanes_fit(g, lanes)) {
      const auto kernel = CONVEXT_SELECT_ISA(max_forward_lanes<T>);
      return run_box_planes(g, lanes, g.output, [&](int64_t first, int64_t planes, Range rows) {
        kernel(g, tables.boxes(), x + first * inputs, planes, rows, y + first * outputs, places(first));
      });
    }
    const auto kernel = box_maxima<T>();
    run_box_rows(g, g.output, [&](int64_t plane, Range rows) {
      kernel(g, tables.boxes(), x + plane * inputs, rows, y + plane * outputs, places(plane));
    });
  });
}

void pool_boxes_max_backward(const PoolArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (args.geometry.layout == Layout::channels_last && args.geometry.window() <= kSeenWindow)
      return max_backward_channels<T>(args);
    over_all(args.geometry) ? max_backward_global<T>(args) : max_backward<T>(args);
  });
}

}  // namespace convext::cpu
