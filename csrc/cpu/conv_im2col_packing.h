// The weight of im2col: packed[group][panel][row][lane], rows in the order of u's. Beforehand, all of it; or, on the
// way, the panels of some outputs and one block of the sum.
#pragma once
#include <vector>

#include "conv_im2col_plan.h"
#include "phases.h"

namespace convext::cpu::im2col {

constexpr int64_t kPackedRows = 128;  // of the weight, about so many in first-level cache

// A panel of pairs: `count` outputs from `from` on. Channels go through `line` widened, a few at a time.
inline void pack_pairs(const PackArguments& args, const BFloat16* from, int64_t count, int64_t width,
                       BFloat16Pair* to) {
  const ConvGeometry& g = args.geometry;
  const int64_t inputs = g.group_inputs(), taps = g.taps(), pairs = ceil_div(inputs, 2), rows = inputs * taps;
  const bool taps_first = g.layout == Layout::channels_last;
  const int64_t most = 2 * ceil_div(kPackedRows, 2 * taps);
  std::vector<float> line(most * taps * width);
  for (int64_t c = 0; c < inputs; c += most) {
    const int64_t some = std::min(most, inputs - c);
    const int64_t next_channel = (args.channels_last ? 1 : taps) * width,
                  next_tap = (args.channels_last ? some : 1) * width;
    if (args.channels_last)
      for (int64_t tap = 0; tap < taps; ++tap)
        unfold<BFloat16>().transpose(from + tap * inputs + c, rows, count, some, line.data() + tap * next_tap, width,
                                     width);
    else
      unfold<BFloat16>().transpose(from + c * taps, rows, count, some * taps, line.data(), width, width);
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < some; i += 2) {
        const float* even = line.data() + i * next_channel + tap * next_tap;
        const int64_t row = taps_first ? tap * pairs + (c + i) / 2 : (c + i) / 2 * taps + tap;
        bfloat16_pairs().join(even, i + 1 < some ? even + next_channel : nullptr, width, to + row * width);
      }
  }
}

template <typename T, typename E>
void pack_weight(Elements<T, E> elements, const PackArguments& args) {
  const ConvGeometry& g = args.geometry;
  const ForwardPlan plan = plan_forward(elements, g);
  const T* w = static_cast<const T*>(args.weight);
  E* packed = static_cast<E*>(args.packed);
  const int64_t inputs = g.group_inputs(), taps = g.taps(), rows = inputs * taps, width = plan.output_width;
  const bool taps_first = g.layout == Layout::channels_last;
  parallel_for(g.groups * plan.weight_panels, [&](int64_t task, int) {
    const int64_t first = task % plan.weight_panels * width, count = std::min(width, g.group_outputs() - first);
    const Phase phase("pack weight");
    const T* from = w + (task / plan.weight_panels * g.group_outputs() + first) * rows;
    E* to = packed + task * plan.reduction.total * width;
    if constexpr (kPairs<E>) {
      pack_pairs(args, from, count, width, to);
    } else {
      if (taps == 1 || inputs == 1 || args.channels_last == taps_first) {
        unfold<T>().transpose(from, rows, count, rows, to, width, width);
        return;
      }
      // Transposed besides: `inner` elements of the stored order are `outer` apart in u's.
      const int64_t inner = taps_first ? taps : inputs, outer = taps_first ? inputs : taps;
      for (int64_t i = 0; i < outer; ++i)
        unfold<T>().transpose(from + i * inner, rows, count, inner, to + i * width, outer * width, width);
    }
  });
}

// The weight of one tap as it lies: from output to output, and from input to input.
template <typename T>
struct PointWeight {
  const T* data;
  int64_t output, input;
};

// Panels of `outputs`, as wide as `width`, for some of the inputs.
template <typename T>
void pack_points(const PointWeight<T>& weight, Span outputs, Span inputs, int64_t width, T* to) {
  const Phase phase("pack weight");
  const int64_t panel = inputs.size() * width;
  if (weight.input == 1) {
    for (int64_t k = outputs.begin; k < outputs.end; k += width, to += panel)
      unfold<T>().transpose(weight.data + k * weight.output + inputs.begin, weight.output,
                            std::min(width, outputs.end - k), inputs.size(), to, width, width);
    return;
  }
  for (int64_t c = inputs.begin; c < inputs.end; ++c, to += width) {
    const T* from = weight.data + c * weight.input;
    T* row = to;
    for (int64_t k = outputs.begin; k < outputs.end; k += width, row += panel)
      std::copy(from + k, from + std::min(k + width, outputs.end), row);
  }
}

}  // namespace convext::cpu::im2col
