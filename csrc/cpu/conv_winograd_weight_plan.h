// How conv_winograd_backward_weight.cpp cuts a call: the tile, blocks, what is whose, and where everything lies. See
// there.
#pragma once
#include <algorithm>

#include "../winograd.h"
#include "blocking.h"
#include "conv_winograd.h"
#include "gemm.h"
#include "isa.h"

namespace convext::cpu::winograd_cpu::weight {

// Of the active instruction set.
template <typename T>
const WinogradWeightKernel<T>& kernel_of(WinogradTile tile);

constexpr int64_t kMostBytes = int64_t(16) << 20;    // u and v together, where all tiles are one chunk
constexpr int64_t kNearBytes = int64_t(4) << 20;     // up to which they always are
constexpr int64_t kChunkBytes = int64_t(5) << 20;    // u and v of one of several
constexpr int64_t kSumBytes = int64_t(8) << 20;      // sums that are kept over several chunks
constexpr int64_t kBlockBytes = int64_t(400) << 10;  // sums of a task: a small second-level cache
constexpr int64_t kMinChunk = 64, kMaxChunk = 512;   // tiles
constexpr int64_t kChain = 128;                      // tiles
constexpr int64_t kAdds = 32;                        // chunks
constexpr int64_t kShortSum = 4096;                  // tiles of all images: up to so many F(4x4,4x4) is accurate enough
constexpr int64_t kFewSums = int64_t(1) << 16;       // of a task, where they stay in registers
constexpr int64_t kFewTiles = 32, kFewerTiles = 8;   // so few are summed in registers, of which there may be but 16
constexpr double kSumTiles = 6;                      // reading and writing a sum costs as many tiles' products,
constexpr double kFewSumTiles = 3;                   // transforming one in registers as many
constexpr double kShortTiles = 10;                   // the same for kernels of 2x2 and phases of a stride of 2,
constexpr double kFewShortTiles = 2;                 // in registers,
constexpr double kGroupedPlain = 1.4;  // what the plain product takes longer for where it is one of many groups
constexpr double kPlainPlaces = 20;    // and in a plain product as many places'
constexpr double kPlainRows = 20;      // output channels: of fewer, it takes as long
constexpr double kNarrowCost = 1.5;    // of a product of these without AVX-512
constexpr double kSplitPays = 1.6;     // times fewer products, from which on a dilation is split
constexpr double kTransformCost = 9;   // of an element of u or v, in multiply-adds of the product

// Whether all tiles of a call are few enough for its sums to stay in registers.
inline bool few_tiles(const ConvGeometry& g, int out_h, int out_w) {
  const int64_t most = active_isa() >= Isa::avx512 ? kFewTiles : kFewerTiles;
  return g.kernel[0] == 1 && g.batch * g.output[0] * winograd_tiles(g, out_h, out_w) <= most;
}
inline double sum_tiles(const ConvGeometry& g, int out_h, int out_w) {
  return few_tiles(g, out_h, out_w) ? kFewSumTiles : kSumTiles;
}

// The larger tile multiplies less, but has more sums to read and write; few tiles do not pay for that.
inline WinogradTile choose_tile(const ConvGeometry& g) {
  const int64_t taps = ceil_div(g.kernel[1], g.stride[1]);  // of a phase
  if (taps == 2) return WinogradTile::f4x4_2x2;
  if (taps == 4) {
    const bool is_short = g.batch * g.output[0] * winograd_tiles(g, 4, 4) <= kShortSum;
    return is_short || g.winograd == WinogradMode::fast ? WinogradTile::f4x4_4x4 : WinogradTile::f2x2_4x4;
  }
  if (strided(g)) return WinogradTile::f4x4_3x3;
  return choose_winograd_tile(g, [&](int m) {
    const double tiles = double(g.batch) * double(g.output[0] * winograd_tiles(g, m, m));
    return double((m + 2) * (m + 2)) * (tiles + sum_tiles(g, m, m));
  });
}

// dy as an input without padding.
inline ConvGeometry gradient_view(const ConvGeometry& g) {
  ConvGeometry view = g;
  view.in_channels = g.out_channels;
  view.padding_mode = PaddingMode::zeros;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    view.input[axis] = g.output[axis];
    view.pad_before[axis] = view.pad_after[axis] = 0;
    view.stride[axis] = 1;
  }
  return view;
}

