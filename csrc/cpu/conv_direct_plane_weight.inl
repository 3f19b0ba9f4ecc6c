// Direct convolution, gradient of the weight for few input channels per group, contiguous planes, kernels of 3 x 3 and
// a stride of 1 or 2: depthwise layers, first layers. Lanes are neighbouring output columns, nothing is copied or
// turned:
//
//   sums[r][s][lane] += dy[p][q + lane] * x[p stride + r][(q + lane) stride + s]      of one channel in, one out
//
// A vector of columns goes down the rows of a band, with the sums of all 9 taps in registers. With a stride of 1 a row
// of x is loaded at three places and met by the rows of dy that see it, the last three; with 2 a row of dy by the rows
// of x that it sees. Lanes outside a row are never multiplied. In the end lanes are added up. A task is a
// few output channels over all images. Traffic: dy once (from then on from the first-level cache), the input once for
// every output channel of a group.
#include "conv_direct_tile.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kPlaneColumns = 32;         // vectors of a row, whose loads are laid out once
constexpr int kPlaneTaps = kWeightPlaneTaps;  // each way
constexpr int64_t kPlaneBand = 3072;          // elements of x in a band: with dy they stay in the first-level cache
constexpr int64_t kPlanePlaces = 16 * 1024;   // outputs of a task
constexpr int64_t kMostPlaneChannels = 32;    // of a task

// How a vector of columns is loaded: as it is; what is outside the row cleared; or not even read, for it may lie
// outside the tensor.
enum class Columns { whole, cleared, part };

// What a vector of columns loads: from `at` on, lanes [first, last).
template <typename A>
struct PlanePart {
  int64_t at;
  int first, last;
  LaneMask<A> mask;
};

template <typename T, Columns kHow, typename A = Accumulate<T>>
CONVEXT_INLINE Vec<A> load_columns(const T* row, const PlanePart<A>& part) {
  if constexpr (kHow == Columns::part) return load_part(row + part.at, part.first, part.last);
  const Vec<A> v = load(row + part.at);
  return kHow == Columns::whole ? v : where<A>(part.mask, v);
}

// One vector of columns of a plane: the parts of x and of dy.
template <typename A>
struct PlaneColumns {
  PlanePart<A> x[4], dy;
  bool whole;
};

template <typename A>
PlanePart<A> plane_part(int64_t at, int64_t first, int64_t last) {
  constexpr int64_t kCount = kLanes<A>;
  const PlanePart<A> part = {at, int(clamp(first, 0, kCount)), int(clamp(last, 0, kCount)), {}};
  A seen[kCount];
  for (int i = 0; i < kCount; ++i) seen[i] = A(i >= part.first && i < part.last);
  return {part.at, part.first, part.last, load(seen) > Vec<A>{}};
}

template <typename A, int kStride>
PlaneColumns<A> plane_columns(const ConvGeometry& g, int64_t q) {
  constexpr int64_t kCount = kLanes<A>;
  const int64_t columns = least(g.output[2] - q, kCount), width = g.input[2];
  PlaneColumns<A> all;
  all.dy = plane_part<A>(q, 0, columns);
  all.whole = columns == kCount;
  for (int i = 0; i < (kStride == 1 ? kPlaneTaps : 4); ++i) {
    // With a stride of 2, a vector of each half for the first two taps, then two for the third.
    const int64_t from = kStride == 1 ? i : i / 2 * 2, half = kStride == 1 ? 0 : i % 2 * kCount;
    const int64_t at = q * kStride - g.pad_before[2] + from + half;
    const int64_t end = least(width - at, columns * kStride - half);
    all.x[i] = plane_part<A>(at, -at, end);
    all.whole = all.whole && at >= 0 && end >= kCount;
  }
  return all;
}

// x: of row `begin` of the input, which `p` is the last row of dy to see; dy: of the plane.
template <typename T, Columns kHow>
__attribute__((noinline)) void plane_rows(Accumulate<T>* sums, const T* x, const T* dy, const ConvGeometry& g,
                                          const PlaneColumns<Accumulate<T>>& at, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kPlaneTaps][kPlaneTaps];
