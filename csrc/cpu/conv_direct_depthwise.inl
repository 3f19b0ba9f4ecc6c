// Direct convolution, gradient of the weight for depthwise (one input and one output channel per group) in
// channels_last: every place is a vector of channels, so a tap is one multiply-add of two loaded vectors and no lane is
// ever idle inside a row.
//
// A task is (block of channels, kernel row); per tap and row of outputs a vector of sums runs along the row, all images
// and rows in order: one task for few channels and a kernel of one row.
//
// Traffic: rows come from first-level cache after their first use; two loads per multiply-add.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kBlock = 4;      // vectors of channels
constexpr int64_t kMaxMet = 1024;  // places of a strip of columns

// sums[0, channels) += x * dy along one row of outputs; at[q]: the place the tap sees, or -1.
template <typename T, int kVectors, bool kPart>
void depthwise_weight_kernel(Accumulate<T>* sums, int64_t places, const int64_t* at, const T* x, const T* dy,
                             int64_t stride, int64_t some) {
  using A = Accumulate<T>;
  constexpr int kCount = kLanes<A>;
  Vec<A> sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = load(sums + v * kCount);
  for (int64_t q = 0; q < places; ++q) {
    if (at[q] < 0) continue;
    const T *from = x + at[q] * stride, *out = dy + q * stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[v] +=
          kPart ? load_some(from, 0, some) * load_some(out, 0, some) : load(from + v * kCount) * load(out + v * kCount);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store(sums + v * kCount, sum[v]);
}

bool depthwise_channels_last(const ConvGeometry& g) {
  return g.layout == Layout::channels_last && g.groups > 1 && g.group_inputs() == 1 && g.group_outputs() == 1;
}

template <typename T>
int64_t depthwise_lanes(const ConvGeometry& g) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  return least(kBlock, ceil_div(g.groups, kCount)) * kCount;
}

template <typename T>
DirectPlan depthwise_weight_plan(const ConvGeometry& g) {
  DirectPlan plan;
  plan.channels = depthwise_lanes<T>(g);
  plan.channel_blocks = ceil_div(g.groups, plan.channels);
  plan.taps[2] = least(g.kernel[2], least(kSumsSize<Accumulate<T>> / plan.channels, int64_t(kMaxVectors)));
  plan.tap_blocks[2] = ceil_div(g.kernel[2], plan.taps[2]);
  plan.columns = least(g.output[2], kMaxMet / plan.taps[2]);
  plan.tasks = plan.channel_blocks * g.kernel[0] * g.kernel[1] * plan.tap_blocks[2];
  return plan;
}

template <typename T>
void depthwise_weight_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t s0 = take(task, plan.tap_blocks[2]) * plan.taps[2], r = take(task, g.kernel[1]);
  const int64_t t = take(task, g.kernel[0]), c0 = task * plan.channels, stride = g.groups, lanes = plan.channels;
  const int64_t channels = least(lanes, g.groups - c0), taps = least(plan.taps[2], g.kernel[2] - s0);
  alignas(64) A sums[kSumsSize<A>];
  int64_t at[kMaxMet];
  for (int64_t i = 0; i < taps * lanes; ++i) sums[i] = 0;
  for (int64_t q0 = 0; q0 < g.output[2]; q0 += plan.columns) {
    const int64_t places = least(plan.columns, g.output[2] - q0);
    for (int64_t s = 0; s < taps; ++s)
      for (int64_t j = 0; j < places; ++j) at[s * plan.columns + j] = g.source(2, q0 + j, s0 + s);
    for (int64_t n = 0; n < g.batch; ++n)
      for (int64_t o = 0; o < g.output[0]; ++o)
        for (int64_t p = 0; p < g.output[1]; ++p) {
          const int64_t d = g.source(0, o, t), h = g.source(1, p, r);
          if (d < 0 || h < 0) continue;
          const T* x = static_cast<const T*>(args.input) + g.input_offset(n, c0, (d * g.input[1] + h) * g.input[2]);
          const T* dy = static_cast<const T*>(args.grad_output) +
                        g.output_offset(n, c0, (o * g.output[1] + p) * g.output[2] + q0);
          for (int64_t s = 0; s < taps; ++s)
            for (int64_t c = 0; c < channels;) {
              const int64_t left = channels - c;
              const bool four = left >= 4 * kCount, two = left >= 2 * kCount, one = left >= kCount;
              auto* kernel = four  ? depthwise_weight_kernel<T, 4, false>
                             : two ? depthwise_weight_kernel<T, 2, false>
                             : one ? depthwise_weight_kernel<T, 1, false>
                                   : depthwise_weight_kernel<T, 1, true>;
              kernel(sums + s * lanes + c, places, at + s * plan.columns, x + c, dy + c, stride, least(left, kCount));
              c += (four ? 4 : two ? 2 : 1) * kCount;
            }
        }
  }
  T* dw = static_cast<T*>(args.output);
  for (int64_t s = 0; s < taps; ++s)
    for (int64_t c = 0; c < channels; ++c)
      dw[g.weight_offset(c0 + c, 0, (t * g.kernel[1] + r) * g.kernel[2] + s0 + s)] =
          from_accumulate<T>(sums[s * lanes + c]);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