// So many channels side by side, so that the same channel of successive tiles falls into successive sets of a cache.
template <typename A>
int64_t row_of(int64_t channels) {
  const int64_t line = 64 / int64_t(sizeof(A)), row = round_up(channels, gemm<A>().lanes);
  return row > 2 * line && row / line % 2 == 0 ? row + line : row;
}

// One operand: its channels of a block, the slices (along depth) and steps of its transform.
struct Operand {
  ConvGeometry view;
  int64_t channels;  // of a group
  Blocks block;      // transformed together: channels of a part, or all
  int64_t slices;    // of a chunk, in each phase
  WinogradSteps steps;
};

template <typename T>
struct Plan {
  using A = Accumulate<T>;
  const WinogradWeightKernel<T>* kernel;
  Operand x, dy;
  const WinogradToTaps<T>* to_taps;
  int64_t depth_taps, depth_stride;
  int64_t phases;                     // of x; with a stride, there is one depth tap
  int64_t per_row, tiles;             // of a slice
  Blocks images, depths, tile_block;  // of a chunk; more than one depth or image only of whole slices
  Blocks k, c;                        // of sums, within those that are transformed together
  int64_t sum_row, sum_points;        // from output channel to output channel, from point to point: between are those
                                      // of all phases, depth taps, input channels
  int64_t chunks;
  bool several;  // chunks
  bool own;      // a thread has u and v of its own, and sums; else threads share the steps
  bool few;      // tiles: their products are summed in registers

  int64_t sum_elements() const { return few ? 0 : sum_points * kernel->points(); }
  // The slice of x, in a chunk, that tap t sees from depth o.
  int64_t slice(int64_t o, int64_t t) const {
    return depth_stride < depth_taps ? o * depth_stride + t : o * depth_taps + t;
  }
};

// How many parts k and c are taken in. Parts begin at whole vectors: the rest of a vector may be transformed with other
// roundings.
struct Parts {
  int64_t k, c;
};

template <typename A>
Blocks part_channels(int64_t channels, int64_t parts) {
  return cut(channels, gemm<A>().lanes, ceil_div(channels, parts));
}

// Those that threads take each with u and v of its own, of at most `most_sums` pairs of channels; none: sharing, in
// parts as for one thread, is faster.
template <typename A>
Parts choose_parts(const ConvGeometry& g, double slices_per_depth, int64_t most_sums, int64_t threads) {
  const int64_t outs = g.group_outputs(), inputs = g.group_inputs(), lanes = gemm<A>().lanes;
  const auto cost = [&](int64_t parts, double k, double c, double times) {
    return double(parts) *
           (double(g.kernel[0] * phase_count(g)) * k * c + times * kTransformCost * (k + slices_per_depth * c));
  };
  Parts best = {0, 0};
  double least = 0;
  if (threads > 1) {
    const Parts one = choose_parts<A>(g, slices_per_depth, most_sums, 1);
    const double k = double(part_channels<A>(outs, one.k).size), c = double(part_channels<A>(inputs, one.c).size);
    least = cost(g.groups * one.k * one.c, k, c, kForeign) / double(threads);
  }
  const int64_t all_k = std::max(ceil_div(outs, lanes), int64_t(1)),
                all_c = std::max(ceil_div(inputs, lanes), int64_t(1));
  const int64_t enough = 2 * threads * std::max(ceil_div(outs * inputs, most_sums), int64_t(1));
  for (int64_t k = 1; k <= std::min(all_k, enough); ++k)
    for (int64_t c = 1; c <= all_c && k * c <= enough; ++c) {
      const Blocks own_k = part_channels<A>(outs, k), own_c = part_channels<A>(inputs, c);
      if (std::min(own_k.size, outs) * std::min(own_c.size, inputs) > most_sums) continue;
      const double all =
          cost(ceil_div(g.groups * own_k.count * own_c.count, threads), double(own_k.size), double(own_c.size), 1);
      if (least > 0 && all >= least) continue;
      least = all;
      best = {k, c};
    }
  if (best.k == 0 && threads == 1) return {all_k, all_c};
  return best;
}

