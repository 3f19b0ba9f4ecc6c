// Direct convolution, gradient of the input for depthwise (one input and one output channel per group) in
// channels_last: every place is a vector of channels, so a tap is one multiply-add of two loaded vectors and no lane is
// ever idle inside a row.
//
//   dx[place][c] = sum over what sees the place of dy[other place][c] * w[tap][c]
//
// What a row or a column meets is listed first: (place of dy, tap) pairs, from `seen_by` of every preimage. Then it is
// one loop, whatever the stride, dilation and padding. A task is (image, depth, band of rows, block of kBlock vectors
// of channels); its weights are turned into [tap][c] once.
//
// Traffic: rows come from first-level cache after their first use; two loads per multiply-add.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kBlock = 4;        // vectors of channels
constexpr int64_t kMinPlaces = 256;  // of a task: pays for turning the weights
constexpr int64_t kMaxMet = 1024;    // listed pairs of a strip of columns

// Element offsets of a source place (row, column) and of its tap's weights.
struct Met {
  int64_t place, weight;
};

// The channels of one task: whole vectors, then a part of one.
template <typename T, int kVectors, bool kPart>
void depthwise_kernel(Accumulate<T>* sums, int64_t lanes, int64_t places, const Met* columns, const int64_t* met,
                      int64_t most_met, const Met* rows, int64_t row_count, const T* x, const Accumulate<T>* w,
                      int64_t some) {
  using A = Accumulate<T>;
  constexpr int kCount = kLanes<A>;
  for (int64_t j = 0; j < places; ++j, sums += lanes, columns += most_met) {
    if (met[j] == 0) continue;
    Vec<A> sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] = load(sums + v * kCount);
    for (int64_t row = 0; row < row_count; ++row)
      for (int64_t i = 0; i < met[j]; ++i) {
        const T* from = x + rows[row].place + columns[i].place;
        const A* weight = w + rows[row].weight + columns[i].weight;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          sum[v] += (kPart ? load_some(from, 0, some) : load(from + v * kCount)) * load(weight + v * kCount);
      }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + v * kCount, sum[v]);
  }
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
DirectPlan depthwise_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  DirectPlan plan;
  const int64_t* size = g.input;
  plan.channels = depthwise_lanes<T>(g);
  plan.channel_blocks = ceil_div(g.groups, plan.channels);
  plan_taps(plan, g.kernel, least(kTileSize<A> / plan.channels, kMaxTaps));
  plan.columns = least(size[2], least(kSumsSize<A> / plan.channels, kMaxMet / plan.taps[2]));
  plan.rows = least(size[1], ceil_div(kMinPlaces, size[2]));
  plan.row_bands = ceil_div(size[1], plan.rows);
  plan.depths = size[0];
  plan.tasks = g.batch * plan.channel_blocks * plan.depths * plan.row_bands;
  return plan;
}

// The source place that destination place `at` meets through `tap` of one axis; `shown`: which of its preimages.
CONVEXT_INLINE int64_t met_place(const ConvGeometry& g, int axis, int64_t at, int64_t shown, int64_t tap) {
  const Preimages places = g.preimages(axis, at);
  return shown < places.count() ? g.seen_by(axis, places[shown], tap) : -1;
}

// The largest number of preimages in [first, last).
int64_t most_shown(const ConvGeometry& g, int axis, int64_t first, int64_t last) {
  int64_t most = 1;
  if (g.padding_mode != PaddingMode::zeros)
    for (int64_t i = first; i < last; ++i) most = greatest(most, g.preimages(axis, i).count());
  return most;
}

