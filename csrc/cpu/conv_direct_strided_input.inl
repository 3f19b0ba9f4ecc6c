// Direct convolution, gradient of the input of strided depthwise layers.
//
// Contiguous, a stride of 2 along the row: a place
// w = 2 j + e - pad of an input row sees, through every other tap, neighbours of an output row:
//
//   dx[h, 2 j + e - pad] = sum over k, (p, r) that meet h, i of dy[k, p, j - i] w[k, r, e + 2 i]        e = 0, 1
//
// so two sums of vectors of j, interleaved, are a piece of a row of dx: that of the first column's phase, e = pad mod
// 2, and of the other, whose j is one more where pad is odd. A task is a plane: its output gradients are copied into
// rows with zeros on both sides (workspace), which stay near. Traffic: dy and dx once; per vector of dx half a load and
// a multiply-add for each of the taps of the rows that meet it.
//
// channels_last, and contiguous planes that are too narrow for that: channels are lanes.
#include "quads.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// One row of output gradients that meets a row of dx, and the taps of its row of the kernel.
template <typename A>
struct MeetingRow {
  const A *dy, *taps;
};

// kVectors vectors of each phase, over `count` rows whose dy is what the first tap of phase 0 sees of the first column
// of that phase, to `left` columns or as many as there are sums; S taps to a row (0: `taps`).
template <int kVectors, int S, bool kOddPad, typename T, typename A>
CONVEXT_INLINE void meet(const MeetingRow<A>* rows, int64_t count, int64_t column, int64_t taps, T* to, int64_t left) {
  constexpr int64_t kL = kLanes<A>;
  Vec<A> sum[2][kVectors] = {};  // of phase 0 and 1
  for (int64_t i = 0; i < count; ++i) {
    const A *dy = rows[i].dy + column / 2, *w = rows[i].taps;
    const int64_t size = S > 0 ? S : taps;
#pragma GCC unroll 8
    for (int64_t s = 0; s < size; ++s) {
      const Vec<A> tap = splat<A>(w[s]);
      const A* from = dy - s / 2 - (kOddPad && s % 2 == 1);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[s % 2][v] += load(from + v * kL) * tap;
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v, to += 2 * kL, left -= 2 * kL) {
    const Vec<A> first = sum[kOddPad][v], second = sum[!kOddPad][v];
    store_first(to, interleave_low<A>(first, second), left);
    if (left > kL) store_first(to + kL, interleave_high<A>(first, second), left - kL);
    if (left <= 2 * kL) return;
  }
}

template <typename T, int S, bool kOddPad>
CONVEXT_INLINE void strided_input_plane(const ConvArguments& args, int64_t task, Accumulate<T>* padded) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const StridedRows shape(g);
  const int64_t outputs = g.group_outputs(), places = g.output[1] * g.output[2], taps = g.taps();
  const int64_t image = task / g.groups, group = task % g.groups, first = group * outputs;
  const T* dy = static_cast<const T*>(args.grad_output) + (image * g.out_channels + first) * places;
  const T* weight = static_cast<const T*>(args.weight);
  A w[kStridedTaps];
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t tap = 0; tap < taps; ++tap)
      w[k * taps + tap] = to_accumulate(weight[(first + k) * taps + g.weight_tap(tap)]);
  for (int64_t i = 0; i < outputs * g.output[1]; ++i) {
    A* to = padded + i * shape.pitch;
    for (int64_t q = 0; q < shape.front; q += kL) store(to + q, Vec<A>{});
    int64_t q = 0;
    for (; q < g.output[2]; q += kL) store(to + shape.front + q, load_first(dy + i * g.output[2] + q, g.output[2] - q));
    for (q += shape.front; q < shape.pitch; q += kL) store(to + q, Vec<A>{});
  }
  MeetingRow<A> rows[kStridedTaps];
  const int64_t before = shape.front + (g.pad_before[2] + 1) / 2;
  T* dx = static_cast<T*>(args.output) + task * g.input[1] * g.input[2];
  // The first tap that shows a row, and the output that sees it through that.
  int64_t phase = g.pad_before[1] % g.stride[1], last = g.pad_before[1] / g.stride[1];
  for (int64_t h = 0; h < g.input[1]; ++h, dx += g.input[2]) {
    int64_t count = 0;
    for (int64_t r = phase, p = last; r < g.kernel[1] && p >= 0; r += g.stride[1], --p) {
      if (p >= g.output[1]) continue;
      for (int64_t k = 0; k < outputs; ++k)
        rows[count++] = {padded + (k * g.output[1] + p) * shape.pitch + before, w + k * taps + r * g.kernel[2]};
    }
    int64_t column = 0;
    for (; g.input[2] - column > 2 * kL; column += 4 * kL)
      meet<2, S, kOddPad>(rows, count, column, g.kernel[2], dx + column, g.input[2] - column);
    if (column < g.input[2]) meet<1, S, kOddPad>(rows, count, column, g.kernel[2], dx + column, g.input[2] - column);
    if (++phase == g.stride[1]) phase = 0, ++last;
  }
}
template <typename T>
void strided_input(const ConvArguments& args, int64_t task, void* padded) {
  auto* to = static_cast<Accumulate<T>*>(padded);
  const bool odd = args.geometry.pad_before[2] % 2 != 0;
  switch (args.geometry.kernel[2]) {
    case 3: return (odd ? strided_input_plane<T, 3, true> : strided_input_plane<T, 3, false>)(args, task, to);
    case 5: return (odd ? strided_input_plane<T, 5, true> : strided_input_plane<T, 5, false>)(args, task, to);
    default: return (odd ? strided_input_plane<T, 0, true> : strided_input_plane<T, 0, false>)(args, task, to);
  }
}