template <typename T>
Plan<T> make_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const Gemm<A>& multiply = gemm<A>();
  const int64_t element = int64_t(sizeof(A));
  Plan<T> plan;
  plan.kernel = &kernel_of<T>(choose_tile(g));
  plan.x.view = g;
  plan.dy.view = gradient_view(g);
  plan.x.channels = g.group_inputs();
  plan.dy.channels = g.group_outputs();
  plan.depth_taps = g.kernel[0];
  plan.depth_stride = g.stride[0];
  plan.phases = phase_count(g);
  plan.to_taps = &plan.kernel->to_taps(g);
  plan.per_row = ceil_div(g.output[2], plan.kernel->out_w);
  plan.tiles = winograd_tiles(g, plan.kernel->out_h, plan.kernel->out_w);
  const int64_t points = plan.kernel->points(), sums = plan.phases * plan.depth_taps;  // of a pair of channels
  const auto slices = [&](int64_t depths) { return plan.slice(depths - 1, plan.depth_taps - 1) + 1; };
  const auto operand_bytes = [&](int64_t tiles, int64_t depths, int64_t k, int64_t c) {
    return points * tiles * (depths * row_of<A>(k) + plan.phases * slices(depths) * row_of<A>(c)) * element;
  };

  const double slices_per_depth = double(plan.phases * slices(g.output[0])) / double(g.output[0]);
  const int64_t all_bytes = g.batch * operand_bytes(plan.tiles, g.output[0], plan.dy.channels, plan.x.channels);
  const int64_t pair_bytes = points * sums * element, sum_bytes = pair_bytes * plan.dy.channels * plan.x.channels;
  const int64_t threads = max_threads(), most_kept = std::max(kSumBytes / pair_bytes, int64_t(1));
  // Operands that the near caches do not hold are better taken in chunks, but the more often the parts of the sums are.
  plan.several = all_bytes > kMostBytes || (all_bytes > kNearBytes && sum_bytes <= (strided(g) ? 1 : 2) * kSumBytes);
  plan.few = !plan.several && few_tiles(g, plan.kernel->out_h, plan.kernel->out_w);
  const Parts one = plan.several ? choose_parts<A>(g, slices_per_depth, most_kept, 1) : Parts{1, 1};
  Parts parts = one;
  plan.own = false;
  if (threads > 1) {
    const Parts own =
        choose_parts<A>(g, slices_per_depth, plan.several ? most_kept : plan.dy.channels * plan.x.channels, threads);
    plan.own = own.k > 0;
    if (plan.own) parts = own;
  }
  plan.dy.block = part_channels<A>(plan.dy.channels, parts.k);
  plan.x.block = part_channels<A>(plan.x.channels, parts.c);
  const int64_t all_k = std::min(plan.dy.block.size, plan.dy.channels),
                all_c = std::min(plan.x.block.size, plan.x.channels);
  const int64_t most_sums = plan.few ? kFewSums : kBlockBytes / pair_bytes;
  int64_t k = round_up(all_k, panel_width(all_k, multiply.mr)), c = round_up(all_c, multiply.lanes);
  while (true) {
    plan.k = cut(all_k, panel_width(all_k, multiply.mr), k);
    plan.c = cut(all_c, multiply.lanes, c);
    const bool too_few = !plan.own && threads > 1 && plan.k.count * plan.c.count < kTasksPerThread * threads;
    if (plan.several || (plan.k.size * plan.c.size <= most_sums && !too_few)) break;
    if (c > 2 * multiply.nr && c >= k)
      c = round_up(c / 2, multiply.nr);
    else if (k > multiply.mr)
      k = ceil_div(k, 2);
    else if (c > multiply.nr)
      c = round_up(c / 2, multiply.nr);
    else
      break;
  }

  plan.images = {g.batch, g.batch, 1};
  plan.depths = {g.output[0], g.output[0], 1};
  plan.tile_block = {plan.tiles, plan.tiles, 1};
  if (plan.several) {  // the same ones for any number of threads
    const int64_t bytes = operand_bytes(1, 1, part_channels<A>(plan.dy.channels, one.k).size,
                                        part_channels<A>(plan.x.channels, one.c).size);
    const int64_t most = std::clamp(kChunkBytes / bytes, kMinChunk, kMaxChunk);
    plan.images = {g.batch, 1, g.batch};
    if (plan.tiles > most) {
      plan.depths = {g.output[0], 1, g.output[0]};
      plan.tile_block = cut(plan.tiles, plan.per_row <= most ? plan.per_row : 1, most);
    } else {
      plan.depths = cut(g.output[0], 1, std::max(most / plan.tiles, int64_t(1)));
      if (plan.depths.count == 1)
        plan.images = cut(g.batch, 1, std::max(most / (plan.tiles * g.output[0]), int64_t(1)));
    }
  }
  plan.chunks = plan.images.count * plan.depths.count * plan.tile_block.count;
  plan.dy.slices = plan.depths.size;
  plan.x.slices = slices(plan.depths.size);
  for (Operand* operand : {&plan.x, &plan.dy}) {
    const int64_t row = row_of<A>(operand->block.size), phases = operand == &plan.x ? plan.phases : 1;
    operand->steps = {points_apart<A>(phases * plan.images.size * operand->slices * plan.tile_block.size * row), 1,
                      row};
  }
  plan.sum_row = sums * round_up(plan.c.size, multiply.lanes);
  plan.sum_points = points_apart<A>(plan.k.size * plan.sum_row);
  return plan;
}