#pragma GCC unroll 9
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) sum[i / kPlaneTaps][i % kPlaneTaps] = load(sums + i * kCount);
  const int64_t rows = g.output[1], x_row = g.input[2], dy_row = g.output[2];
  int64_t p = begin + g.pad_before[1];
  x += begin * x_row;
  Vec<A> seen[kPlaneTaps] = {};  // rows p, p - 1 and p - 2 of dy
#pragma GCC unroll 2
  for (int r = 1; r < kPlaneTaps; ++r)
    if (p - r >= 0 && p - r < rows) seen[r - 1] = load_columns<T, kHow>(dy + (p - r) * dy_row, at.dy);
  for (int64_t h = begin; h < end; ++h, ++p, x += x_row) {
    Vec<A> in[kPlaneTaps];
#pragma GCC unroll 3
    for (int s = 0; s < kPlaneTaps; ++s) in[s] = load_columns<T, kHow>(x, at.x[s]);
    seen[2] = seen[1];
    seen[1] = seen[0];
    if (p < rows) seen[0] = load_columns<T, kHow>(dy + p * dy_row, at.dy);
#pragma GCC unroll 3
    for (int r = 0; r < kPlaneTaps; ++r)
      if (p - r >= 0 && p - r < rows) {
#pragma GCC unroll 3
        for (int s = 0; s < kPlaneTaps; ++s) sum[r][s] += seen[r] * in[s];
      }
  }
#pragma GCC unroll 9
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) store(sums + i * kCount, sum[i / kPlaneTaps][i % kPlaneTaps]);
}

// Rows [begin, end) of dy, at a stride of 2. x: of the plane.
template <typename T, Columns kHow>
__attribute__((noinline)) void plane_rows_apart(Accumulate<T>* sums, const T* x, const T* dy, const ConvGeometry& g,
                                                const PlaneColumns<Accumulate<T>>& at, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kPlaneTaps][kPlaneTaps];
#pragma GCC unroll 9
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) sum[i / kPlaneTaps][i % kPlaneTaps] = load(sums + i * kCount);
  for (int64_t p = begin; p < end; ++p) {
    const Vec<A> out = load_columns<T, kHow>(dy + p * g.output[2], at.dy);
#pragma GCC unroll 3
    for (int r = 0; r < kPlaneTaps; ++r) {
      const int64_t h = 2 * p + r - g.pad_before[1];
      if (h < 0 || h >= g.input[1]) continue;
      const T* row = x + h * g.input[2];
      const Vec<A> low = load_columns<T, kHow>(row, at.x[0]), high = load_columns<T, kHow>(row, at.x[1]);
      sum[r][0] += out * even_lanes<A>(low, high, LaneSequence<A>());
      sum[r][1] += out * odd_lanes<A>(low, high, LaneSequence<A>());
      sum[r][2] += out * even_lanes<A>(load_columns<T, kHow>(row, at.x[2]), load_columns<T, kHow>(row, at.x[3]),
                                       LaneSequence<A>());
    }
  }
#pragma GCC unroll 9
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) store(sums + i * kCount, sum[i / kPlaneTaps][i % kPlaneTaps]);
}

template <typename T>
bool suits_plane_weight(const ConvGeometry& g) {
  return weight_by_planes(g) && (CONVEXT_ISA_LEVEL == 3 || (g.stride[1] == 1 && g.group_inputs() == 1));
}

// channels: of a task; rows: of a band, of x at a stride of 1, else of dy.
template <typename T>
DirectPlan plane_weight_plan(const ConvGeometry& g) {
  DirectPlan plan;
  const int64_t places = greatest<int64_t>(g.batch * g.output_places(), 1);
  plan.channels = clamp(kPlanePlaces / (places * g.group_inputs()), 1, kMostPlaneChannels);
  plan.channels = ceil_div(g.out_channels, ceil_div(g.out_channels, plan.channels));
  plan.rows = clamp(kPlaneBand / greatest<int64_t>(g.input[2] * g.stride[1], 1), 1, greatest<int64_t>(g.input[1], 1));
  plan.tasks = ceil_div(g.out_channels, plan.channels);
  return plan;
}

