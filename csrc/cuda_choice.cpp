#include "cuda_choice.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace convext {
namespace {

constexpr int64_t kNominalBatch = 16;
constexpr double kLaunchSeconds = 2.5e-6;  // queued back to back
constexpr double kWinogradGain = 1.15;     // as on the CPU: a smaller one is lost to what the model does not see
constexpr double kCacheFactor = 2.5;       // second-level cache to memory

// Multiply-adds a clock and multiprocessor, by the programming guide's table of throughputs; tensor cores dense, summed
// in float32; bandwidth per multiprocessor of each generation's data-centre card.
struct Family {
  int capability;
  double gigahertz, float32, float64, half, tf32, gigabytes;
};
constexpr Family kFamilies[] = {
    {75, 1.5, 64, 2, 512, 0, 8},          // T4, RTX 20: no TF32; bfloat16 through float32
    {80, 1.41, 64, 32, 1024, 512, 16},    // A100
    {86, 1.7, 128, 2, 512, 256, 9},       // A10, RTX 30
    {89, 2.2, 128, 2, 512, 256, 7},       // L4, L40, RTX 40
    {90, 1.75, 128, 64, 2048, 1024, 32},  // H100, H200
};

const Family& family_of(const Gpu& gpu) {
  const Family* found = &kFamilies[0];
  for (const Family& family : kFamilies)
    if (family.capability <= gpu.capability) found = &family;
  return *found;
}

// Multiply-adds and bytes a second.
struct Rates {
  double plain, tensor, bytes;  // tensor: plain where the dtype has no tensor cores

  Rates(const Gpu& gpu, const ConvGeometry& g, DType dtype) {
    const Family& family = family_of(gpu);
    const double clocks = family.gigahertz * 1e9 * gpu.multiprocessors;
    plain = clocks * (dtype == DType::float64 ? family.float64 : family.float32);
    const double half = dtype == DType::bfloat16 && gpu.capability < 80 ? 0 : family.half;
    const bool sixteen = dtype == DType::float16 || dtype == DType::bfloat16;
    tensor = sixteen ? clocks * half : dtype == DType::float32 && g.tf32 ? clocks * family.tf32 : 0;
    bytes = family.gigabytes * 1e9 * gpu.multiprocessors;
  }
};

double bytes_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float16 || dtype == DType::bfloat16 ? 2 : 4;
}

// The convolution in one direction as a matrix product per group: rows x columns, summed over `reduced`.
struct Product {
  double rows, columns, reduced, groups;  // rows: channels made; columns: places, or the weight's columns
  double multiply_adds, bytes;            // all groups; input, weight and output once

  Product(const ConvGeometry& g, DType dtype, Direction direction) {
    const double inputs = double(g.group_inputs()), outputs = double(g.group_outputs()), taps = double(g.taps());
    const double in_places = double(kNominalBatch * g.input_places());
    const double out_places = double(kNominalBatch * g.output_places());
    groups = double(g.groups);
    switch (direction) {
      case Direction::forward: rows = outputs, columns = out_places, reduced = inputs * taps; break;
      case Direction::backward_input: rows = inputs, columns = in_places, reduced = outputs * taps; break;
      default: rows = outputs, columns = inputs * taps, reduced = out_places;
    }
    multiply_adds = out_places * groups * outputs * inputs * taps;
    bytes = (groups * inputs * in_places + groups * outputs * out_places + groups * outputs * inputs * taps) *
            bytes_of(dtype);
  }
};

double filled(double size, double tile) { return size / (std::ceil(size / tile) * tile); }

// The share of the GPU that tiles of rows x columns keep busy: how far they are filled, and how evenly whole rounds of
// them fall to the multiprocessors, where sums are cut into at most `splits` parts to make more of them.
double busy(const Product& p, double rows, double columns, double splits, const Gpu& gpu) {
  const double tiles = std::ceil(p.rows / rows) * std::ceil(p.columns / columns) * p.groups * splits;
  const double rounds = tiles / gpu.multiprocessors;
  return filled(p.rows, rows) * filled(p.columns, columns) * rounds / std::ceil(rounds);
}

// Into how many parts the gradient of the weight is cut.
double parts(const Product& p, Direction direction) {
  return direction == Direction::backward_weight ? std::clamp(std::floor(p.reduced / 512), 1.0, 32.0) : 1;
}