template <typename A>
struct Operands {
  A *u, *v;
};

// Where operands and sums are: a thread's own, or what threads share.
template <typename A>
struct Room {
  Operands<A> all = {};
  A* sums = nullptr;   // several chunks: of a part; else of a block, a thread's own
  A* total = nullptr;  // where there are more than kAdds chunks
  A* strip = nullptr;  // a thread's own
};

template <typename T, typename A = Accumulate<T>>
struct Buffers {
  Room<A> shared;
  char* threads;
  int64_t thread_bytes;
  int64_t bytes;

  Buffers(void* workspace, const Plan<T>& plan) {
    Workspace first(workspace), own(nullptr);
    if (!plan.own) {
      shared.all = take_operands(first, plan);
      if (plan.several) take_sums(first, plan, &shared);
    }
    threads = static_cast<char*>(workspace) + first.used();
    take_own(own, plan);
    thread_bytes = own.used();
    bytes = first.used() + max_threads() * thread_bytes;
  }
  Room<A> own(int thread, const Plan<T>& plan) const {
    Workspace mine(threads + thread * thread_bytes);
    return take_own(mine, plan);
  }

 private:
  static Operands<A> take_operands(Workspace& workspace, const Plan<T>& plan) {
    Operands<A> operands;
    operands.u = workspace.take<A>(plan.dy.steps.points * plan.kernel->points());
    operands.v = workspace.take<A>(plan.x.steps.points * plan.kernel->points());
    return operands;
  }
  static void take_sums(Workspace& workspace, const Plan<T>& plan, Room<A>* room) {
    room->sums = workspace.take<A>(plan.sum_elements());
    room->total = workspace.take<A>(plan.chunks > kAdds ? plan.sum_elements() : 0);
  }
  static Room<A> take_own(Workspace& workspace, const Plan<T>& plan) {
    Room<A> own = {};
    if (plan.own) own.all = take_operands(workspace, plan);
    if (plan.own || !plan.several) take_sums(workspace, plan, &own);
    own.strip = workspace.take<A>(plan.kernel->strip_elements(plan.x.view.layout));
    return own;
  }
};

}  // namespace convext::cpu::winograd_cpu::weight
