// Direct convolution, forward, depthwise, contiguous planes so narrow that their rows would leave most of a vector
// empty: a vector of channels is turned into [place][channel], goes through conv_direct_lanes.inl, and is turned back.
//
// A task is a vector of channels of one image, whose planes stay in first-level cache three times: as they are, turned,
// and as sums. Turning takes two thirds of a cycle per place and channel, in and out. Weights are packed as there.
//
// Traffic: the input and the output once. Limits: whole vectors of channels, planes that fit kTurnedPlaces.
#include "quads.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kTurnedPlaces = 480;  // of the input, the output and the turned output, whose pitch is that of fours

template <typename T>
bool suits_turned(const ConvGeometry& g) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  return std::is_same_v<T, Accumulate<T>> && g.layout == Layout::contiguous && g.group_inputs() == 1 &&
         g.group_outputs() == 1 && g.groups % kCount == 0 && g.output[2] * 8 <= kCount * 5 && g.output[1] > 1 &&
         g.input_places() + 2 * round_up(g.output_places(), 4) <= kTurnedPlaces &&
         suits_lanes<T>(turned_channels(g, kCount));
}

template <typename T>
DirectPlan turned_plan(const ConvGeometry& g) {
  constexpr int64_t kCount = kLanes<Accumulate<T>>;
  DirectPlan plan = lanes_plan<T>(turned_channels(g, kCount));
  plan.packs = g.groups / kCount;
  plan.tasks = g.batch * plan.packs;
  return plan;
}

template <typename T>
void turned_task(const ConvArguments& args, const DirectPlan& plan, int64_t task) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    constexpr int64_t kCount = kLanes<T>;
    const ConvGeometry& g = args.geometry;
    const int64_t c = take(task, plan.packs) * kCount, n = task, inputs = g.input_places(), outputs = g.output_places();
    alignas(64) T x[kTurnedPlaces * kCount];
    T *const y = x + inputs * kCount, *const rows = y + round_up(outputs, 4) * kCount;
    turn_row(static_cast<const T*>(args.input) + (n * g.groups + c) * inputs, inputs, inputs, int(kCount), x);
    ConvArguments one = args;
    one.geometry = turned_channels(g, kCount);
    one.input = x;
    one.output = y;
    one.bias = args.bias == nullptr ? nullptr : static_cast<const T*>(args.bias) + c;
    one.workspace = static_cast<T*>(args.workspace) + c * g.taps();
    one.epilogue = {};
    for (int64_t i = 0; i < plan.depths * plan.row_bands * plan.channel_blocks; ++i) lanes_task<T>(one, plan, i);
    turn_to_planes<T>(y, outputs, rows, static_cast<T*>(args.output) + (n * g.groups + c) * outputs);
    finish_block(args, {n, c, kCount, 0, outputs, 1});
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