// All images of one output channel, with the first kPlaneColumns vectors of columns. sums: [input channel][tap][lane].
template <typename T, int kStride>
void plane_channel(Accumulate<T>* sums, const ConvArguments& args, int64_t channel, int64_t band,
                   const PlaneColumns<Accumulate<T>>* columns) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>, kTaps = kPlaneTaps * kPlaneTaps;
  const ConvGeometry& g = args.geometry;
  const int64_t in_plane = g.input_places(), out_plane = g.output_places();
  const int64_t in_planes = g.batch * g.in_channels, out_planes = g.batch * g.out_channels;
  const int64_t rows = kStride == 1 ? g.input[1] : g.output[1];
  // What vectors read before a plane, and behind it.
  const int64_t before = g.pad_before[2], behind = g.output[2] * kStride + kPlaneTaps + 2 * kCount - g.input[2];
  for (int64_t n = 0; n < g.batch; ++n) {
    const int64_t inputs = g.group_inputs(), out = n * g.out_channels + channel;
    const int64_t in = n * g.in_channels + channel / g.group_outputs() * inputs;
    const T* x = static_cast<const T*>(args.input) + in * in_plane;
    const T* dy = static_cast<const T*>(args.grad_output) + out * out_plane;
    const bool at_edge = in * in_plane < before || (in_planes - inputs - in) * in_plane < behind ||
                         (out_planes - 1 - out) * out_plane < kCount;
    for (int64_t begin = 0; begin < rows; begin += band)
      for (int64_t i = 0; i * kCount < g.output[2]; ++i) {
        PlaneColumns<A> more;
        if (i >= kPlaneColumns) more = plane_columns<A, kStride>(g, i * kCount);
        const PlaneColumns<A>& at = i < kPlaneColumns ? columns[i] : more;
        const Columns how = at.whole ? Columns::whole : at_edge ? Columns::part : Columns::cleared;
        auto* run = kStride == 1              ? how == Columns::whole     ? plane_rows<T, Columns::whole>
                                                : how == Columns::cleared ? plane_rows<T, Columns::cleared>
                                                                          : plane_rows<T, Columns::part>
                    : how == Columns::whole   ? plane_rows_apart<T, Columns::whole>
                    : how == Columns::cleared ? plane_rows_apart<T, Columns::cleared>
                                              : plane_rows_apart<T, Columns::part>;
        for (int64_t c = 0; c < inputs; ++c)
          run(sums + c * kTaps * kCount, x + c * in_plane, dy, g, at, begin, least(begin + band, rows));
      }
  }
}

template <typename T, int kStride>
void plane_weight_channels(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>, kTaps = kPlaneTaps * kPlaneTaps;
  const ConvGeometry& g = args.geometry;
  PlaneColumns<A> columns[kPlaneColumns];
  for (int64_t i = 0; i < kPlaneColumns && i * kCount < g.output[2]; ++i)
    columns[i] = plane_columns<A, kStride>(g, i * kCount);
  const int64_t last = least((task + 1) * plan.channels, g.out_channels);
  for (int64_t k = task * plan.channels; k < last; ++k) {
    alignas(64) A sums[kWeightPlaneInputs * kTaps * kCount] = {};
    plane_channel<T, kStride>(sums, args, k, plan.rows, columns);
    T* dw = static_cast<T*>(args.output);
    for (int64_t c = 0; c < g.group_inputs(); ++c) {
      const auto at = args.gradient_taps(k, c);
      for (int64_t i = 0; i < kTaps; ++i)
        dw[at.first + i * at.step] = from_accumulate<T>(sum_lanes<A>(load(sums + (c * kTaps + i) * kCount)));
    }
  }
}

template <typename T>
void plane_weight_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  (args.geometry.stride[1] == 1 ? plane_weight_channels<T, 1> : plane_weight_channels<T, 2>)(args, plan, task);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
