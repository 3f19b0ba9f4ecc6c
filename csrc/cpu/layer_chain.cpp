#include "layer_chain.h"

#include <algorithm>
#include <cstring>

#include "../geometry_checks.h"
#include "blocking.h"
#include "conv_direct.h"
#include "finish.h"
#include "gemm.h"
#include "parallel.h"
#include "phases.h"
#include "simd.h"
#include "unfold.h"

namespace convext::cpu {
namespace {

constexpr int kBlockPlaces = 7;  // of a register tile; divides the maps of 224 and what halves them

// Output rows [begin, end) of a block of channels, all of whose columns there are, kBlockPlaces at least.
template <typename A>
struct DepthwiseBlock {
  const A* x;              // row x_first, with its padding
  int64_t x_first, pitch;  // pitch: from row to row
  int64_t height, before;  // of the image, and its padding above
  int64_t kernel, stride, dilation;
  const A *w, *bias;  // w: [vector][tap][lane]
  A* y;               // row `begin`
  int64_t y_row, y_place, begin, end, columns, vectors;
  const Finish<A>* finish;  // without a residual
};
template <typename A>
using DepthwiseRun = void (*)(const DepthwiseBlock<A>&);

}  // namespace
}  // namespace convext::cpu

#define CONVEXT_KERNELS "layer_chain.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

constexpr int64_t kHandedBytes = 256 * 1024;  // what is handed on stays in second-level cache by itself
constexpr int64_t kBandBytes = 448 * 1024;    // of all that a band's layers hand on

// A pointwise and a depthwise layer alone: the same for what the first hands on, and a block of channels that needs no
// bands.
constexpr int64_t kBlockedBytes = 64 * 1024, kPlaneBytes = 64 * 1024;
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

DType dtype_of(const ChainLayer& layer) {
  return layer.conv != nullptr ? layer.conv_args.dtype : layer.pool_args.dtype;
}

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

// A pointwise convolution and the depthwise one behind it: the former hands on blocks of channels, [block][row][place]
// [channel of a panel of gemm's]. Between rows lie zeros, the padding of both. A block is made, then used at once.
template <typename A>
bool suits_blocks(const ConvGeometry& point, const ConvGeometry& depth) {
  const bool zeros = depth.padding_mode == PaddingMode::zeros || !depth.padded();
  return is_pointwise(point) && point.groups == 1 && point.in_channels <= kReduction<A> &&
         depth.groups == depth.in_channels && depth.groups == depth.out_channels && zeros && !depth.flip_kernel &&
         depth.dilation[kWidth] == 1 && depth.output[kWidth] >= kBlockPlaces &&
         depth.out_channels % gemm<A>().lanes == 0 &&
         CONVEXT_SELECT_ISA(depthwise_run<A>(depth.stride[kWidth], depth.kernel[kWidth])) != nullptr;
}
bool suits_blocks(const std::vector<ChainLayer>& layers, size_t i) {
  if (i + 1 >= layers.size() || layers[i].conv != &conv_im2col || layers[i + 1].conv != &conv_direct) return false;
  const ConvArguments &point = layers[i].conv_args, &depth = layers[i + 1].conv_args;
  if (point.epilogue.residual != nullptr || depth.epilogue.residual != nullptr) return false;
  if (point.dtype == DType::float32) return suits_blocks<float>(point.geometry, depth.geometry);
  return point.dtype == DType::float64 && suits_blocks<double>(point.geometry, depth.geometry);
}

int64_t panel_of(const ChainLayer& layer) {
  return layer.conv_args.dtype == DType::float32 ? gemm<float>().nr : gemm<double>().nr;
}
// Places from row to row of a block, and all of it in elements.
int64_t block_pitch(const ConvGeometry& depth) {
  return depth.input[kWidth] + std::max(depth.pad_before[kWidth], depth.pad_after[kWidth]);
}
int64_t block_elements(const ChainLayer& depth, int64_t rows) {
  const ConvGeometry& g = depth.conv_args.geometry;
  return (rows * block_pitch(g) + g.pad_before[kWidth] + g.pad_after[kWidth]) * panel_of(depth);
}
int64_t blocks_of(const ChainLayer& depth) { return ceil_div(depth.conv_args.geometry.out_channels, panel_of(depth)); }

