#include "geometry_checks.h"

#include <limits>

namespace convext {
namespace {

constexpr int64_t kLargestElements = std::numeric_limits<int64_t>::max() / 16;  // of a tensor, so that bytes fit
constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();  // of a stride, dilation, padding or kernel size

// The number of elements, or -1 where it does not fit into 63 bits.
int64_t product(Sizes sizes) {
  int64_t result = 1;
  for (int64_t size : sizes)
    if (__builtin_mul_overflow(result, size, &result)) return -1;
  return result;
}

// "conv2d", put together only where a text begins with it.
struct OpName {
  const char* op;
  size_t spatial;

  std::string operator+(const std::string& text) const { return op + std::to_string(spatial) + "d" + text; }
};

std::string text(int64_t value) { return std::to_string(value); }

// One value per spatial dimension, each in [lowest, 2^31).
std::string check_entries(const OpName& op, const char* what, Sizes values, size_t count, int64_t lowest,
                          const char* below) {
  if (values.size() != count)
    return op + ": " + what + " has " + text(values.size()) + " entries (expected " + text(count) + ")";
  for (int64_t value : values) {
    if (value < lowest) return op + ": " + below + ", got " + what + "=" + to_string(values);
    if (value > kLargest) return op + ": " + what + "=" + to_string(values) + " is too large (expected below 2^31)";
  }
  return "";
}

// Before any arithmetic: no single size may be so large that adding padding to it overflows.
std::string check_input(const OpName& op, Sizes input) {
  for (int64_t size : input)
    if (size > kLargestElements) return op + ": an input of size " + to_string(input) + " is too large to address";
  return "";
}

std::string check_padding_mode(const OpName& op, const ConvGeometry& g, std::string_view mode) {
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    const int64_t widest = g.pad_before[axis] > g.pad_after[axis] ? g.pad_before[axis] : g.pad_after[axis];
    const bool reflect = g.padding_mode == PaddingMode::reflect;
    if (reflect && widest >= g.input[axis])
      return op + ": padding_mode 'reflect' needs padding smaller than the input, got padding " + text(widest) +
             " at an input size of " + text(g.input[axis]);
    const bool wraps = g.padding_mode == PaddingMode::circular || g.padding_mode == PaddingMode::symmetric;
    if (wraps && widest > g.input[axis])
      return op + ": padding_mode '" + std::string(mode) + "' needs padding no larger than the input, got padding " +
             text(widest) + " at an input size of " + text(g.input[axis]);
  }
  return "";
}

constexpr const char* kPaddingModes[] = {"zeros", "reflect", "replicate", "circular", "symmetric"};  // by PaddingMode

// Right-aligns `count` caller's entries into the (d, h, w) array.
void spread(Sizes from, size_t first, size_t count, int64_t* to) {
  for (size_t i = 0; i < count; ++i) to[kMaxSpatial - count + i] = from[first + i];
}

void spread_padding(Sizes padding, size_t count, int64_t* before, int64_t* after) {
  for (size_t i = 0; i < count; ++i) {
    before[kMaxSpatial - count + i] = padding[2 * i];
    after[kMaxSpatial - count + i] = padding[2 * i + 1];
  }
}

Sizes tail(const int64_t* sizes, int spatial) { return Sizes(sizes + kMaxSpatial - spatial, sizes + kMaxSpatial); }

Shape shape(int64_t batch, int64_t channels, const int64_t* sizes, int spatial) {
  Shape result{{batch, channels}, 2 + size_t(spatial)};
  for (int i = 0; i < spatial; ++i) result.sizes[2 + i] = sizes[kMaxSpatial - spatial + i];
  return result;
}

std::string padding_text(const int64_t* before, const int64_t* after, int spatial) {
  int64_t sides[2 * kMaxSpatial];
  int count = 0;
  for (int axis = kMaxSpatial - spatial; axis < kMaxSpatial; ++axis) {
    sides[count++] = before[axis];
    sides[count++] = after[axis];
  }
  return to_string(Sizes(sides, count));
}

// Empty where a tensor of that size can be addressed.
std::string check_elements(const OpName& op, Sizes sizes) {
  const int64_t n = product(sizes);
  if (n >= 0 && n <= kLargestElements) return "";
  return op + ": a tensor of size " + to_string(sizes) + " is too large to address";
}

std::string check_window(const OpName& op, const PoolCall& call, size_t spatial) {
  std::string error =
      check_entries(op, "kernel_size", call.kernel, spatial, 1, "kernel_size must be greater than zero");
  if (error.empty()) error = check_entries(op, "stride", call.stride, spatial, 1, "stride must be greater than zero");
  if (error.empty())
    error = check_entries(op, "dilation", call.dilation, spatial, 1, "dilation must be greater than zero");
  if (error.empty()) error = check_entries(op, "padding", call.padding, 2 * spatial, 0, "pad must be non-negative");
  return error;
}

// A window at every stride.
std::string place_windows(const OpName& op, const PoolCall& call, PoolGeometry* geometry) {
  PoolGeometry& g = *geometry;
  const size_t spatial = g.spatial;
  spread(call.kernel, 0, spatial, g.kernel);
  spread(call.stride, 0, spatial, g.stride);
  spread(call.dilation, 0, spatial, g.dilation);
  spread_padding(call.padding, spatial, g.pad_before, g.pad_after);
  for (size_t axis = kMaxSpatial - spatial; axis < kMaxSpatial; ++axis) {
    const int64_t reach = g.dilation[axis] * (g.kernel[axis] - 1) + 1;
    const int64_t before = g.pad_before[axis], after = g.pad_after[axis];
    if (before >= reach || after >= reach || (before == after && 2 * before > reach))
      return op + ": pad should be at most half of effective kernel size " + text(reach) +
             " (given per side: smaller than it), got padding " + to_string(call.padding) + ", kernel_size " +
             to_string(call.kernel) + " and dilation " + to_string(call.dilation);
    g.output[axis] = pool_output_size(g.input[axis], g.kernel[axis], g.stride[axis], g.dilation[axis],
                                      g.pad_before[axis], g.pad_after[axis], call.ceil_mode);
    if (g.output[axis] <= 0) {
      const int64_t room = g.input[axis] + g.pad_before[axis] + g.pad_after[axis] - reach;
      return op + ": Output size is too small (Invalid computed output size: " +
             text((room - (g.stride[axis] - 1)) / g.stride[axis] + 1) + "): a window of " + text(reach) +
             " places does not fit an input of " + text(g.input[axis]) + " with padding " + to_string(call.padding);
    }
  }
  return "";
}

// What stride, padding and dilation hold, alone, instead of nothing: packages of AOTInductor lose empty lists
// (convext/ops.py, ADAPTIVE).
constexpr int64_t kAdaptive = -(int64_t(1) << 62);
bool nothing(Sizes sizes) { return sizes.empty() || (sizes.size() == 1 && sizes[0] == kAdaptive); }

// Along every axis, as many windows as call.kernel says.
std::string cut_input(const OpName& op, Sizes input, const PoolCall& call, PoolGeometry* geometry) {
  PoolGeometry& g = *geometry;
  const size_t spatial = g.spatial;
  if (!nothing(call.padding) || !nothing(call.dilation) || call.ceil_mode)
    return op + ": adaptive windows (an empty stride) have no padding, dilation or ceil_mode, got padding " +
           to_string(call.padding) + " and dilation " + to_string(call.dilation);
  const std::string error = check_entries(op, "output_size", call.kernel, spatial, 0,
                                          "elements of output_size must be greater than or equal to 0");
  if (!error.empty()) return error;
  spread(call.kernel, 0, spatial, g.output);
  for (size_t axis = kMaxSpatial - spatial; axis < kMaxSpatial; ++axis) {
    if (g.input[axis] > kLargest)
      return op + ": an input of size " + to_string(input) + " is too large to cut up (expected below 2^31)";
    g.adaptive |= g.output[axis] == 0 || g.input[axis] % g.output[axis] != 0;
  }
  for (size_t axis = kMaxSpatial - spatial; axis < kMaxSpatial; ++axis) {
    const int64_t size = g.input[axis], parts = g.output[axis], left = parts == 0 ? 0 : size % parts;
    g.kernel[axis] = parts == 0 ? 1 : size / parts + (left == 0 ? 0 : parts % left == 0 ? 1 : 2);
    g.stride[axis] = g.adaptive ? 1 : g.kernel[axis];
  }
  return "";
}

}  // namespace

