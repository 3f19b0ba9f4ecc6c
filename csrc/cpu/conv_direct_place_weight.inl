// Direct convolution, gradient of the weight for one channel in and out per group, channels_last, kernels of 3 x 3 and
// a stride of 1 or 2: depthwise layers. Lanes are channels, read where they lie; the sums of all 9 taps stay in
// registers while places pass:
//
//   sums[r][s][lane] += dy[p][q][lane] * x[p stride + r][q stride + s][lane]
//
// With a stride of 1 the columns of three rows of x pass one by one, each met by the three last places of a row of dy.
// A task is a line of channels over all images. Traffic: both operands once where three rows of the task's channels
// stay in the first-level cache.
#include "conv_direct_plane_weight.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// x, dy: of an image, from the first of `channels` on; kPart: less than a vector.
template <typename T, int kStride, bool kPart>
__attribute__((noinline)) void image_places(Accumulate<T>* sums, const T* x, const T* dy, const ConvGeometry& g,
                                            int64_t channels) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t step = g.in_channels, width = g.input[2], columns = g.output[2], pad = g.pad_before[2];
  const int64_t x_row = width * step, dy_row = columns * step;
  const auto at = [&](const T* from) __attribute__((always_inline)) {
    if constexpr (kPart)
      return load_part(from, 0, int(channels));
    else
      return load(from);
  };
  Vec<A> sum[kPlaneTaps][kPlaneTaps];
#pragma GCC unroll 9
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) sum[i / kPlaneTaps][i % kPlaneTaps] = load(sums + i * kCount);
  for (int64_t p = 0; p < g.output[1]; ++p, dy += dy_row) {
    const int64_t h = p * kStride - g.pad_before[1];  // what the first tap sees
    const int64_t first = clamp(-h, 0, kPlaneTaps), last = clamp(g.input[1] - h, 0, kPlaneTaps);
    const bool all_rows = first == 0 && last == kPlaneTaps;
    const T* row = x + h * x_row;
    if constexpr (kStride == 1) {
      Vec<A> seen[kPlaneTaps] = {};  // places q, q - 1 and q - 2 of dy
#pragma GCC unroll 2
      for (int s = 1; s < kPlaneTaps; ++s)
        if (pad - s >= 0 && pad - s < columns) seen[s - 1] = at(dy + (pad - s) * step);
      for (int64_t w = 0, q = pad; w < width; ++w, ++q, row += step) {
        seen[2] = seen[1];
        seen[1] = seen[0];
        if (q < columns) seen[0] = at(dy + q * step);
        if (all_rows && q >= kPlaneTaps - 1 && q < columns) {
          __builtin_prefetch(row + kPlaneTaps * x_row);
          __builtin_prefetch(dy + dy_row + q * step);
#pragma GCC unroll 3
          for (int r = 0; r < kPlaneTaps; ++r) {
            const Vec<A> in = at(row + r * x_row);
#pragma GCC unroll 3
            for (int s = 0; s < kPlaneTaps; ++s) sum[r][s] += seen[s] * in;
          }
          continue;
        }
#pragma GCC unroll 3
        for (int r = 0; r < kPlaneTaps; ++r) {
          if (r < first || r >= last) continue;
          const Vec<A> in = at(row + r * x_row);
#pragma GCC unroll 3
          for (int s = 0; s < kPlaneTaps; ++s)
            if (q >= s && q - s < columns) sum[r][s] += seen[s] * in;
        }
      }
    } else {
      for (int64_t q = 0; q < columns; ++q) {
        const int64_t w = q * kStride - pad;
        const Vec<A> out = at(dy + q * step);
        const T* from = row + w * step;
        if (all_rows && w >= 0 && w + kPlaneTaps <= width) {
          __builtin_prefetch(from + 3 * x_row);
          __builtin_prefetch(from + 3 * x_row + step);
          __builtin_prefetch(from + 4 * x_row);
          __builtin_prefetch(from + 4 * x_row + step);
#pragma GCC unroll 9
          for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i)
            sum[i / kPlaneTaps][i % kPlaneTaps] += out * at(from + i / kPlaneTaps * x_row + i % kPlaneTaps * step);
          continue;
        }
#pragma GCC unroll 9
        for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) {
          const int r = i / kPlaneTaps, s = i % kPlaneTaps;
          if (r >= first && r < last && w + s >= 0 && w + s < width) sum[r][s] += out * at(from + r * x_row + s * step);
        }
      }
    }
  }
#pragma GCC unroll 9
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) store(sums + i * kCount, sum[i / kPlaneTaps][i % kPlaneTaps]);
}

template <typename T>
bool suits_place_weight(const ConvGeometry& g) {
  return g.group_inputs() == 1 && g.group_outputs() == 1 && g.padding_mode == PaddingMode::zeros &&
         g.layout == Layout::channels_last && g.in_channels * 2 > kLanes<Accumulate<T>> && g.kernel[0] == 1 &&
         g.kernel[1] == kPlaneTaps && g.kernel[2] == kPlaneTaps && g.input[0] == 1 && g.output[0] == 1 &&
         g.dilation[1] == 1 && g.dilation[2] == 1 && g.stride[1] == g.stride[2] && g.stride[1] <= 2;
}

template <typename T>
DirectPlan place_weight_plan(const ConvGeometry& g) {
  DirectPlan plan;
  plan.channels = greatest<int64_t>(kLanes<Accumulate<T>>, 64 / int64_t(sizeof(T)));
  plan.tasks = ceil_div(g.in_channels, plan.channels);
  return plan;
}

template <typename T>
void place_weight_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>, kTaps = kPlaneTaps * kPlaneTaps;
  const ConvGeometry& g = args.geometry;
  const int64_t end = least((task + 1) * plan.channels, g.in_channels);
  for (int64_t c = task * plan.channels; c < end; c += kCount) {
    const int64_t channels = least(end - c, kCount);
    alignas(64) A sums[kTaps * kCount] = {};
    auto* run = g.stride[1] == 1     ? channels == kCount ? image_places<T, 1, false> : image_places<T, 1, true>
                : channels == kCount ? image_places<T, 2, false>
                                     : image_places<T, 2, true>;
    for (int64_t n = 0; n < g.batch; ++n)
      run(sums, static_cast<const T*>(args.input) + n * g.in_channels * g.input_places() + c,
          static_cast<const T*>(args.grad_output) + n * g.in_channels * g.output_places() + c, g, channels);
    T* dw = static_cast<T*>(args.output) + c * kTaps;
    for (int64_t l = 0; l < channels; ++l)
      for (int64_t i = 0; i < kTaps; ++i)
        dw[l * kTaps + (g.flip_kernel ? kTaps - 1 - i : i)] = from_accumulate<T>(sums[i * kCount + l]);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