// What layer i hands on in a band, in whole cache lines.
int64_t handed_bytes(const std::vector<ChainLayer>& layers, const ChainPlan& plan, size_t i) {
  if (i + 1 == layers.size()) return 0;
  if (plan.blocked[i])
    return round_up((plan.at_once ? 1 : blocks_of(layers[i + 1])) * block_elements(layers[i + 1], plan.most[i]) *
                        size_of(dtype_of(layers[i])),
                    kLine);
  return round_up(plan.most[i] * output_row(layers[i]), kLine);
}

int64_t layer_workspace(const std::vector<ChainLayer>& layers, const ChainPlan& plan, size_t i) {
  const ChainLayer& layer = layers[i];
  const int64_t rows = plan.most[i];
  if (layer.conv == nullptr) return 0;
  const ConvGeometry& whole = layer.conv_args.geometry;
  if (plan.blocked[i]) return 0;
  if (i > 0 && plan.blocked[i - 1]) return round_up(whole.weight_elements() * size_of(dtype_of(layer)), kLine);
  int64_t bytes = 0;  // of any number of rows: they are cut in different ways
  for (int64_t count = 1; count <= rows; ++count) {
    ConvGeometry g = whole;
    g.batch = 1;
    g.output[kHeight] = count;
    g.input[kHeight] = Rows(layer).most_seen(count);
    bytes = std::max(bytes, layer.conv->workspace_bytes(g, layer.conv_args.dtype, Direction::forward));
  }
  return round_up(bytes, kLine);
}

// A strip of the last output of one image, band after band. own_blocks: of channels, where all is done at once.
class Strip {
 public:
  Strip(const std::vector<ChainLayer>& layers, const ChainPlan& plan, char* memory, int64_t image, Span own_blocks)
      : layers_(layers), plan_(plan), image_(image), own_blocks_(own_blocks), states_(layers.size()) {
    for (size_t i = 0; i < layers.size(); ++i) {
      states_[i].handed = memory;
      states_[i].workspace = memory += handed_bytes(layers, plan, i);
      memory += plan.workspace[i];
      if (plan.blocked[i]) std::memset(states_[i].handed, 0, handed_bytes(layers, plan, i));  // the padding stays so
      if (i > 0 && plan.blocked[i - 1]) by_type(i, [&](auto type) { pack_taps<decltype(type)>(i); });
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
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (plan_.blocked[i]) {
        by_type(i, [&](auto type) { compute_blocks<decltype(type)>(i, fresh[i], fresh[i + 1]); });
        ++i;
      } else if (fresh[i].size() > 0) {
        compute(i, fresh[i]);
      }
    }
  }

 private:
  template <typename Run>
  void by_type(size_t i, const Run& run) {
    if (layers_[i].conv_args.dtype == DType::float32)
      run(float());
    else
      run(double());
  }

  // Makes room for the needed rows of layer i's output, of which those that are there stay; returns the others.
  Span keep(size_t i, Span needed) {
    Span& held = states_[i].held;
    const int64_t there = std::max<int64_t>(held.end - needed.begin, 0);
    const auto move = [&](char* rows, int64_t row) {
      if (there > 0) std::memmove(rows, rows + (needed.begin - held.begin) * row, there * row);
    };
    if (plan_.blocked[i]) {
      const ChainLayer& depth = layers_[i + 1];
      const int64_t element = size_of(dtype_of(depth)), row = block_pitch(depth.conv_args.geometry) * panel_of(depth);
      for (int64_t block = 0; block < blocks_of(depth); ++block)
        move(states_[i].handed + block * block_elements(depth, plan_.most[i]) * element, row * element);
    } else {
      move(states_[i].handed, output_row(layers_[i]));
    }
    const Span missing = {needed.begin + there, std::max(needed.end, needed.begin + there)};
    held = {needed.begin, missing.end};
    return missing;
  }

  // Where rows of layer i's input and output lie.
  const char* input_of(size_t i, int64_t row) const {
    const ChainLayer& layer = layers_[i];
    const void* whole = layer.conv != nullptr ? layer.conv_args.input : layer.pool_args.input;
    const char* from = i == 0 ? static_cast<const char*>(whole) : states_[i - 1].handed;
    return from + (i == 0 ? image_ * Rows(layer).input + row : row - states_[i - 1].held.begin) * input_row(layer);
  }
  char* output_of(size_t i, int64_t row) const {
    const ChainLayer& layer = layers_[i];
    const bool last = i + 1 == layers_.size();
    void* whole = layer.conv != nullptr ? layer.conv_args.output : layer.pool_args.output;
    char* to = last ? static_cast<char*>(whole) : states_[i].handed;
    return to + (last ? image_ * Rows(layer).output + row : row - states_[i].held.begin) * output_row(layer);
  }

