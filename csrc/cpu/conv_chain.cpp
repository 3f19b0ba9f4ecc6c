#include "conv_chain.h"

#include <algorithm>
#include <cstring>

#include "../geometry_checks.h"
#include "blocking.h"
#include "conv_direct.h"
#include "finish.h"
#include "parallel.h"
#include "phases.h"

namespace convext::cpu {
namespace {

constexpr int64_t kHandedBytes = 256 * 1024;  // what is handed on stays in second-level cache by itself
constexpr int64_t kBandBytes = 256 * 1024;    // of all that a band's layers hand on
constexpr int64_t kMostBytes = 384 * 1024;    // the same for a band of one row

constexpr int64_t kLine = 64;  // of a cache

// What bands ask of a layer, along the axis of rows.
struct Rows {
  int64_t input, output, kernel, stride, dilation, before;

  explicit Rows(const ChainLayer& layer) {
    const auto take = [&](const auto& g) {
      input = g.input[kHeight], output = g.output[kHeight], kernel = g.kernel[kHeight];
      stride = g.stride[kHeight], dilation = g.dilation[kHeight], before = g.pad_before[kHeight];
    };
    if (layer.conv != nullptr)
      take(layer.conv_args.geometry);
    else
      take(layer.pool_args.geometry);
  }
  int64_t extent() const { return dilation * (kernel - 1); }
  // The rows that outputs [rows.begin, rows.end) see, past the ends of the input too, and within it.
  Span window(Span rows) const {
    return {rows.begin * stride - before, (rows.end - 1) * stride - before + extent() + 1};
  }
  Span seen(Span rows) const {
    const Span all = window(rows);
    return {std::max<int64_t>(all.begin, 0), std::min(all.end, input)};
  }
  int64_t most_seen(int64_t rows) const { return std::min((rows - 1) * stride + extent() + 1, input); }
};

DType dtype_of(const ChainLayer& layer) { return layer.conv != nullptr ? layer.conv_args.dtype : layer.pool_args.dtype; }

// Bytes of one row of the input and of the output.
int64_t input_row(const ChainLayer& layer) {
  const ConvGeometry& c = layer.conv_args.geometry;
  const PoolGeometry& p = layer.pool_args.geometry;
  return size_of(dtype_of(layer)) *
         (layer.conv != nullptr ? c.in_channels * c.input[kWidth] : p.channels * p.input[kWidth]);
}
int64_t output_row(const ChainLayer& layer) {
  const ConvGeometry& c = layer.conv_args.geometry;
  const PoolGeometry& p = layer.pool_args.geometry;
  return size_of(dtype_of(layer)) *
         (layer.conv != nullptr ? c.out_channels * c.output[kWidth] : p.channels * p.output[kWidth]);
}
int64_t batch_of(const ChainLayer& layer) {
  return layer.conv != nullptr ? layer.conv_args.geometry.batch : layer.pool_args.geometry.batch;
}

// The geometry of output rows [rows.begin, rows.end) of one image.
template <typename Geometry>
Geometry part(const Geometry& whole, const Rows& axis, Span rows) {
  Geometry g = whole;
  const Span all = axis.window(rows), seen = axis.seen(rows);
  g.batch = 1;
  g.input[kHeight] = seen.size();
  g.output[kHeight] = rows.size();
  g.pad_before[kHeight] = seen.begin - all.begin;
  g.pad_after[kHeight] = all.end - seen.end;
  return g;
}

// How many rows each layer's output has in a band, at most.
std::vector<int64_t> rows_of_band(const std::vector<ChainLayer>& layers, int64_t rows) {
  std::vector<int64_t> most(layers.size());
  for (size_t i = layers.size(); i-- > 0;) {
    most[i] = std::min(rows, Rows(layers[i]).output);
    rows = Rows(layers[i]).most_seen(most[i]);
  }
  return most;
}

// What all of them hand on in a band whose last layer has so many rows.
int64_t handed_bytes(const std::vector<ChainLayer>& layers, int64_t rows) {
  const std::vector<int64_t> most = rows_of_band(layers, rows);
  int64_t bytes = 0;
  for (size_t i = 0; i + 1 < layers.size(); ++i) bytes += most[i] * output_row(layers[i]);
  return bytes;
}
// What layer i does, in whole cache lines.
int64_t handed_bytes(const std::vector<ChainLayer>& layers, const ChainPlan& plan, size_t i) {
  return i + 1 < layers.size() ? round_up(plan.most[i] * output_row(layers[i]), kLine) : 0;
}

int64_t layer_workspace(const ChainLayer& layer, int64_t rows) {
  if (layer.conv == nullptr) return 0;
  int64_t bytes = 0;  // of any number of rows: they are cut in different ways
  for (int64_t count = 1; count <= rows; ++count) {
    ConvGeometry g = layer.conv_args.geometry;
    g.batch = 1;
    g.output[kHeight] = count;
    g.input[kHeight] = Rows(layer).most_seen(count);
    bytes = std::max(bytes, layer.conv->workspace_bytes(g, layer.conv_args.dtype, Direction::forward));
  }
  return round_up(bytes, kLine);
}

// A strip of the last output of one image, band after band.
class Strip {
 public:
  Strip(const std::vector<ChainLayer>& layers, const ChainPlan& plan, char* memory, int64_t image)
      : layers_(layers), image_(image), states_(layers.size()) {
    for (size_t i = 0; i < layers.size(); ++i) {
      states_[i].handed = memory;
      states_[i].workspace = memory += handed_bytes(layers, plan, i);
      memory += plan.workspace[i];
    }
  }