bool parse_padding_mode(std::string_view name, PaddingMode* mode) {
  for (int i = 0; i <= int(PaddingMode::symmetric); ++i)
    if (name == kPaddingModes[i]) {
      *mode = PaddingMode(i);
      return true;
    }
  return false;
}

const char* name_of(PaddingMode mode) { return kPaddingModes[int(mode)]; }

std::string to_string(Sizes sizes) {
  std::string result = "[";
  for (size_t i = 0; i < sizes.size(); ++i) result += (i ? ", " : "") + text(sizes[i]);
  return result + "]";
}

std::string make_conv_geometry(Sizes input, Sizes weight, const ConvCall& call, ConvGeometry* geometry) {
  ConvGeometry& g = *geometry;
  g = ConvGeometry();
  if (weight.size() < 3 || weight.size() > 5)
    return "conv: weight should have at least three dimensions and at most five (k, c / groups, kernel), got size " +
           to_string(weight);
  const size_t spatial = weight.size() - 2;
  const OpName op{"conv", spatial};
  g.spatial = int(spatial);
  if (input.size() != weight.size())
    return op + ": Expected " + text(weight.size()) + "-dimensional input for " + text(weight.size()) +
           "-dimensional weight " + to_string(weight) + ", got input of size " + to_string(input);
  if (call.groups <= 0) return op + ": non-positive groups is not supported, got groups=" + text(call.groups);
  if (call.groups > kLargest) return op + ": groups=" + text(call.groups) + " is too large (expected below 2^31)";
  std::string error = check_input(op, input);
  if (error.empty())
    error = check_entries(op, "padding", call.padding, 2 * spatial, 0, "negative padding is not supported");
  if (error.empty())
    error = check_entries(op, "stride", call.stride, spatial, 1, "non-positive stride is not supported");
  if (error.empty())
    error = check_entries(op, "dilation", call.dilation, spatial, 1, "dilation should be greater than zero");
  if (error.empty())
    error = check_entries(op, "kernel size", weight.subspan(2), spatial, 1, "kernel sizes must be positive");
  if (!error.empty()) return error;
  if (weight[0] < call.groups)
    return op + ": with groups=" + text(call.groups) + ", expected weight to be at least " + text(call.groups) +
           " at dimension 0, got weight of size " + to_string(weight);
  if (weight[0] % call.groups != 0)
    return op + ": with groups=" + text(call.groups) + ", weight's output channels must be divisible by groups, got " +
           text(weight[0]);
  if (input[1] != weight[1] * call.groups)
    return op + ": weight has " + text(weight[1]) + " input channels per group, input has " + text(input[1]) +
           " channels in " + text(call.groups) + " groups (expected " + text(weight[1] * call.groups) +
           " channels; Given groups=" + text(call.groups) + ", weight of size " + to_string(weight) +
           ", expected input" + to_string(input) + " to have " + text(weight[1] * call.groups) + " channels)";

  g.batch = input[0];
  g.in_channels = input[1];
  g.out_channels = weight[0];
  g.groups = call.groups;
  g.flip_kernel = call.flip_kernel;
  if (!parse_padding_mode(call.padding_mode, &g.padding_mode))
    return op + ": padding_mode must be one of 'zeros', 'reflect', 'replicate', 'circular', 'symmetric', got '" +
           std::string(call.padding_mode) + "'";
  spread(input, 2, spatial, g.input);
  spread(weight, 2, spatial, g.kernel);
  spread(call.stride, 0, spatial, g.stride);
  spread(call.dilation, 0, spatial, g.dilation);
  spread_padding(call.padding, spatial, g.pad_before, g.pad_after);
  for (size_t axis = kMaxSpatial - spatial; axis < kMaxSpatial; ++axis) {
    if (g.input[axis] <= 0)
      return op + ": only the batch and the channels of an input may be empty, got input of size " + to_string(input);
    g.output[axis] = conv_output_size(g.input[axis], g.kernel[axis], g.stride[axis], g.dilation[axis],
                                      g.pad_before[axis], g.pad_after[axis]);
    if (g.output[axis] <= 0)
      return op + ": Kernel size can't be greater than actual input size: kernel " + text(g.kernel[axis]) +
             " with dilation " + text(g.dilation[axis]) + " covers " +
             text(g.dilation[axis] * (g.kernel[axis] - 1) + 1) + " places, the padded input has " +
             text(g.input[axis] + g.pad_before[axis] + g.pad_after[axis]) + " (input " + to_string(input) +
             ", padding " + to_string(call.padding) + ")";
  }
  error = check_padding_mode(op, g, call.padding_mode);
  if (!error.empty()) return error;
  error = check_elements(op, input);
  if (error.empty()) error = check_elements(op, weight);
  return error.empty() ? check_elements(op, conv_output_shape(g)) : error;
}