  void compute(size_t i, Span rows) {
    const ChainLayer& layer = layers_[i];
    const Rows axis(layer);
    const Span seen = axis.seen(rows);
    if (layer.conv == nullptr) {
      PoolArguments args = layer.pool_args;
      args.geometry = part(args.geometry, axis, rows);
      args.input = input_of(i, seen.begin);
      args.output = output_of(i, rows.begin);
      layer.pool->max_forward(args);
      return;
    }
    State& own = states_[i];
    ConvArguments args = layer.conv_args;
    args.geometry = part(args.geometry, axis, rows);
    args.input = input_of(i, seen.begin);
    args.output = output_of(i, rows.begin);
    args.workspace = own.workspace;
    args.workspace_packed = own.packed_input == seen.size() && own.packed_output == rows.size();
    own.packed_input = seen.size();
    own.packed_output = rows.size();
    if (args.epilogue.residual != nullptr)
      args.epilogue.residual =
          static_cast<const char*>(args.epilogue.residual) + (image_ * axis.output + rows.begin) * output_row(layer);
    layer.conv->forward(args);
    if (!layer.conv->finishes) finish_output(args);
  }

  // The blocks of channels that are made here, of a depthwise layer.
  Span blocks(size_t i) const { return plan_.at_once ? own_blocks_ : Span{0, blocks_of(layers_[i])}; }

  // The weight of a depthwise layer, [vector][tap][lane].
  template <typename A>
  void pack_taps(size_t i) {
    const ConvArguments& args = layers_[i].conv_args;
    const int64_t taps = args.geometry.taps(), lanes = gemm<A>().lanes, nr = gemm<A>().nr;
    A* to = reinterpret_cast<A*>(states_[i].workspace);
    const Span own = {blocks(i).begin * nr, std::min(blocks(i).end * nr, args.geometry.out_channels)};
    for (int64_t c = own.begin; c < own.end; c += lanes)
      unfold<A>().transpose(static_cast<const A*>(args.weight) + c * taps, taps, lanes, taps, to + c * taps, lanes,
                            lanes);
  }

  // Rows `made` of a pointwise layer i, rows `used` of the depthwise one behind it, block by block.
  template <typename A>
  void compute_blocks(size_t i, Span made, Span used) {
    if (used.size() == 0) return;
    const ConvArguments& point = layers_[i].conv_args;
    ConvArguments depth = layers_[i + 1].conv_args;
    const ConvGeometry &g = point.geometry, whole = depth.geometry;
    const int64_t width = g.input[kWidth], inputs = g.in_channels, nr = gemm<A>().nr, pitch = block_pitch(whole);
    const A* x = made.size() > 0 ? reinterpret_cast<const A*>(input_of(i, made.begin)) : nullptr;
    depth.geometry = part(whole, Rows(layers_[i + 1]), used);
    depth.output = output_of(i + 1, used.begin);
    Finish<A> point_finish, depth_finish;
    const bool point_ends = finish_in_registers<A>(point, &point_finish);
    const bool depth_ends = finish_in_registers<A>(depth, &depth_finish);
    ConvArguments part_of_block = point;
    part_of_block.geometry.batch = 1;
    part_of_block.geometry.output[kHeight] = made.size();
    part_of_block.geometry.output[kWidth] = pitch;
    part_of_block.geometry.out_channels = nr;
    const Span held = states_[i].held;
    const DepthwiseRun<A> run = CONVEXT_SELECT_ISA(depthwise_run<A>(whole.stride[kWidth], whole.kernel[kWidth]));
    const Span own = blocks(i + 1);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const int64_t channel = block * nr, channels = std::min(nr, g.out_channels - channel);
      A* rows = reinterpret_cast<A*>(states_[i].handed);
      if (!plan_.at_once) rows += block * block_elements(layers_[i + 1], plan_.most[i]);
      GemmStart<A> start;
      if (point.bias != nullptr) start.column_bias = static_cast<const A*>(point.bias) + channel;
      if (point_ends) start.finish = &point_finish;
      Phase phase("gemm");
      if (made.size() > 0) {
        A* to = rows + ((made.begin - held.begin) * pitch + whole.pad_before[kWidth]) * nr;
        gemm<A>().multiply_rows(
            made.size() * width, channels, inputs, x, inputs,
            packed_panels(static_cast<const A*>(point.packed_weight) + channel * inputs, nr, inputs), to, nr, start,
            {width, (pitch - width) * nr});
        part_of_block.output = to;
        if (!point_ends) finish_block(part_of_block, {0, 0, channels, 0, width, made.size()});
      }
      phase.next("depthwise");
      const A* bias = static_cast<const A*>(depth.bias);
      run({rows, held.begin, pitch * nr, whole.input[kHeight], whole.pad_before[kHeight], whole.kernel[kHeight],
           whole.stride[kHeight], whole.dilation[kHeight],
           reinterpret_cast<const A*>(states_[i + 1].workspace) + channel * whole.taps(),
           bias == nullptr ? nullptr : bias + channel, static_cast<A*>(depth.output) + channel,
           whole.output[kWidth] * whole.out_channels, whole.out_channels, used.begin, used.end, whole.output[kWidth],
           channels / gemm<A>().lanes, depth_ends ? &depth_finish : nullptr});
    }
    const int64_t first = own.begin * nr, channels = std::min(own.end * nr, g.out_channels) - first;
    if (!depth_ends) finish_block(depth, {0, first, channels, 0, whole.output[kWidth], used.size()});
  }

  struct State {
    char *handed, *workspace;                       // the output's rows in a band; the layer's own
    Span held = {0, 0};                             // which rows are there
    int64_t packed_input = -1, packed_output = -1;  // rows of the part whose weight lies packed in the workspace
  };
  const std::vector<ChainLayer>& layers_;
  const ChainPlan& plan_;
  const int64_t image_;
  const Span own_blocks_;
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
  const bool any_row = layer.conv == &conv_im2col ||
                       (layer.conv == &conv_direct && direct_forward(g, layer.conv_args.dtype).run != nullptr);
  return any_row && zeros && suits(g);
}

