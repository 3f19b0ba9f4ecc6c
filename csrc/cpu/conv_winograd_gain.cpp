// How many times as fast as a plain product winograd promises to be, by which "auto" chooses it: estimates that were
// read off random layers (benchmarks/sweep.py), with AVX-512. The gradient of the weight has its own, in
// conv_winograd_backward_weight.cpp.
#include <cmath>

#include "bfloat16_pairs.h"
#include "conv_winograd_packing.h"

namespace convext::cpu {
namespace winograd_cpu {
namespace {

constexpr double kEnoughChannels = 5;  // for the estimate of a stride of 1
constexpr double kStridedLarge = 6e6;  // bytes of a weight at the points
constexpr double kStridedWeight = 4;   // stride 2: reading an element of u takes as long as so many tiles' products

}  // namespace
}  // namespace winograd_cpu

double winograd_saving(const ConvGeometry& geometry, Direction direction) {
  using namespace winograd_cpu;
  const ConvGeometry g = as_forward(geometry, direction);
  const WinogradTile tile = choose_tile(g);
  return double(g.kernel[1] * g.kernel[2] * g.output[1] * g.output[2]) /
         (counted_tiles(g, tile) * kernel_of<float>(tile).points());
}

double winograd_gain(const ConvGeometry& geometry, DType dtype, Direction direction) {
  using namespace winograd_cpu;
  const auto padded = [](int64_t count) { return double(round_up(count, kWidestVector)) / double(count); };
  if (unsupported(geometry, dtype, direction) != nullptr) return 0;
  const bool few = std::min(geometry.group_inputs(), geometry.group_outputs()) < kWidestVector;
  if (few && dilated(geometry) && geometry.layout == Layout::contiguous) return 0;  // phases are narrow planes
  if (direction == Direction::backward_weight) return backward_weight_gain(geometry);
  const ConvGeometry g = as_forward(geometry, direction);
  const WinogradTile tile = choose_tile(g);
  const WinogradKernel<float>& kernel = kernel_of<float>(tile);
  // Of a stride of 2: phases of the input that are summed, or of the output that are computed one by one.
  const bool strides = strided(geometry), gathers = strided(g);
  double plain = double(g.kernel[1] * g.kernel[2] * g.output[1] * g.output[2]);
  if (strides && !gathers) {
    plain = 0;
    for (const OutputPhase& part : output_phases(geometry, g, direction)) {
      const ConvGeometry& p = part.phase.geometry;
      plain += double(p.kernel[1] * p.kernel[2] * p.output[1] * p.output[2]);
    }
  }
  const double tiles = counted_tiles(g, tile), points = kernel.points();
  const bool odd = geometry.kernel[1] % 2 == 1;
  const double products = !strides ? points : odd ? std::pow(2 * kernel.size_h - 1, 2) : 4 * points;
  const bool widened = direction == Direction::backward_input && repeats_padding(geometry);
  const double rate = dtype == DType::bfloat16 && pairs_bfloat16() && !widened ? kPairRate : 1;  // of the plain product
  const double group_inputs = double(g.group_inputs()), group_outputs = double(g.group_outputs());
  // What the others lose to places that are no whole vectors, and, where channels are few, what all of them lose: read
  // off random layers (benchmarks/sweep.py).
  const int64_t places = g.output[1] * g.output[2];
  const bool contiguous = g.layout == Layout::contiguous;
  const double lanes = contiguous ? padded(places) : 1;
  if (strides) {
    // A large weight that is trained takes longer to transform than few tiles save.
    if (products * group_inputs * group_outputs * sizeof(float) > kStridedLarge && 2 * tiles <= kWayTiles) return 0;
    if (geometry.groups > 1 && geometry.group_inputs() == 1) return 0;
    const bool by_channels = !contiguous || !better_by_tiles<float>(g, tiles_of(g, kernel));
    double gain = kWinogradPays * std::pow(plain / ((tiles + kStridedWeight) * products), 0.23) / rate;
    if (g.groups > 1) gain *= 0.88;
    if (gathers)
      return gain * std::pow(group_inputs, -0.053) * std::pow(group_outputs, 0.093) * std::pow(lanes, 0.34) *
             std::pow(padded(g.group_inputs()), -0.3);
    if (contiguous) gain *= 1.13;
    if (geometry.kernel[1] >= 5 && by_channels) gain *= 0.83;
    return 1.03 * gain * std::pow(padded(g.group_outputs()), -0.35) * std::pow(group_inputs, 0.069) *
           std::pow(group_outputs, -0.027);
  }
  if (rate == 1 && std::min(group_inputs, group_outputs) >= kEnoughChannels)
    return 0.365 * kWinogradPays * std::pow(plain / (tiles * products), 0.24) * std::pow(group_inputs, 0.17) *
           std::pow(group_outputs, 0.14) * std::pow(lanes, 0.2);
  const double transforms = kTransformCost * points / double(g.kernel[0]) * (1 / group_inputs + 1 / group_outputs);
  return plain / (rate * tiles * (products + transforms));
}

}  // namespace convext::cpu