double busy_gemm(const Product& p, double splits, double chunk, const Gpu& gpu) {
  return std::max(busy(p, 64, 64, splits, gpu), 1.1 * busy(p, 128, 128, splits, gpu)) / 1.1 * filled(p.reduced, chunk);
}

// Whether the gradient of the input adds up padding that shows places again.
bool folds(const ConvGeometry& g, Direction direction) {
  return direction == Direction::backward_input && g.padding_mode != PaddingMode::zeros && g.padded();
}

// A thread per element, dozens of instructions of index arithmetic per multiplication, one chain of sums; its scalar
// accesses do not reach half the bandwidth.
double naive_seconds(const Product& p, const Rates& rates, const Gpu& gpu) {
  const double elements = p.rows * p.columns * p.groups, threads = 1024.0 * gpu.multiprocessors;
  return std::max(p.multiply_adds * 60 / (rates.plain * std::min(1.0, elements / threads)),
                  2.5 * p.bytes / rates.bytes);
}

// Depthwise, or a single channel of planes, where kernels make plane by plane or have lanes along channels.
bool by_planes(const ConvGeometry& g, int64_t made) {
  const bool planes = (g.group_inputs() == 1 && g.group_outputs() < 4) || made == 1;
  return planes && (g.layout == Layout::contiguous || g.out_channels >= 4 || g.in_channels * g.out_channels == 1);
}

double direct_seconds(const ConvGeometry& g, Direction direction, const Product& p, const Rates& rates,
                      const Gpu& gpu) {
  const bool weight = direction == Direction::backward_weight, backward = direction == Direction::backward_input;
  const int64_t made = backward ? g.group_inputs() : g.group_outputs();
  const int64_t read = backward ? g.group_outputs() : g.group_inputs();
  if (by_planes(g, made))
    return std::max(p.multiply_adds / (rates.plain * (weight ? 0.15 : 0.3)), p.bytes / rates.bytes);
  if (read <= 4 ||
      made <= 8) {  // few channels: 4 or 8, or twice, four times, eight times so many, by 8 columns or 4 taps
    double channels = made <= 4 ? 4 : 8;
    while (channels < double(made) && channels < (weight ? 32 : 64)) channels *= 2;
    const double width = double(backward ? ceil_div(g.input[kWidth], g.stride[kWidth]) : g.output[kWidth]);
    const double along = weight ? filled(double(g.kernel[kWidth]), 4) : filled(width, 8);
    const double reached = (made <= 4 ? 0.4 : 0.5) * (weight ? 0.8 : 1) * filled(double(made), channels) * along;
    return std::max(p.multiply_adds / (rates.plain * reached), p.bytes / rates.bytes) + (weight ? kLaunchSeconds : 0);
  }
  const double tile = 32, tiles = std::ceil(p.rows / tile) * std::ceil(p.columns / tile) * p.groups;
  const double splits = std::clamp(1024 / tiles, 1.0, std::max(p.reduced / 128, 1.0));
  const double reached =
      weight ? 0.12 * busy(p, tile, tile, std::ceil(splits), gpu) : 0.25 * busy(p, tile, 256, 1, gpu);
  return std::max(p.multiply_adds / (rates.plain * reached), p.bytes / rates.bytes);
}

double im2col_seconds(const ConvGeometry& g, DType dtype, Direction direction, const Product& p, const Rates& rates,
                      const Gpu& gpu) {
  const double reached = 0.6 * busy_gemm(p, parts(p, direction), 16, gpu);
  const bool strided = g.stride[0] * g.stride[1] * g.stride[2] > 1;
  const double panel = g.taps() == 1 && !strided && !g.padded()
                           ? 0
                           : double(kNominalBatch * g.output_places() * g.in_channels * g.taps()) * bytes_of(dtype);
  const double panels = std::ceil(panel / (48 << 20));
  // The panel is made, then multiplied: one after the other.
  return 2 * panel / rates.bytes + std::max(p.multiply_adds / (rates.plain * reached), p.bytes / rates.bytes) +
         2 * panels * kLaunchSeconds;
}

