// Shapes, and nothing but shapes: what a convolution or a pooling looks like before any number is computed.
//
// One struct serves 1, 2 and 3 spatial dimensions. Sizes are stored right-aligned as (d, h, w); a dimension that the
// call does not have gets size 1, kernel 1, stride 1, dilation 1 and no padding, so every kernel may loop over three.
// Loop letters are the same in every file: n image, c input channel, k output channel, g group, d h w input place,
// t r s kernel place, o p q output place ("tap": t r s taken as one number, row-major).
//
// No torch header; usable on host and device. Construction and checks: geometry.cpp.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define CONVEXT_HD __host__ __device__ __forceinline__
#else
#define CONVEXT_HD inline
#endif

namespace convext {

constexpr int kMaxSpatial = 3;
enum Axis { kDepth = 0, kHeight = 1, kWidth = 2 };

enum class DType { float32, float64, float16, bfloat16, uint8, int8, int16, int32, int64 };
enum class PaddingMode { zeros, reflect, replicate, circular, symmetric };
// contiguous: n c d h w, channels_last: n d h w c. Input, output and their gradients of one call share the layout;
// the weight is always contiguous, k c/g t r s.
enum class Layout { contiguous, channels_last };
enum class Direction { forward, backward_input, backward_weight };
// Which Winograd tiles a call may use. off: "auto" passes winograd over. accurate: those with a norm-wise error below
// 2.5e-6 in float32. fast: larger ones too (5x5 kernels), with an error up to 1e-5.
enum class WinogradMode { off, accurate, fast };

CONVEXT_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The input place that the padded place i (-before <= i < size + after) shows, or -1 where it shows a zero.
CONVEXT_HD int64_t padded_source(int64_t i, int64_t size, PaddingMode mode) {
  if (i >= 0 && i < size) return i;
  switch (mode) {
    case PaddingMode::reflect: return i < 0 ? -i : 2 * (size - 1) - i;
    case PaddingMode::replicate: return i < 0 ? 0 : size - 1;
    case PaddingMode::circular: return i < 0 ? i + size : i - size;
    case PaddingMode::symmetric: return i < 0 ? -1 - i : 2 * size - 1 - i;
    default: return -1;
  }
}

// The inverse of padded_source: the padded places that show input place i, m = 0 .. count - 1. The first is i itself.
// reflect, circular and symmetric show a place at most three times (before, itself, after); replicate shows an edge
// as often as there is padding. The gradient of the input sums over these.
struct Preimages {
  int64_t i, size, before, after;
  PaddingMode mode;