template <typename T>
void depthwise_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t *size = g.input, *source = g.output;
  const int64_t h0 = take(task, plan.row_bands) * plan.rows, d = take(task, plan.depths);
  const int64_t c0 = take(task, plan.channel_blocks) * plan.channels, n = task, stride = g.groups;
  const int64_t h1 = least(size[1], h0 + plan.rows), channels = least(plan.channels, g.groups - c0);
  const int64_t lanes = plan.channels, taps = g.taps();
  const T* x = static_cast<const T*>(args.grad_output);
  x += n * source[0] * source[1] * source[2] * stride + c0;
  const T* w = static_cast<const T*>(args.weight) + c0 * taps;
  T* y = static_cast<T*>(args.output) + n * size[0] * size[1] * size[2] * stride + c0;

  alignas(64) A weights[kTileSize<A>], sums[kSumsSize<A>];
  Met columns[kMaxMet], rows[kMaxTaps];
  int64_t met[kSumsSize<A> / kCount], loaded = -1;  // `loaded`: first tap of the weights at hand

  for (int64_t w0 = 0; w0 < size[2]; w0 += plan.columns) {
    const int64_t places = least(plan.columns, size[2] - w0);
    const int64_t shown_w = most_shown(g, 2, w0, w0 + places);
    int64_t listed_tap = -1, listed_shown = -1;
    for (int64_t h = h0; h < h1; ++h) {
      for (int64_t j = 0; j < places; ++j)
        for (int64_t v = 0; v < lanes; v += kCount) store(sums + j * lanes + v, Vec<A>{});
      const int64_t shown_d = most_shown(g, 0, d, d + 1), shown_h = most_shown(g, 1, h, h + 1);
      for (int64_t t0 = 0; t0 < g.kernel[0]; t0 += plan.taps[0])
        for (int64_t r0 = 0; r0 < g.kernel[1]; r0 += plan.taps[1])
          for (int64_t s0 = 0; s0 < g.kernel[2]; s0 += plan.taps[2]) {
            const int64_t t1 = least(g.kernel[0], t0 + plan.taps[0]), r1 = least(g.kernel[1], r0 + plan.taps[1]);
            const int64_t s1 = least(g.kernel[2], s0 + plan.taps[2]);
            const int64_t first = (t0 * g.kernel[1] + r0) * g.kernel[2] + s0;
            if (first != loaded) {
              A* to = weights;
              for (int64_t t = t0; t < t1; ++t)
                for (int64_t r = r0; r < r1; ++r)
                  for (int64_t s = s0; s < s1; ++s, to += lanes) {
                    const T* from = w + g.weight_tap((t * g.kernel[1] + r) * g.kernel[2] + s);
                    for (int64_t c = 0; c < lanes; ++c) to[c] = c < channels ? to_accumulate(from[c * taps]) : A(0);
                  }
              loaded = first;
            }
            int64_t row_count = 0;
            for (int64_t a = 0; a < shown_d; ++a)
              for (int64_t b = 0; b < shown_h; ++b) {
                row_count = 0;
                for (int64_t t = t0; t < t1; ++t)
                  for (int64_t r = r0; r < r1; ++r) {
                    const int64_t at_d = met_place(g, 0, d, a, t), at_h = met_place(g, 1, h, b, r);
                    if (at_d < 0 || at_h < 0) continue;
                    rows[row_count++] = {(at_d * source[1] + at_h) * source[2] * stride,
                                         ((t - t0) * (r1 - r0) + r - r0) * (s1 - s0) * lanes};
                  }
                if (row_count == 0) continue;
                for (int64_t e = 0; e < shown_w; ++e) {
                  if (listed_tap != s0 || listed_shown != e) {
                    for (int64_t j = 0; j < places; ++j) {
                      met[j] = 0;
                      for (int64_t s = s0; s < s1; ++s) {
                        const int64_t at = met_place(g, 2, w0 + j, e, s);
                        if (at >= 0) columns[j * plan.taps[2] + met[j]++] = {at * stride, (s - s0) * lanes};
                      }
                    }
                    listed_tap = s0;
                    listed_shown = e;
                  }
                  for (int64_t c = 0; c < channels;) {
                    const int64_t left = channels - c;
                    const bool four = left >= 4 * kCount, two = left >= 2 * kCount, one = left >= kCount;
                    auto* kernel = four  ? depthwise_kernel<T, 4, false>
                                   : two ? depthwise_kernel<T, 2, false>
                                   : one ? depthwise_kernel<T, 1, false>
                                         : depthwise_kernel<T, 1, true>;
                    kernel(sums + c, lanes, places, columns, met, plan.taps[2], rows, row_count, x + c, weights + c,
                           least(left, kCount));
                    c += (four ? 4 : two ? 2 : 1) * kCount;
                  }
                }
              }
          }
      T* to = y + ((d * size[1] + h) * size[2] + w0) * stride;
      for (int64_t j = 0; j < places; ++j, to += stride)
        for (int64_t c = 0; c < channels; c += kCount) {
          if (c + kCount <= channels)
            store(to + c, load(sums + j * lanes + c));
          else
            store_some(to + c, load(sums + j * lanes + c), channels - c, 1);
        }
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