std::string make_pool_geometry(const char* op_name, Sizes input, const PoolCall& call, PoolGeometry* geometry) {
  PoolGeometry& g = *geometry;
  g = PoolGeometry();
  const size_t spatial = input.size() < 2 ? 0 : input.size() - 2;
  if (spatial < 1 || spatial > kMaxSpatial)
    return std::string(op_name) + ": expected an input with 1 to 3 spatial dimensions, got size " + to_string(input);
  const OpName op{op_name, spatial};
  g.spatial = int(spatial);
  std::string error = check_input(op, input);
  if (!error.empty()) return error;
  const bool cuts = nothing(call.stride);
  if (!cuts) error = check_window(op, call, spatial);
  if (!error.empty()) return error;
  g.batch = input[0];
  g.channels = input[1];
  g.count_include_pad = call.count_include_pad;
  g.divisor_override = call.divisor_override;
  spread(input, 2, spatial, g.input);
  bool empty = g.channels <= 0;
  for (size_t axis = kMaxSpatial - spatial; axis < kMaxSpatial; ++axis) empty |= g.input[axis] <= 0;
  if (empty)
    return op + ": Expected input's non-batch dimensions to have positive length (Expected " + text(spatial + 1) +
           "D or " + text(spatial + 2) +
           "D (batch mode) tensor with optional 0 dim batch size for input), got input of size " + to_string(input);
  error = cuts ? cut_input(op, input, call, &g) : place_windows(op, call, &g);
  if (!error.empty()) return error;
  int64_t window = 1;
  for (int64_t kernel : g.kernel)
    if (__builtin_mul_overflow(window, kernel, &window) || window > kLargest)
      return op + ": kernel_size=" + to_string(tail(g.kernel, g.spatial)) +
             " is too large (expected fewer than 2^31 places)";
  error = check_elements(op, input);
  return error.empty() ? check_elements(op, pool_output_shape(g)) : error;
}