  void run(Span rows) {
    std::vector<Span> fresh(layers_.size());
    fresh.back() = rows;
    for (size_t i = layers_.size() - 1; i-- > 0;) {
      const Span needed = fresh[i + 1].size() > 0 ? Rows(layers_[i + 1]).seen(fresh[i + 1]) : Span{0, 0};
      fresh[i] = {0, 0};
      if (needed.size() > 0) fresh[i] = keep(i, needed);
    }
    for (size_t i = 0; i < layers_.size(); ++i)
      if (fresh[i].size() > 0) compute(i, fresh[i]);
  }

 private:
  // Makes room for the needed rows of layer i's output, of which those that are there stay; returns the others.
  Span keep(size_t i, Span needed) {
    Span& held = states_[i].held;
    const int64_t row = output_row(layers_[i]), there = std::max<int64_t>(held.end - needed.begin, 0);
    if (there > 0) std::memmove(states_[i].handed, states_[i].handed + (needed.begin - held.begin) * row, there * row);
    const Span missing = {needed.begin + there, std::max(needed.end, needed.begin + there)};
    held = {needed.begin, missing.end};
    return missing;
  }

  void compute(size_t i, Span rows) {
    const ChainLayer& layer = layers_[i];
    const Rows axis(layer);
    const Span seen = axis.seen(rows);
    const bool first = i == 0, last = i + 1 == layers_.size();
    const int64_t from_row = first ? image_ * axis.input + seen.begin : seen.begin - states_[i - 1].held.begin;
    const int64_t whole_row = image_ * axis.output + rows.begin;
    const int64_t to_row = last ? whole_row : rows.begin - states_[i].held.begin;
    const auto whole_input = [&] { return layer.conv != nullptr ? layer.conv_args.input : layer.pool_args.input; };
    const auto whole_output = [&] { return layer.conv != nullptr ? layer.conv_args.output : layer.pool_args.output; };
    const char* from = (first ? static_cast<const char*>(whole_input()) : states_[i - 1].handed) + from_row * input_row(layer);
    char* to = (last ? static_cast<char*>(whole_output()) : states_[i].handed) + to_row * output_row(layer);
    if (layer.conv == nullptr) {
      PoolArguments args = layer.pool_args;
      args.geometry = part(args.geometry, axis, rows);
      args.input = from;
      args.output = to;
      layer.pool->max_forward(args);
      return;
    }
    ConvArguments args = layer.conv_args;
    args.geometry = part(args.geometry, axis, rows);
    args.input = from;
    args.output = to;
    args.workspace = states_[i].workspace;
    if (args.epilogue.residual != nullptr)
      args.epilogue.residual = static_cast<const char*>(args.epilogue.residual) + whole_row * output_row(layer);
    State& own = states_[i];
    args.workspace_packed = own.packed_input == seen.size() && own.packed_output == rows.size();
    own.packed_input = seen.size();
    own.packed_output = rows.size();
    static const char* names[] = {"L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7"};
    const Phase phase(names[i]);
    layer.conv->forward(args);
    if (!layer.conv->finishes) finish_output(args);
  }

