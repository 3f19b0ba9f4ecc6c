// How conv_winograd.cpp cuts a call: the tile, blocks of tiles, and where everything lies. See there.
#pragma once
#include <vector>

#include "../winograd.h"
#include "blocking.h"
#include "conv_winograd.h"
#include "dilation.h"
#include "gemm.h"
#include "input_gradient.h"
#include "isa.h"

namespace convext::cpu::winograd_cpu {

// Of the active instruction set.
template <typename T>
const WinogradKernel<T>& kernel_of(WinogradTile tile);

// conv_winograd.cpp: why a geometry is not for winograd; null where it is.
const char* unsupported(const ConvGeometry& geometry, DType dtype, Direction direction);

constexpr int64_t kCacheBytes = 320 * 1024;  // for v and m of a block: most of a small second-level cache
constexpr int64_t kMaxBlock = 96;            // tiles
constexpr int64_t kReading = 8;              // u for a block takes as long as so many tiles
constexpr double kWorthwhile = 1.03;         // times faster
constexpr int64_t kWayElements = 80 * 1024;  // of u, made at once on the way
constexpr int64_t kWayTiles = 64;            // of all images, up to which making u takes as long as multiplying it
constexpr int64_t kWayBytes = 4 << 20;       // of u, from which on the near caches do not hold it
constexpr int64_t kLongRow = 64;             // by_tiles: those of a row that a block takes whole
constexpr int64_t kTurnedWidth = 128;        // of contiguous outputs, up to which channels may be lanes
constexpr double kWeightCycles = 0.8;        // of reading an element of u from the third-level cache, per element
constexpr int64_t kFewTurns = 2;             // that many times u is made in registers rather than read
constexpr double kFewTransform = 2.6;        // as long as those of so many tiles it takes once
constexpr double kTransformCost = 13;        // of an element of v or m, in multiply-adds of the product
constexpr int64_t kOwnThreads = 4;           // so many rather make u of a weight that serves one call each for itself
constexpr int64_t kShortSum = 64;            // terms of a sum: up to so many F(2x4,5x5), F(4x4,4x4) are accurate enough

// Tiles of one depth of an image's output, those of all phases of a dilation.
inline int64_t tiles_of(const ConvGeometry& g, const WinogradKernel<float>& kernel) {
  if (!dilated(g)) return winograd_tiles(g, kernel.out_h, kernel.out_w);
  const DilationPhases phases(g);
  return phases.count() * winograd_tiles(phases.undilated(), kernel.out_h, kernel.out_w);
}

// Whether an image has few tiles and a large weight: u is then made in registers (conv_winograd_few.inl).
inline bool has_few_tiles(const ConvGeometry& g, WinogradTile tile) {
  const WinogradKernel<float>& kernel = kernel_of<float>(tile);
  const int64_t bytes = kernel.points() * g.group_inputs() * g.group_outputs() * int64_t(sizeof(float));
  return tiles_of(g, kernel) <= kernel.few_tiles && bytes >= kWayBytes && g.groups == 1 && g.kernel[0] == 1 &&
         g.output[0] == 1 && !strided(g);
}

// So many tiles of an output depth, all full, take as long as its tiles.
inline double counted_tiles(const ConvGeometry& g, WinogradTile tile) {
  const int64_t tiles = tiles_of(g, kernel_of<float>(tile));
  return has_few_tiles(g, tile) ? double(tiles) + kFewTransform : double(round_up(tiles, 8));
}

// The larger tile multiplies less, but with few tiles its larger weight is read for little, and the map's edges waste
// more of it. Depends on the geometry of one image only.
inline WinogradTile choose_tile(const ConvGeometry& g) {
  const int64_t taps = ceil_div(g.kernel[1], g.stride[1]);  // of a phase
  if (taps == 2) return WinogradTile::f4x4_2x2;
  if (taps == 4)
    return g.group_inputs() * g.stride[1] * g.stride[2] <= kShortSum ? WinogradTile::f4x4_4x4 : WinogradTile::f2x2_4x4;
  if (strided(g)) return WinogradTile::f4x4_3x3;
  const auto cost = [&](WinogradTile tile) {  // per output and input channel, in cycles of 16 multiply-adds
    const double tiles = counted_tiles(g, tile) * double(g.output[0]) / 16;
    return kernel_of<float>(tile).points() * (has_few_tiles(g, tile) ? tiles : std::max(tiles, kWeightCycles));
  };
  const WinogradTile tile =
      choose_winograd_tile(g, [&](int m) { return cost(m == 2 ? WinogradTile::f2x2_3x3 : WinogradTile::f4x4_3x3); });
  if (tile == WinogradTile::f2x2_5x5 && g.group_inputs() * g.kernel[0] <= kShortSum &&
      cost(WinogradTile::f2x4_5x5) < cost(WinogradTile::f2x2_5x5))
    return WinogradTile::f2x4_5x5;
  return tile;
}

// The convolution that a direction comes down to: with a stride, the largest of those that make up the gradient of the
// input.
inline ConvGeometry as_forward(const ConvGeometry& geometry, Direction direction) {
  if (direction == Direction::forward) return geometry;
  ConvGeometry mirrored = StridePhases(gradient_geometry(geometry))[0].geometry;
  mirrored.flip_kernel = !geometry.flip_kernel;
  for (int axis : {1, 2}) mirrored.kernel[axis] = ceil_div(geometry.kernel[axis], geometry.stride[axis]);
  return mirrored;
}

// Of the places of the output, those that are computed as one convolution: all, or with the gradient of the input at a
// stride of 2 one phase of four.
struct OutputPhase {
  StridePhase phase;
  bool short_h, short_w;  // a tap is missing: the weight vanishes at infinity
  bool same_input;        // transformed as for the one before
};

inline std::vector<OutputPhase> output_phases(const ConvGeometry& geometry, const ConvGeometry& g,
                                              Direction direction) {
  std::vector<OutputPhase> all;
  if (direction == Direction::forward || !strided(geometry)) {
    all.push_back({});
    all[0].phase.geometry = g;
    return all;
  }
  const StridePhases phases(gradient_geometry(geometry));
  for (int64_t i = 0; i < phases.count(); ++i) {
    const StridePhase phase = phases[i];
    const ConvGeometry &p = phase.geometry, &before = all.empty() ? p : all.back().phase.geometry;
    all.push_back({phase, p.kernel[1] < g.kernel[1], p.kernel[2] < g.kernel[2],
                   i > 0 && p.pad_before[1] == before.pad_before[1] && p.pad_before[2] == before.pad_before[2]});
  }
  return all;
}

template <typename T>
struct Plan {
  using A = Accumulate<T>;
  ConvGeometry g;  // as_forward's; phases of a dilation are images
  std::vector<OutputPhase> parts;
  int64_t height, row, apart;  // of the whole output; from one place of a part to the next
  WinogradTile tile;
  const WinogradKernel<T>* kernel;
  bool contiguous, by_tiles;                     // by_tiles: lanes of transforms are tiles, else channels
  int64_t inputs, outputs;                       // channels of a group
  int64_t per_row, tiles, block;                 // block: tiles of one, blocks: their number per image
  int64_t blocks, depths, depth_blocks, slices;  // depths: output depths of a block, slices: input depths it sees
  int64_t together;                              // images of a block, more than one where it has all of an image
  int64_t phases;                                // of the stride, in a slice
  int64_t pitch;                                 // by_tiles: lanes of a block
  int64_t reduction;                             // inputs x phases x taps along depth
  int64_t width, panels;                         // of u
  WinogradSteps v, m;
  int64_t v_phase, m_depth;  // from phase to phase of v, from depth to depth of m
  Blocks shares;             // of u's panels: tasks of a block, each with v and m of its own
  bool shared;               // threads share the steps of a block: it has one share
  bool on_the_way;           // u is made panel by panel, for all tiles of all images at once
  bool few = false;          // on the way, and tiles so few that u stays in registers
  bool own_u = false;        // a thread makes u for itself before its first task
  int64_t tasks;             // blocks

