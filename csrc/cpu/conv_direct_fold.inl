// Direct convolution, gradient of the input where padding mirrors or repeats: an input place then receives what all
// padded places that show it would receive.
//
//   dx[c][w] = sum over places i that show w, taps, k of dy[k][seen_by(i, tap)] * w[k, c, tap]
//
// A task is (image, group, block of channels, input row, band of columns). Its lanes are the padded places that show
// the band's columns, listed place by place, kFoldLanes at a time; the tile holds, for every tap, the gathered output
// gradients of these lanes (zero where the tap sees none), and the register tile of conv_direct_slide.inl does the
// rest. Rows with several places are summed in turn. Lane sums are then added to their columns, and rounded once.
// Traffic: every output gradient is gathered once per tap and block of channels, one by one: about half as fast as
// zero padding where channels are many, far from it for depthwise.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kFoldLanes = 64;  // padded places gathered at a time

template <typename T>
DirectPlan fold_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  DirectPlan plan;
  plan.columns = least(g.input[2], kFoldLanes);
  plan.channels = least(g.group_inputs(), least(kMaxChannels, kSumsSize<A> / (2 * kFoldLanes)));
  plan.taps[2] = least(g.taps(), kTileSize<A> / kFoldLanes);
  plan.plane = plan.taps[2] * kFoldLanes;
  plan.reduce = least(g.group_outputs(), least(kTileSize<A> / plan.plane, kWeightsSize<A> / (kOuts * plan.taps[2])));
  plan.sum_stride = kFoldLanes;
  plan.column_bands = ceil_div(g.input[2], plan.columns);
  plan.row_bands = g.input[1];
  plan.depths = g.input[0];
  plan.channel_blocks = ceil_div(g.group_inputs(), plan.channels);
  plan.tasks = g.batch * g.groups * plan.channel_blocks * plan.depths * plan.row_bands * plan.column_bands;
  return plan;
}

// sums[c][lane] of one row's worth of padded places: all taps, all output channels.
template <typename T>
void fold_row(const ConvArguments& args, const DirectPlan& plan, SlideArrays<T>& a, int64_t n, int64_t group,
              int64_t c0, int64_t channels, int64_t d, int64_t h, const int64_t* place, int64_t lanes) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t outs = g.group_outputs(), weights = g.group_inputs() * g.taps();
  const T* dy = static_cast<const T*>(args.grad_output) + g.output_offset(n, group * outs, 0);
  const int64_t channel_stride = g.layout == Layout::contiguous ? g.output_places() : 1;
  const int64_t place_stride = g.layout == Layout::contiguous ? 1 : g.out_channels;
  const T* w = static_cast<const T*>(args.weight) + group * outs * weights + c0 * g.taps();
  for (int64_t first = 0; first < g.taps(); first += plan.taps[2])
    for (int64_t k0 = 0; k0 < outs; k0 += plan.reduce) {
      const int64_t some = least(plan.reduce, outs - k0);
      int64_t count = 0;
      for (int64_t tap = first; tap < least(first + plan.taps[2], g.taps()); ++tap) {
        const int64_t s = tap % g.kernel[2], r = tap / g.kernel[2] % g.kernel[1];
        const int64_t o = g.seen_by(0, d, tap / (g.kernel[2] * g.kernel[1])), p = g.seen_by(1, h, r);
        if (o < 0 || p < 0) continue;
        A* to = a.tile + count * kFoldLanes;
        for (int64_t j = 0; j < lanes; ++j) {
          const int64_t q = g.seen_by(2, place[j], s);
          const T* from = dy + k0 * channel_stride + ((o * g.output[1] + p) * g.output[2] + q) * place_stride;
          for (int64_t k = 0; k < some; ++k)
            to[k * plan.plane + j] = q < 0 ? A(0) : to_accumulate(from[k * channel_stride]);
        }
        a.taps[count] = {count * kFoldLanes, g.weight_tap(tap)};
        ++count;
      }
      const SlideSums<T> sink = {a.sums, plan.sum_stride, ceil_div(lanes, kLanes<A>)};
      slide_all(a, sink, channels, a.tile, plan.plane, some, count, g.taps(), w + k0 * weights, g.taps(), weights);
    }
}

template <typename T>
void fold_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t w0 = take(task, plan.column_bands) * plan.columns, h = take(task, plan.row_bands);
  const int64_t d = take(task, plan.depths), c0 = take(task, plan.channel_blocks) * plan.channels;
  const int64_t group = take(task, g.groups), n = task;
  const int64_t columns = least(plan.columns, g.input[2] - w0), channels = least(plan.channels, g.group_inputs() - c0);
  SlideArrays<T> a;
  A* total = a.sums + kSumsSize<A> / 2;  // [channel][column]
  for (int64_t i = 0; i < channels * kFoldLanes; ++i) total[i] = 0;
  const Preimages ds = g.preimages(0, d), hs = g.preimages(1, h);
  int64_t place[kFoldLanes], column[kFoldLanes], lanes = 0;
  for (int64_t w = w0; w < w0 + columns; ++w) {
    const Preimages ws = g.preimages(2, w);
    const int64_t count = ws.count();
    for (int64_t m = 0; m < count; ++m) {
      place[lanes] = ws[m];
      column[lanes++] = w - w0;
      if (lanes < kFoldLanes && !(w == w0 + columns - 1 && m == count - 1)) continue;
      for (int64_t i = 0; i < channels * kFoldLanes; ++i) a.sums[i] = 0;
      for (int64_t i = 0; i < ds.count(); ++i)
        for (int64_t j = 0; j < hs.count(); ++j)
          fold_row(args, plan, a, n, group, c0, channels, ds[i], hs[j], place, lanes);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < lanes; ++i) total[c * kFoldLanes + column[i]] += a.sums[c * kFoldLanes + i];
      lanes = 0;
    }
  }
  T* dx = static_cast<T*>(args.output);
  const int64_t at = (d * g.input[1] + h) * g.input[2] + w0;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t w = 0; w < columns; ++w)
      dx[g.input_offset(n, group * g.group_inputs() + c0 + c, at + w)] = from_accumulate<T>(total[c * kFoldLanes + w]);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
