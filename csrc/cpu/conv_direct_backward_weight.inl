// Direct convolution, gradient of the weight:
//
//   dw[k, c, tap] = sum over n, places j of dy[k][j] * tile[c][j + offset(tap)]
//
// A task is (group, block of output channels, chunk of input channels, chunk of taps); it goes through all images band
// by band, fills the tile of the input and one of the output gradient, and keeps its sums on the stack: the order of
// the sum over images and places is fixed. Two register tiles:
//
//   outer  vectors of output channels; per place, kPairs (channel, tap) pairs x kWideOuts vectors: an outer product of
//          broadcast inputs with dy turned into [place][k]. 24 multiply-adds per 10 loads with AVX-512.
//
//   dot    where a group has less than half a vector of output channels (depthwise): vectors of columns, kDots taps at
//          a time, lanes added up at the very end. The last vector of a row loads no place outside the row.
//
// Traffic: the input once per block of output channels and overlap of bands, dy once per chunk of input channels.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kPairs = 6;
constexpr int kWideOuts = CONVEXT_ISA_LEVEL == 3 ? 4 : 2;
constexpr int kDots = 5;
constexpr int64_t kMaxReduce = 16;  // input channels of a task

// sums[pair][k] += x[offset of pair + place] * dy[place][k]; lanes = kVectors vectors of k.
template <typename A, int kVectors>
void outer_kernel(A* sums, const A* x, const int64_t* offset, const A* dy, int64_t rows, int64_t columns,
                  int64_t pitch) {
  constexpr int kCount = kLanes<A>;
  Vec<A> sum[kPairs][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = load(sums + (i * kVectors + v) * kCount);
  for (int64_t p = 0; p < rows; ++p) {
    const A* from[kPairs];
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; ++i) from[i] = x + offset[i] + p * pitch;
    for (int64_t q = 0; q < columns; ++q, dy += kVectors * kCount) {
      Vec<A> out[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) out[v] = load(dy + v * kCount);
#pragma GCC unroll 8
      for (int i = 0; i < kPairs; ++i) {
        const Vec<A> factor = splat<A>(from[i][q]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[i][v] += factor * out[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + (i * kVectors + v) * kCount, sum[i][v]);
}

// sums[i][lane] += x[offset i + place] * dy[place], lane = column mod kLanes; dy_pitch is a multiple of kLanes.
template <typename A>
void dot_kernel(A* sums, const A* x, const int64_t* offset, const A* dy, int64_t rows, int64_t columns, int64_t pitch,
                int64_t dy_pitch) {
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> sum[kDots];
#pragma GCC unroll 8
  for (int i = 0; i < kDots; ++i) sum[i] = load(sums + i * kCount);
  for (int64_t p = 0; p < rows; ++p, x += pitch, dy += dy_pitch) {
    int64_t q = 0;
    for (; q + kCount <= columns; q += kCount) {
      const Vec<A> out = load(dy + q);
#pragma GCC unroll 8
      for (int i = 0; i < kDots; ++i) sum[i] += out * load(x + offset[i] + q);
    }
    if (q == columns) continue;
    const Vec<A> out = load_part(dy + q, 0, int(columns - q));
#pragma GCC unroll 8
    for (int i = 0; i < kDots; ++i) sum[i] += out * load_part(x + offset[i] + q, 0, int(columns - q));
  }
#pragma GCC unroll 8
  for (int i = 0; i < kDots; ++i) store(sums + i * kCount, sum[i]);
}

// dy of `channels` channels as [row][column][k], lanes from `channels` on zero; lanes is a multiple of kLanes.
template <typename T>
void fill_outer(Accumulate<T>* to, int64_t lanes, const T* dy, int64_t channel_stride, int64_t place_stride,
                int64_t row_stride, int64_t channels, int64_t rows, int64_t columns) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  for (int64_t p = 0; p < rows; ++p, dy += row_stride, to += columns * lanes)
    for (int64_t k = 0; k < lanes; k += kCount) {
      const int64_t some = clamp(channels - k, 0, kCount);
      if (channel_stride == 1) {
        for (int64_t q = 0; q < columns; ++q) {
          const T* from = dy + q * place_stride + k;
          store(to + q * lanes + k, some == kCount ? load(from) : load_some(from, 0, some));
        }
        continue;
      }
      for (int64_t q = 0; q < columns; q += kCount) {
        Vec<A> v[kCount];
        const T* from = dy + k * channel_stride + q;
#pragma GCC unroll 16
        for (int64_t i = 0; i < kCount; ++i)
          v[i] = i >= some               ? Vec<A>{}
                 : q + kCount <= columns ? load(from + i * channel_stride)
                                         : load_some(from + i * channel_stride, 0, columns - q);
        transpose_lanes<A>(v);
        for (int64_t i = 0; i < least(columns - q, kCount); ++i) store(to + (q + i) * lanes + k, v[i]);
      }
    }
}

template <typename T>
bool weight_dots(const ConvGeometry& g) {
  return g.group_outputs() * 2 < kLanes<Accumulate<T>>;
}

// channels: lanes of output channels of a task (outer), or all of the group's (dot).
template <typename T>
DirectPlan backward_weight_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  DirectPlan plan;
  const bool dots = weight_dots<T>(g);
  const int64_t outs = g.group_outputs(), unit = dots ? kDots : kPairs;
  plan.channels = dots ? outs : least<int64_t>(kWideOuts, ceil_div(outs, kCount)) * kCount;
  const int64_t lanes = dots ? outs * kCount : plan.channels;  // sums per pair
  const int64_t pairs = kSumsSize<A> / lanes / unit * unit;
  plan_taps(plan, g.kernel, least(pairs, kMaxTaps));
  const int64_t tap_count = plan.taps[0] * plan.taps[1] * plan.taps[2];
  const int64_t most_places = dots ? kMaxVectors * kCount : kWeightsSize<A> / plan.channels;
  plan.axis[0] = axis_layout(g.stride[0], g.dilation[0], 1, plan.taps[0]);
  plan.axis[1] = axis_layout(g.stride[1], g.dilation[1], 1, plan.taps[1]);
  plan.columns = ceil_div(g.output[2], ceil_div(g.output[2], most_places));
  for (;; plan.columns = round_up(plan.columns / 2, kCount)) {
    plan.axis[2] = axis_layout(g.stride[2], g.dilation[2], plan.columns, plan.taps[2]);
    if (plan.columns <= kCount || tile_plane(plan.axis) <= kTileSize<A>) break;
  }
  const int64_t most_rows =
      dots ? kWeightsSize<A> / (outs * round_up(plan.columns, kCount)) : most_places / plan.columns;
  for (plan.rows = least(most_rows, g.output[1]); plan.rows > 1; --plan.rows) {
    plan.axis[1] = axis_layout(g.stride[1], g.dilation[1], plan.rows, plan.taps[1]);
    if (tile_plane(plan.axis) <= kTileSize<A>) break;
  }
  plan.axis[1] = axis_layout(g.stride[1], g.dilation[1], plan.rows, plan.taps[1]);
  plan.plane = tile_plane(plan.axis);
  const int64_t inputs = g.group_inputs();
  plan.reduce = least(least(inputs, kMaxReduce), least(kTileSize<A> / plan.plane, pairs / tap_count));
  plan.reduce_blocks = ceil_div(inputs, plan.reduce);
  plan.reduce = ceil_div(inputs, plan.reduce_blocks);
  plan.channel_blocks = dots ? 1 : ceil_div(outs, plan.channels);
  plan.depths = g.output[0];
  plan.row_bands = ceil_div(g.output[1], plan.rows);
  plan.column_bands = ceil_div(g.output[2], plan.columns);
  plan.tasks = g.groups * plan.channel_blocks * plan.reduce_blocks * plan.tap_blocks[0] * plan.tap_blocks[1] *
               plan.tap_blocks[2];
  return plan;
}

template <typename T>
void backward_weight_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const ConvGeometry& g = args.geometry;
  const bool dots = weight_dots<T>(g), channels_last = g.layout == Layout::channels_last;
  Band band = {};
  AxisView view[kMaxSpatial];
  for (int a = kMaxSpatial; a-- > 0;) {
    view[a] = forward_view(g, a);
    band.tap[a] = take(task, plan.tap_blocks[a]) * plan.taps[a];
    band.taps[a] = least(plan.taps[a], g.kernel[a] - band.tap[a]);
  }
  const int64_t inputs = g.group_inputs(), outs = g.group_outputs();
  const int64_t c0 = take(task, plan.reduce_blocks) * plan.reduce, channels = least(plan.reduce, inputs - c0);
  const int64_t k0 = take(task, plan.channel_blocks) * plan.channels, group = task;
  const int64_t lanes = plan.channels, high = least(lanes, outs - k0);

  alignas(64) A tile[kTileSize<A> + 2 * kCount], sums[kSumsSize<A>], dy_tile[kWeightsSize<A> + 2 * kCount];
  int64_t offset[kSumsSize<A> / kCount];  // of (channel, tap) pairs; whole register tiles, the last pair repeated
  const int64_t tap_count = tap_offsets(plan.axis, band, offset), unit = dots ? kDots : kPairs;
  const int64_t pairs = channels * tap_count, padded_pairs = round_up(pairs, unit);
  if (g.flip_kernel)  // pairs in the order of the weight's memory
    for (int64_t i = 0; i < tap_count / 2; ++i) {
      const int64_t other = offset[i];
      offset[i] = offset[tap_count - 1 - i];
      offset[tap_count - 1 - i] = other;
    }
  for (int64_t i = tap_count; i < pairs; ++i) offset[i] = offset[i - tap_count] + plan.plane;
  for (int64_t i = pairs; i < padded_pairs; ++i) offset[i] = offset[pairs - 1];
  const int64_t sum_count = padded_pairs * (dots ? outs * kCount : lanes);
  for (int64_t i = 0; i < sum_count; ++i) sums[i] = 0;

  const int64_t in_channel = channels_last ? 1 : g.input_places(), in_place = channels_last ? g.in_channels : 1;
  const int64_t out_channel = channels_last ? 1 : g.output_places(), out_place = channels_last ? g.out_channels : 1;
  const int64_t pitch = plan.axis[2].length;
  for (int64_t n = 0; n < g.batch; ++n) {
    const T* x = static_cast<const T*>(args.input) + g.input_offset(n, group * inputs + c0, 0);
    const T* dy = static_cast<const T*>(args.grad_output) + g.output_offset(n, group * outs + k0, 0);
    for (int64_t o = 0; o < g.output[0]; ++o)
      for (int64_t p = 0; p < g.output[1]; p += plan.rows)
        for (int64_t q = 0; q < g.output[2]; q += plan.columns) {
          const int64_t rows = least(plan.rows, g.output[1] - p), columns = least(plan.columns, g.output[2] - q);
          const int64_t first[kMaxSpatial] = {o, p, q}, count[kMaxSpatial] = {1, rows, columns};
          for (int a = 0; a < kMaxSpatial; ++a) {
            band.out[a] = first[a];
            band.outs[a] = count[a];
          }
          fill_tile(tile, plan.plane, x, in_channel, in_place, channels, view, plan.axis, band);
          const T* corner = dy + ((o * g.output[1] + p) * g.output[2] + q) * out_place;
          if (!dots) {
            fill_outer(dy_tile, lanes, corner, out_channel, out_place, g.output[2] * out_place, high, rows, columns);
            auto* kernel = lanes == kCount       ? outer_kernel<A, 1>
                           : lanes == 2 * kCount ? outer_kernel<A, 2>
                           : lanes == 3 * kCount ? outer_kernel<A, least(3, kWideOuts)>
                                                 : outer_kernel<A, kWideOuts>;
            for (int64_t i = 0; i < pairs; i += kPairs)
              kernel(sums + i * lanes, tile, offset + i, dy_tile, rows, columns, pitch);
            continue;
          }
          const int64_t dy_pitch = round_up(columns, kCount);
          for (int64_t k = 0; k < outs; ++k) {
            for (int64_t i = 0; i < rows; ++i)
              for (int64_t j = 0; j < columns; j += kCount) {
                const T* from = corner + k * out_channel + (i * g.output[2] + j) * out_place;
                const int64_t some = least(columns - j, kCount);
                if (out_place == 1) {
                  store(dy_tile + i * dy_pitch + j, some == kCount ? load(from) : load_some(from, 0, some));
                } else {
                  T lane[kCount] = {};
                  for (int64_t l = 0; l < some; ++l) lane[l] = from[l * out_place];
                  store(dy_tile + i * dy_pitch + j, load(lane));
                }
              }
            for (int64_t i = 0; i < pairs; i += kDots)
              dot_kernel(sums + (k * padded_pairs + i) * kCount, tile, offset + i, dy_tile, rows, columns, pitch,
                         dy_pitch);
          }
        }
  }
  if (!dots && tap_count == g.taps() && !args.weight_channels_last) {
    // Per output channel the pairs are one run: transpose squares.
    T* dw = static_cast<T*>(args.output) + ((group * outs + k0) * inputs + c0) * g.taps();
    for (int64_t k = 0; k < high; k += kCount)
      for (int64_t i = 0; i < pairs; i += kCount) {
        Vec<A> v[kCount];
#pragma GCC unroll 16
        for (int64_t j = 0; j < kCount; ++j) v[j] = i + j < pairs ? load(sums + (i + j) * lanes + k) : Vec<A>{};
        transpose_lanes<A>(v);
        for (int64_t j = 0; j < least(high - k, kCount); ++j) {
          T* to = dw + (k + j) * inputs * g.taps() + i;
          if (i + kCount <= pairs)
            store(to, v[j]);
          else
            store_some(to, v[j], pairs - i, 1);
        }
      }
    return;
  }
  for (int64_t k = 0; k < high; ++k) {
    const A* sum = dots ? sums + k * padded_pairs * kCount : sums + k;
    const int64_t pair_stride = dots ? kCount : lanes;
    T* dw = static_cast<T*>(args.output);
    for (int64_t c = 0; c < channels; ++c, sum += tap_count * pair_stride) {
      const auto at = args.gradient_taps(group * outs + k0 + k, c0 + c);
      for (int64_t t = 0, tap = 0; t < band.taps[0]; ++t)
        for (int64_t r = 0; r < band.taps[1]; ++r)
          for (int64_t s = 0; s < band.taps[2]; ++s, ++tap) {
            const int64_t row = (band.tap[0] + t) * g.kernel[1] + band.tap[1] + r;
            const A* from = sum + (g.flip_kernel ? tap_count - 1 - tap : tap) * pair_stride;
            dw[at.first + (row * g.kernel[2] + band.tap[2] + s) * at.step] =
                from_accumulate<T>(dots ? sum_lanes<A>(load(from)) : *from);
          }
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