  struct State {
    char *handed, *workspace;                      // the output's rows in a band; the layer's own
    Span held = {0, 0};                            // which rows are there
    int64_t packed_input = -1, packed_output = -1; // rows of the part whose weight lies packed in the workspace
  };
  const std::vector<ChainLayer>& layers_;
  const int64_t image_;
  std::vector<State> states_;
};

}  // namespace

bool suits_chain(const ChainLayer& layer) {
  const auto suits = [](const auto& g) {
    for (const int64_t size : {g.kernel[kDepth], g.input[kDepth], g.output[kDepth]})
      if (size != 1) return false;
    const int64_t extent = g.dilation[kHeight] * (g.kernel[kHeight] - 1);
    return g.layout == Layout::channels_last && g.spatial == 2 && g.pad_before[kHeight] <= extent &&
           g.pad_after[kHeight] <= extent;
  };
  if (layer.conv == nullptr) return !layer.pool_args.geometry.adaptive && suits(layer.pool_args.geometry);
  const ConvGeometry& g = layer.conv_args.geometry;
  const bool zeros = g.padding_mode == PaddingMode::zeros || (g.pad_before[kHeight] == 0 && g.pad_after[kHeight] == 0);
  const bool any_row = layer.conv == &conv_im2col || (layer.conv == &conv_direct && direct_forward(g, layer.conv_args.dtype).run != nullptr);
  return any_row && zeros && suits(g);
}

ChainPlan plan_chain(const std::vector<ChainLayer>& layers) {
  ChainPlan plan;
  for (size_t i = 0; i + 1 < layers.size(); ++i)
    if (output_row(layers[i]) * Rows(layers[i]).output <= kHandedBytes) return plan;
  if (handed_bytes(layers, 1) > kMostBytes) return plan;
  const int64_t all = Rows(layers.back()).output;
  int64_t rows = 1;
  while (rows < all && handed_bytes(layers, rows + 1) <= kBandBytes) ++rows;
  plan.rows = ceil_div(all, ceil_div(all, rows));
  plan.most = rows_of_band(layers, plan.rows);
  const OneThread alone;
  for (size_t i = 0; i < layers.size(); ++i) {
    plan.workspace.push_back(layer_workspace(layers[i], plan.most[i]));
    plan.thread_bytes += handed_bytes(layers, plan, i) + plan.workspace[i];
  }
  return plan;
}

void run_chain(const std::vector<ChainLayer>& layers, const ChainPlan& plan, void* workspace) {
  const int64_t all = Rows(layers.back()).output, bands = ceil_div(all, plan.rows), images = batch_of(layers[0]);
  const int64_t strips = std::clamp(ceil_div(wanted_tasks(), images), int64_t(1), bands);
  const Blocks strip = cut(all, plan.rows, ceil_div(bands, strips) * plan.rows);
  parallel_for(images * strip.count, [&](int64_t task, int thread) {
    const OneThread alone;
    const Span own = strip[task % strip.count];
    Strip work(layers, plan, static_cast<char*>(workspace) + thread * plan.thread_bytes, task / strip.count);
    for (int64_t row = own.begin; row < own.end; row += plan.rows)
      work.run({row, std::min(row + plan.rows, own.end)});
  });
}

}  // namespace convext::cpu