  int64_t v_elements() const { return few ? v_channel(round_up(inputs, kTurnedTerms)) : v.points * kernel->points(); }
  // Where channel c is in v: of few tiles, kTurnedTerms are side by side, and all their points follow each other.
  int64_t v_channel(int64_t c) const {
    return few ? c / kTurnedTerms * kernel->points() * v.points + c % kTurnedTerms : c * v.channels;
  }
  int64_t m_elements() const { return m.points * kernel->points(); }
  // Of the sum, what a point sees.
  Span seen(int64_t point) const {
    const Span some =
        seen_phases(g, point / kernel->size_w == kernel->size_h - 1, point % kernel->size_w == kernel->size_w - 1);
    const int64_t terms = reduction / phases;
    return {some.begin * terms, some.end * terms};
  }
  // Whether a part's weight is zero at a point.
  bool vanishes(const OutputPhase& part, int64_t point) const {
    return (part.short_h && point / kernel->size_w == kernel->size_h - 1) ||
           (part.short_w && point % kernel->size_w == kernel->size_w - 1);
  }
  // How many multiply-adds' time a share of some panels takes, per tile and point; times: as long transforms take.
  double share_cost(int64_t some, double times) const {
    const double terms = double(reduction), columns = double(std::min(some * width, outputs));
    return terms * columns + times * kTransformCost * (terms + columns);
  }
  // Shares of all blocks' panels, as many as keep threads busy; none where sharing the steps is faster.
  Blocks choose_shares(int64_t threads) const {
    Blocks best = {panels, panels, 0};
    double least = share_cost(panels, kForeign) * double(tasks) / double(threads);
    for (int64_t most = panels; most >= 1; --most) {
      const Blocks some = cut(panels, 1, most);
      const double all = share_cost(some.size, 1) * double(ceil_div(tasks * some.count, threads));
      if (some.count <= threads && all < least) least = all, best = some;
    }
    return best;
  }