double implicit_gemm_seconds(const ConvGeometry& g, DType dtype, Direction direction, const Product& p,
                             const Rates& rates, const Gpu& gpu) {
  const bool tensor = rates.tensor > 0;
  // Channels come in whole chunks, tap by tap.
  const double channels = direction == Direction::backward_input ? double(g.group_outputs()) : double(g.group_inputs());
  const double chunk = direction == Direction::backward_weight ? 1 : filled(channels, dtype == DType::float32 ? 4 : 8);
  const double splits = direction == Direction::backward_weight ? parts(p, direction) : 1;
  const double reached = (tensor ? 0.55 : 0.6) * chunk * busy_gemm(p, splits, 32, gpu);
  double seconds = std::max(p.multiply_adds / ((tensor ? rates.tensor : rates.plain) * reached), p.bytes / rates.bytes);
  double launches = 2;  // the weight into order, or parts added up
  if (direction == Direction::backward_input) launches += double(g.stride[0] * g.stride[1] * g.stride[2]);
  if (folds(g, direction)) seconds += 2 * double(kNominalBatch * g.in_channels * g.input_places()) * 4 / rates.bytes;
  return seconds + launches * kLaunchSeconds;
}

// F(4,3), F(2,5) along each axis of more than one tap, its points passing through the second-level cache; F(2x2,3x3)
// in one kernel.
double winograd_seconds(const ConvGeometry& g, DType dtype, const Product& p, const Rates& rates, const Gpu& gpu) {
  double made = 1, points = 1, taps = 1, share = 1;
  for (int axis = 1; axis < kMaxSpatial; ++axis) {
    if (g.kernel[axis] == 1) continue;
    const double k = double(g.kernel[axis]), m = k <= 3 ? 4 : 2;
    made *= m, points *= m + k - 1, taps *= k;
    share *= filled(double(g.output[axis]), m);
  }
  // The product at a point sums over channels (and taps along depth) alone.
  const double inputs = double(g.group_inputs() * g.kernel[0]), outputs = double(g.group_outputs() * g.kernel[0]);
  const double reached = 0.6 * busy_gemm(p, 1, 1, gpu) * filled(inputs, 16) * filled(outputs, 16);
  const double planes = double(g.in_channels + g.out_channels) * double(kNominalBatch * g.output_places()) / share;
  const double moved = 2 * planes * points / made * bytes_of(dtype);  // written and read
  const double memory = moved / (kCacheFactor * rates.bytes) + p.bytes / rates.bytes;
  const double through =
      p.multiply_adds / share * points / (made * taps) / (rates.plain * reached) + memory + 4 * kLaunchSeconds;
  // In one kernel what the transforms cost is shared by the channels of the other side.
  const double transforms = 1 + 4 / inputs + 4 / outputs;
  const double fused = std::max(p.multiply_adds / 2.25 * transforms / (rates.plain * 0.45 * busy(p, 32, 128, 1, gpu)),
                                p.bytes / rates.bytes) +
                       kLaunchSeconds;
  return g.kernel[1] == 3 && g.kernel[2] == 3 ? std::min(through, fused) : through;
}

}  // namespace

double cuda_seconds(const Gpu& gpu, std::string_view algorithm, const ConvGeometry& g, DType dtype,
                    Direction direction) {
  const Product product(g, dtype, direction);
  const Rates rates(gpu, g, dtype);
  if (algorithm == "naive") return naive_seconds(product, rates, gpu) + kLaunchSeconds;
  if (algorithm == "direct") return direct_seconds(g, direction, product, rates, gpu) + kLaunchSeconds;
  if (algorithm == "im2col") return im2col_seconds(g, dtype, direction, product, rates, gpu) + 2 * kLaunchSeconds;
  if (algorithm == "implicit_gemm") return implicit_gemm_seconds(g, dtype, direction, product, rates, gpu);
  if (algorithm == "winograd") return winograd_seconds(g, dtype, product, rates, gpu);
  return std::numeric_limits<double>::infinity();
}

std::string_view cuda_choice(const Gpu& gpu, const std::vector<std::string_view>& able, const ConvGeometry& g,
                             DType dtype, Direction direction) {
  std::string_view best = able.front();
  double least = std::numeric_limits<double>::infinity();
  for (std::string_view name : able) {
    const bool winograd = name == "winograd";
    if (winograd && (g.winograd == WinogradMode::off || dtype == DType::float64)) continue;
    const double seconds = cuda_seconds(gpu, name, g, dtype, direction) * (winograd ? kWinogradGain : 1);
    if (seconds < least) least = seconds, best = name;
  }
  return best;
}

}  // namespace convext