ChainPlan plan_chain(const std::vector<ChainLayer>& layers) {
  ChainPlan plan;
  for (size_t i = 0; i < layers.size(); ++i) plan.blocked.push_back(suits_blocks(layers, i));
  const bool blocks = layers.size() == 2 && plan.blocked[0];
  for (size_t i = 0; i + 1 < layers.size(); ++i)
    if (output_row(layers[i]) * Rows(layers[i]).output <= (blocks ? kBlockedBytes : kHandedBytes)) return plan;
  const int64_t all = Rows(layers.back()).output;
  if (blocks) {
    const int64_t elements = block_elements(layers[1], Rows(layers[0]).output);
    plan.at_once = elements * size_of(dtype_of(layers[0])) <= kPlaneBytes;
  }
  if (!plan.at_once && handed_bytes(layers, 1) > kBandBytes) return plan;
  int64_t rows = plan.at_once ? all : 1;
  while (rows < all && handed_bytes(layers, rows + 1) <= kBandBytes) ++rows;
  plan.rows = ceil_div(all, ceil_div(all, rows));
  plan.most = rows_of_band(layers, plan.rows);
  const OneThread alone;
  for (size_t i = 0; i < layers.size(); ++i) {
    plan.workspace.push_back(layer_workspace(layers, plan, i));
    plan.thread_bytes += handed_bytes(layers, plan, i) + plan.workspace[i];
  }
  return plan;
}

void run_chain(const std::vector<ChainLayer>& layers, const ChainPlan& plan, void* workspace) {
  const int64_t all = Rows(layers.back()).output, images = batch_of(layers[0]);
  const int64_t wanted = ceil_div(max_threads(), images);
  // Blocks of channels are apart without a seam; strips are as equal as can be, and a band high at least.
  const int64_t most = plan.at_once ? blocks_of(layers.back()) : 1;
  const Blocks blocks = cut(most, 1, ceil_div(most, wanted));
  const Blocks strip = cut(all, 1, ceil_div(all, plan.at_once ? 1 : std::min(wanted, ceil_div(all, plan.rows))));
  parallel_for(images * strip.count * blocks.count, [&](int64_t task, int thread) {
    const OneThread alone;
    const Phase phase("bands");
    const Span own = strip[task / blocks.count % strip.count];
    const int64_t rows = ceil_div(own.size(), ceil_div(own.size(), plan.rows));
    Strip work(layers, plan, static_cast<char*>(workspace) + thread * plan.thread_bytes,
               task / blocks.count / strip.count, blocks[task % blocks.count]);
    for (int64_t row = own.begin; row < own.end; row += rows) work.run({row, std::min(row + rows, own.end)});
  });
}

}  // namespace convext::cpu