  // What u is on the way, and the sums of a panel.
  int64_t way_terms() const { return std::max(kWayElements / (kernel->points() * width) / 16 * 16, int64_t(16)); }
  int64_t way_point() const { return points_apart<A>(way_terms() * width); }
  int64_t turned_filters() const {
    return kTurnedTerms * kWidestVector * std::max(g.kernel[1] * g.kernel[2], 2 * kFilterSpan);
  }
  int64_t way_sums() const { return points_apart<A>(block * together * width); }
  int64_t u_point() const { return points_apart<A>(panels * width * reduction); }
  int64_t u_elements() const { return g.groups * int64_t(parts.size()) * kernel->points() * u_point(); }
  // Whether u, of one group, is more than the near caches hold.
  bool large_u() const { return u_elements() / g.groups * int64_t(sizeof(A)) >= kWayBytes; }
};

// Whether planes are better transformed with tiles as lanes than turned: where rows are long enough to come fast from
// memory as they are, or channels would fill vectors worse than tiles do.
template <typename T>
bool better_by_tiles(const ConvGeometry& g, int64_t tiles) {
  const int64_t lanes = gemm<Accumulate<T>>().lanes;
  const auto filled = [&](int64_t count) { return double(count) / double(round_up(count, lanes)); };
  return g.output[2] > kTurnedWidth || std::min(filled(g.group_inputs()), filled(g.group_outputs())) < filled(tiles);
}

// What the slowest thread takes of `images` with so many tiles in blocks: its tiles, and u for each block.
inline double slowest_thread(int64_t tiles, int64_t blocks, int64_t unit, int64_t images) {
  const int64_t block = round_up(ceil_div(tiles, blocks), unit), count = ceil_div(tiles, block);
  const int64_t tasks = images * count, threads = max_threads(), turns = ceil_div(tasks, threads);
  const int64_t all = turns * (block + kReading);
  if (images > 1 || tasks % threads != 1) return double(all);
  return double(all - std::min(block + kReading, count * block - tiles));  // one takes more, and the short one with it
}

template <typename T>
Plan<T> make_plan(const ConvGeometry& geometry, Direction direction, bool on_the_way = false) {
  using A = Accumulate<T>;
  const Gemm<A>& multiply = gemm<A>();
  Plan<T> plan;
  plan.g = as_forward(geometry, direction);
  plan.tile = choose_tile(plan.g);
  plan.kernel = &kernel_of<T>(plan.tile);
  if (dilated(plan.g)) plan.g = DilationPhases(plan.g).undilated();
  const ConvGeometry& g = plan.g;
  const bool whole = direction == Direction::forward || !strided(geometry);
  plan.parts = output_phases(geometry, g, direction);
  plan.height = whole ? g.output[1] : gradient_geometry(geometry).input[1];
  plan.row = whole ? g.output[2] : gradient_geometry(geometry).input[2];
  plan.apart = whole ? 1 : geometry.stride[1];
  plan.contiguous = g.layout == Layout::contiguous;
  plan.inputs = g.group_inputs();
  plan.outputs = g.group_outputs();
  plan.per_row = ceil_div(g.output[2], plan.kernel->out_w);
  plan.tiles = winograd_tiles(g, plan.kernel->out_h, plan.kernel->out_w);
  plan.phases = phase_count(g);
  plan.reduction = plan.inputs * plan.phases * g.kernel[0];
  plan.by_tiles = plan.contiguous && better_by_tiles<T>(g, plan.tiles);
  plan.width = plan.by_tiles ? panel_width(plan.outputs, multiply.mr) : multiply.nr;
  plan.panels = ceil_div(plan.outputs, plan.width);

  // Tiles of a block: as many as L2 takes, or as balance reading u against reading v and m once more.
  const int64_t points = plan.kernel->points(), seen = g.kernel[0] > 1 ? 2 : 1;
  const int64_t per_tile = points * (seen * plan.inputs * plan.phases + plan.outputs) * int64_t(sizeof(A));
  const int64_t balance = plan.reduction * plan.outputs / (2 * (plan.reduction + plan.outputs));
  const int64_t unit = plan.by_tiles ? multiply.lanes : 1;
  const int64_t most = std::clamp(std::max(kCacheBytes / per_tile, balance), multiply.nr, kMaxBlock);
  plan.block = round_up(plan.tiles, unit);
  if (plan.block > most + unit) plan.block = most / unit * unit;  // a small rest is no block of its own
  if (plan.by_tiles)                                              // short pieces of long rows come slowly from memory
    plan.block = std::max(plan.block, round_up(std::min(plan.per_row, kLongRow), unit));
  plan.depths = std::clamp(most / plan.block, int64_t(1), g.output[0]);
  plan.depth_blocks = ceil_div(g.output[0], plan.depths);
  const int64_t threads = max_threads(), images = g.batch * g.groups;
  int64_t blocks = ceil_div(plan.tiles, plan.block);
  if (threads > 1) {  // as many for each thread
    const int64_t others = images * plan.depth_blocks;
    int64_t better = blocks;
    while (others * better % threads != 0 && better < blocks + threads) ++better;
    if (others * better % threads == 0 &&
        (others * blocks < threads ? ceil_div(plan.tiles, better) >= multiply.nr
                                   : kWorthwhile * slowest_thread(plan.tiles, better, unit, others) <
                                         slowest_thread(plan.tiles, blocks, unit, others)))
      blocks = better;
  }
  plan.block = round_up(ceil_div(plan.tiles, blocks), unit);
  plan.blocks = ceil_div(plan.tiles, plan.block);
  // Small images together, so that u is read for all of them.
  plan.together = 1;
  if (!plan.by_tiles && plan.blocks * plan.depth_blocks == 1) {
    const bool read_once = plan.large_u() && plan.tiles * g.batch < kWayTiles / 2;  // by all threads together
    const int64_t shares = read_once ? 1 : threads;
    plan.together =
        std::clamp(most / (plan.block * plan.depths), int64_t(1), std::max(ceil_div(g.batch, shares), int64_t(1)));
  }
  plan.on_the_way = on_the_way;
  if (on_the_way) plan.block = plan.tiles, plan.blocks = 1, plan.together = std::max(g.batch, int64_t(1));
  plan.tasks = ceil_div(g.batch, plan.together) * g.groups * plan.depth_blocks * plan.blocks;
  plan.shares = {plan.panels, plan.panels, 1};
  if (plan.tasks < threads) plan.shares = plan.choose_shares(threads);
  plan.shared = plan.shares.count == 0;

  plan.slices = (plan.depths - 1) * g.stride[0] + g.kernel[0];
  plan.pitch = round_up(plan.block, multiply.lanes);
  const int64_t seen_channels = plan.slices * plan.phases * plan.inputs;
  if (plan.by_tiles) {
    plan.v = {points_apart<A>(seen_channels * plan.pitch), plan.pitch, 1};
    plan.v_phase = plan.inputs * plan.pitch;
    plan.m = {points_apart<A>(plan.depths * plan.outputs * plan.pitch), plan.pitch, 1};
    plan.m_depth = plan.outputs * plan.pitch;
  } else {
    const int64_t row = round_up(plan.outputs, multiply.lanes);
    plan.v = {points_apart<A>(seen_channels * plan.block * plan.together), 1, seen_channels};
    plan.v_phase = plan.inputs;
    plan.m_depth = plan.block * plan.together * row;
    plan.m = {points_apart<A>(plan.depths * plan.m_depth), 1, row};
    plan.few = on_the_way && !strided(geometry) && plan.block * plan.together <= kFewTurns * plan.kernel->few_tiles;
    if (plan.few) plan.v = {plan.block * plan.together * kTurnedTerms, 1, kTurnedTerms};
  }
  return plan;
}

}  // namespace convext::cpu::winograd_cpu