Shape conv_output_shape(const ConvGeometry& g) { return shape(g.batch, g.out_channels, g.output, g.spatial); }
Shape pool_output_shape(const PoolGeometry& g) { return shape(g.batch, g.channels, g.output, g.spatial); }

std::string describe(const ConvGeometry& g) {
  std::string result =
      OpName{"conv", size_t(g.spatial)} + " " + to_string(shape(g.batch, g.in_channels, g.input, g.spatial)) + " -> " +
      to_string(conv_output_shape(g)) + " kernel " + to_string(tail(g.kernel, g.spatial)) + " stride " +
      to_string(tail(g.stride, g.spatial)) + " dilation " + to_string(tail(g.dilation, g.spatial)) + " padding " +
      padding_text(g.pad_before, g.pad_after, g.spatial) + " " + name_of(g.padding_mode);
  if (g.groups > 1) result += " groups " + text(g.groups);
  if (g.flip_kernel) result += " flipped";
  return result + (g.layout == Layout::channels_last ? " channels_last" : " contiguous");
}

std::string describe(const PoolGeometry& g) {
  return OpName{"pool", size_t(g.spatial)} + " " + to_string(shape(g.batch, g.channels, g.input, g.spatial)) + " -> " +
         to_string(pool_output_shape(g)) + (g.adaptive ? " adaptive window " : " window ") +
         to_string(tail(g.kernel, g.spatial)) + " stride " + to_string(tail(g.stride, g.spatial)) + " dilation " +
         to_string(tail(g.dilation, g.spatial)) + " padding " + padding_text(g.pad_before, g.pad_after, g.spatial) +
         (g.layout == Layout::channels_last ? " channels_last" : " contiguous");
}

const char* name_of(DType dtype) {
  const char* names[] = {"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "int64"};
  return names[int(dtype)];
}

const char* name_of(Direction direction) {
  const char* names[] = {"forward", "backward_input", "backward_weight"};
  return names[int(direction)];
}

int64_t size_of(DType dtype) {
  const int64_t sizes[] = {4, 8, 2, 2, 1, 1, 2, 4, 8};
  return sizes[int(dtype)];
}

}  // namespace convext