  CONVEXT_HD bool in_front() const {  // shown once in the padding before (replicate aside)
    switch (mode) {
      case PaddingMode::reflect: return i >= 1 && i <= before;
      case PaddingMode::circular: return i >= size - before;
      case PaddingMode::symmetric: return i < before;
      default: return false;
    }
  }
  CONVEXT_HD bool behind() const {
    switch (mode) {
      case PaddingMode::reflect: return i <= size - 2 && i >= size - 1 - after;
      case PaddingMode::circular: return i < after;
      case PaddingMode::symmetric: return i >= size - after;
      default: return false;
    }
  }
  CONVEXT_HD int64_t count() const {
    if (mode == PaddingMode::zeros) return 1;
    if (mode == PaddingMode::replicate) return 1 + (i == 0 ? before : 0) + (i == size - 1 ? after : 0);
    return 1 + (in_front() ? 1 : 0) + (behind() ? 1 : 0);
  }
  CONVEXT_HD int64_t operator[](int64_t m) const {
    if (m == 0) return i;
    if (mode == PaddingMode::replicate) {
      const int64_t front = i == 0 ? before : 0;
      return m <= front ? -m : size - 1 + (m - front);
    }
    const bool front = m == 1 && in_front();
    switch (mode) {
      case PaddingMode::reflect: return front ? -i : 2 * (size - 1) - i;
      case PaddingMode::circular: return front ? i - size : i + size;
      default: return front ? -1 - i : 2 * size - 1 - i;  // symmetric
    }
  }
};

// floor((n + before + after - dilation (k - 1) - 1) / stride) + 1; zero or less where the kernel does not fit.
CONVEXT_HD int64_t conv_output_size(int64_t n, int64_t k, int64_t stride, int64_t dilation, int64_t before,
                                    int64_t after) {
  const int64_t room = n + before + after - dilation * (k - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// The same for pooling. ceil_mode rounds up, but a window must not start in the padding after the input.
CONVEXT_HD int64_t pool_output_size(int64_t n, int64_t k, int64_t stride, int64_t dilation, int64_t before,
                                    int64_t after, bool ceil_mode) {
  const int64_t room = n + before + after - dilation * (k - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  int64_t out = room / stride + 1;
  if (ceil_mode && (out - 1) * stride >= n + before) --out;
  return out;
}

struct ConvGeometry {
  int spatial = 2;  // 1, 2 or 3: how many of the dimensions the caller has
  int64_t batch = 0, in_channels = 0, out_channels = 0, groups = 1;
  int64_t input[kMaxSpatial] = {1, 1, 1}, kernel[kMaxSpatial] = {1, 1, 1}, output[kMaxSpatial] = {1, 1, 1};
  int64_t stride[kMaxSpatial] = {1, 1, 1}, dilation[kMaxSpatial] = {1, 1, 1};
  int64_t pad_before[kMaxSpatial] = {0, 0, 0}, pad_after[kMaxSpatial] = {0, 0, 0};
  PaddingMode padding_mode = PaddingMode::zeros;
  bool flip_kernel = false;  // true convolution: tap t r s meets weight T-1-t R-1-r S-1-s
  Layout layout = Layout::contiguous;
  WinogradMode winograd = WinogradMode::accurate;
  bool tf32 = false;  // float32 may be multiplied as TF32 (ten bits of mantissa): CUDA only, where torch's flag says so

  CONVEXT_HD int64_t group_inputs() const { return in_channels / groups; }    // c per group
  CONVEXT_HD int64_t group_outputs() const { return out_channels / groups; }  // k per group
  CONVEXT_HD int64_t input_places() const { return input[0] * input[1] * input[2]; }
  CONVEXT_HD int64_t output_places() const { return output[0] * output[1] * output[2]; }
  CONVEXT_HD int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  CONVEXT_HD int64_t input_elements() const { return batch * in_channels * input_places(); }
  CONVEXT_HD int64_t output_elements() const { return batch * out_channels * output_places(); }
  CONVEXT_HD int64_t weight_elements() const { return out_channels * group_inputs() * taps(); }
  CONVEXT_HD bool padded() const {
    return pad_before[0] | pad_before[1] | pad_before[2] | pad_after[0] | pad_after[1] | pad_after[2];
  }

  // Where the weight of a tap is stored among the taps: the last first when the kernel is flipped.
  CONVEXT_HD int64_t weight_tap(int64_t tap) const { return flip_kernel ? taps() - 1 - tap : tap; }
  // The padded input place that output place `out` sees through kernel place `tap` of one axis.
  CONVEXT_HD int64_t padded_place(int axis, int64_t out, int64_t tap) const {
    return out * stride[axis] - pad_before[axis] + tap * dilation[axis];
  }
  // The input place (one axis) that it reads, or -1 for a zero.
  CONVEXT_HD int64_t source(int axis, int64_t out, int64_t tap) const {
    return padded_source(padded_place(axis, out, tap), input[axis], padding_mode);
  }
  // The other way: the output place that sees padded place i through `tap`, or -1 if none does.
  CONVEXT_HD int64_t seen_by(int axis, int64_t i, int64_t tap) const {
    const int64_t a = i + pad_before[axis] - tap * dilation[axis];
    return a < 0 || a % stride[axis] != 0 || a / stride[axis] >= output[axis] ? -1 : a / stride[axis];
  }
  CONVEXT_HD Preimages preimages(int axis, int64_t i) const {
    return Preimages{i, input[axis], pad_before[axis], pad_after[axis], padding_mode};
  }

  // Element offsets of channel c (k) of image n at place `at` (row-major over d h w or o p q).
  CONVEXT_HD int64_t input_offset(int64_t n, int64_t c, int64_t at) const {
    return layout == Layout::contiguous ? (n * in_channels + c) * input_places() + at
                                        : (n * input_places() + at) * in_channels + c;
  }
  CONVEXT_HD int64_t output_offset(int64_t n, int64_t k, int64_t at) const {
    return layout == Layout::contiguous ? (n * out_channels + k) * output_places() + at
                                        : (n * output_places() + at) * out_channels + k;
  }
  // k over all groups, c within the group.
  CONVEXT_HD int64_t weight_offset(int64_t k, int64_t c, int64_t tap) const {
    return (k * group_inputs() + c) * taps() + weight_tap(tap);
  }
};

// [first, last)
struct Range {
  int64_t first, last;
};

// Part i of `size` places cut into `parts`: neighbours share a place where they do not come out even. The parts that
// show place j are cut(j, parts, size).
CONVEXT_HD Range cut(int64_t i, int64_t size, int64_t parts) {
  return {i * size / parts, ceil_div((i + 1) * size, parts)};
}

struct PoolGeometry {
  int spatial = 2;
  int64_t batch = 0, channels = 0;
  int64_t input[kMaxSpatial] = {1, 1, 1}, kernel[kMaxSpatial] = {1, 1, 1}, output[kMaxSpatial] = {1, 1, 1};
  int64_t stride[kMaxSpatial] = {1, 1, 1}, dilation[kMaxSpatial] = {1, 1, 1};
  int64_t pad_before[kMaxSpatial] = {0, 0, 0}, pad_after[kMaxSpatial] = {0, 0, 0};
  // Adaptive windows cut the input into `output` parts that differ in size: along an axis, output o sees the places
  // [floor(o input / output), ceil((o + 1) input / output)). kernel is then the widest's, or one or two more; stride,
  // dilation and padding say nothing. Parts of one size are ordinary windows, not these.
  bool adaptive = false;
  bool count_include_pad = true;  // average only
  int64_t divisor_override = 0;   // average only; 0: none
  Layout layout = Layout::contiguous;

  CONVEXT_HD int64_t input_places() const { return input[0] * input[1] * input[2]; }
  CONVEXT_HD int64_t output_places() const { return output[0] * output[1] * output[2]; }
  CONVEXT_HD int64_t window() const { return kernel[0] * kernel[1] * kernel[2]; }
  CONVEXT_HD int64_t input_elements() const { return batch * channels * input_places(); }
  CONVEXT_HD int64_t output_elements() const { return batch * channels * output_places(); }
  // Max pooling saves, per output, which place of its window (tap, row-major over t r s) won: one byte where the
  // window has at most 256 places, else an int32.
  CONVEXT_HD bool byte_places() const { return window() <= 256; }

  CONVEXT_HD int64_t place(int axis, int64_t out, int64_t tap) const {
    if (adaptive) return cut(out, input[axis], output[axis]).first + tap;
    return out * stride[axis] - pad_before[axis] + tap * dilation[axis];
  }
  // The taps [first, last) of output `out` that lie in [0, input) along one axis.
  CONVEXT_HD int64_t first_tap(int axis, int64_t out) const {
    const int64_t start = place(axis, out, 0);
    if (start >= 0) return 0;
    const int64_t first = ceil_div(-start, dilation[axis]);
    return first < kernel[axis] ? first : kernel[axis];
  }
  CONVEXT_HD int64_t last_tap(int axis, int64_t out) const { return taps_below(axis, out, input[axis]); }
  // How many taps of output `out` lie below `limit` along one axis.
  CONVEXT_HD int64_t taps_below(int axis, int64_t out, int64_t limit) const {
    const int64_t start = place(axis, out, 0);
    if (start >= limit) return 0;
    if (adaptive) {
      const int64_t end = cut(out, input[axis], output[axis]).last;
      return (end < limit ? end : limit) - start;
    }
    const int64_t last = ceil_div(limit - start, dilation[axis]);
    return last < kernel[axis] ? last : kernel[axis];
  }
  // The outputs whose windows span input place i of one axis, gaps of a dilation included, and the tap through which
  // one of them sees it: -1 for a gap.
  CONVEXT_HD Range spanning(int axis, int64_t i) const {
    if (adaptive) return cut(i, output[axis], input[axis]);
    const int64_t last = i + pad_before[axis], first = last - (kernel[axis] - 1) * dilation[axis];
    const int64_t end = last / stride[axis] + 1;
    return {first <= 0 ? 0 : ceil_div(first, stride[axis]), end < output[axis] ? end : output[axis]};
  }
  CONVEXT_HD int64_t tap_of(int axis, int64_t out, int64_t i) const {
    const int64_t a = i - place(axis, out, 0);
    if (adaptive || dilation[axis] == 1) return a;
    return a % dilation[axis] != 0 ? -1 : a / dilation[axis];
  }
  // What the average at output (o, p, q) is divided by: torch's rule. Padding counts if count_include_pad, places past
  // the padding (ceil_mode) never do. The factor of one axis, and the whole.
  CONVEXT_HD int64_t counted_taps(int axis, int64_t out) const {
    const int64_t taps = count_include_pad ? taps_below(axis, out, input[axis] + pad_after[axis])
                                           : last_tap(axis, out) - first_tap(axis, out);
    return taps > 0 ? taps : 0;
  }
  CONVEXT_HD int64_t divisor(int64_t o, int64_t p, int64_t q) const {
    if (divisor_override != 0) return divisor_override;
    return counted_taps(0, o) * counted_taps(1, p) * counted_taps(2, q);
  }
  CONVEXT_HD int64_t input_offset(int64_t n, int64_t c, int64_t at) const {
    return layout == Layout::contiguous ? (n * channels + c) * input_places() + at
                                        : (n * input_places() + at) * channels + c;
  }
  CONVEXT_HD int64_t output_offset(int64_t n, int64_t c, int64_t at) const {
    return layout == Layout::contiguous ? (n * channels + c) * output_places() + at
                                        : (n * output_places() + at) * channels + c;
  }
};

}  // namespace convext