// kVectors vectors of n channels of one channels_last place, from those that see it.
template <int kVectors, typename T>
CONVEXT_INLINE void gather_depthwise(const T* const* dy, const Accumulate<T>* const* w, int64_t count, int64_t c,
                                     int64_t n, T* dx) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] += load_first(dy[i] + c + v * kL, n) * load(w[i] + c + v * kL);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store_first(dx + c + v * kL, sum[v], n);
}

// channels_last, any stride, one output channel to a group: a place gathers from the outputs that see it, channels
// being lanes. w: taps of channels, kWidestVector more behind the last. A task is a row of an image.
// kOne: channels are one vector.
template <typename T, bool kOne>
CONVEXT_INLINE void gather_row(const ConvArguments& args, int64_t task, const void* weights) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const int64_t channels = kOne ? kL : g.in_channels, image = task / g.input[1], h = task % g.input[1];
  const int64_t stride = g.stride[2], taps = g.kernel[2];
  const A* w = static_cast<const A*>(weights);
  const T* from = static_cast<const T*>(args.grad_output) + image * g.output[1] * g.output[2] * channels;
  T* dx = static_cast<T*>(args.output) + task * g.input[2] * channels;
  const T *row_dy[kStridedTaps], *dy[kStridedTaps];
  const A *row_taps[kStridedTaps], *tap[kStridedTaps];
  int64_t rows = 0;
  for (int64_t r = 0; r < g.kernel[1]; ++r) {
    const int64_t p = g.seen_by(1, h, r);
    if (p < 0) continue;
    row_dy[rows] = from + p * g.output[2] * channels;
    row_taps[rows++] = w + r * taps * channels;
  }
  // The first tap that shows a column, and the output that sees it through that.
  int64_t phase = g.pad_before[2] % stride, last = g.pad_before[2] / stride;
  for (int64_t column = 0; column < g.input[2]; ++column, dx += channels) {
    int64_t count = 0;
    Vec<A> sum = {};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t s = phase, q = last; s < taps && q >= 0; s += stride, --q) {
        if (q >= g.output[2]) continue;
        if (kOne) {
          sum += load(row_dy[i] + q * channels) * load(row_taps[i] + s * channels);
          continue;
        }
        dy[count] = row_dy[i] + q * channels;
        tap[count++] = row_taps[i] + s * channels;
      }
    if constexpr (kOne) {
      store(dx, sum);
    } else {
      int64_t c = 0;
      for (; c + 4 * kL <= channels; c += 4 * kL) gather_depthwise<4, T>(dy, tap, count, c, kL, dx);
      for (; c < channels; c += kL) gather_depthwise<1, T>(dy, tap, count, c, channels - c, dx);
    }
    if (++phase == stride) phase = 0, ++last;
  }
}

template <typename T>
void strided_input_row(const ConvArguments& args, int64_t task, const void* weights) {
  args.geometry.in_channels == kLanes<Accumulate<T>> ? gather_row<T, true>(args, task, weights)
                                                     : gather_row<T, false>(args, task, weights);
}

// Contiguous planes too narrow to fill vectors: those of a vector of channels are turned and taken as one channels_last
// image, and turned back. A task is such a vector of one image. memory: turned_strided_places of it.
template <typename T>
void strided_input_turned(const ConvArguments& args, int64_t task, void* memory) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    constexpr int64_t kCount = kLanes<T>;
    const ConvGeometry& g = args.geometry;
    const int64_t packs = g.groups / kCount, image = task / packs, c = task % packs * kCount, taps = g.taps();
    const int64_t inputs = g.input[1] * g.input[2], outputs = g.output[1] * g.output[2];
    const int64_t fours = ceil_div(inputs, 4) * 4 * kCount;
    T *const dy = static_cast<T*>(memory), *const dx = dy + outputs * kCount, *const rows = dx + fours;
    T* const weight = rows + fours;
    const T* plane = static_cast<const T*>(args.grad_output) + (image * g.groups + c) * outputs;
    turn_row(plane, outputs, outputs, int(kCount), dy);
    for (int64_t l = 0; l < kCount; ++l)
      for (int64_t tap = 0; tap < taps; ++tap)
        weight[tap * kCount + l] = static_cast<const T*>(args.weight)[(c + l) * taps + g.weight_tap(tap)];
    ConvArguments one = args;
    one.geometry = turned_channels(g, kCount);
    one.grad_output = dy;
    one.output = dx;
    for (int64_t h = 0; h < g.input[1]; ++h) strided_input_row<T>(one, h, weight);
    turn_to_planes<T>(dx, inputs, rows, static_cast<T*>(args.output) + (image * g.groups + c) * inputs);
  }
}
// Channels of a task of those, none where the planes are not for them.
template <typename T>
int64_t turned_strided_channels(const ConvGeometry& g) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  const bool fits = std::is_same_v<T, Accumulate<T>> && g.group_outputs() == 1 && g.groups % kCount == 0;
  return fits && turned_strided_places(g) <= kTurnedStrided && g.output[2] * 2 <= kCount ? kCount : 0;
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
