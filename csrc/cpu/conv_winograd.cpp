// Winograd convolution: tiles of the output are computed in another basis, where a convolution is a
// product element by element and its sum over channels a matrix product per element (formulas: ../winograd.h):
//
//   v[e][c][tile] = B^T d B      u[e][k][c] = G w G^T      m[e][k][tile] = sum_c u v      y = A^T m A
//
// with n^2 elements e: F(4x4,3x3) multiplies 36 times where the definition does 144 times, F(2x2,3x3) 16 for 36,
// F(2x2,5x5) 36 for 100, F(2x4,5x5) 48 for 200, F(4x4,5x5) 64 for 400, F(4x4,2x2) 25 for 64, and for parts of kernels
// of 7x7 and 8x8 F(2x2,4x4) 25 for 64, F(4x4,4x4) 49 for 256; along the width alone for kernels of one row. Taps along
// depth are more terms of the sum over channels. The gradient of the input is the convolution of the output's gradient
// with the flipped weight, channels exchanged: the same code on another geometry. The gradient of the weight has a file
// of its own, conv_winograd_backward_weight.cpp.
//
// A stride of 2 is taken as four convolutions with stride 1, one for each phase of the input's places, summed before
// the last transform: phases are more channels. Even phases have (r + 1) / 2 of r taps along an axis; odd ones have one
// less where r is odd, so that their weight vanishes at infinity and is left out there: a 3x3 kernel takes 81 products
// for 144, a 4x4 kernel 100 for 256, a 7x7 kernel of few channels 169 for 784. Its gradient of the input, a transposed
// convolution, is four convolutions, too, one for each phase of the output's places, written where they belong; those
// that see the same places in the same tiles share the transformed input.
//
// A block is a range of tiles of one image and group, or all tiles of some small images: v and m of a block stay in L2
// where channels are few; where they are many, blocks grow so that the weight, which is streamed once per block, is
// read less often. Blocks are tasks; where there are too few for all threads, the threads share each step of a block. u
// is made beforehand (pack), or where it serves one call and is large, panel by panel on the way.
//
// Traffic per block: x and y once (tiles overlap: n^2 / m^2 of x), v and m written and read once, u read once.
// Error, norm-wise, in multiples of the plain sum's: F(4x4,2x2) 1.4, F(2x2,3x3) 1.7, F(4x4,3x3) 4.9, F(2x2,5x5) 3.2;
// F(2x2,4x4) 1.8; F(2x4,5x5) 7, F(4x4,4x4) 6, used for short sums; F(4x4,5x5) 12 and more, used only in mode fast. A
// NaN or infinity spreads to its whole tile.
#include <cmath>
#include <vector>

#include "bfloat16_pairs.h"
#include "conv_winograd_plan.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_winograd.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace winograd_cpu {
namespace {

constexpr double kTransformCost = 13;  // of an element of v or m, in multiply-adds of the product
constexpr double kStridedWeight = 4;   // stride 2: reading an element of u takes as long as so many tiles' products

}  // namespace

template <typename T>
const WinogradKernel<T>& kernel_of(WinogradTile tile) {
  return *CONVEXT_SELECT_ISA(kWinogradKernels<T>)[int(tile)];
}

namespace {

// How a weight lies: from output to output and from input to input of the convolution that is computed, and from tap to
// tap.
struct WeightSteps {
  int64_t output, input, tap;
};
WeightSteps weight_steps(const ConvGeometry& g, Direction direction, bool channels_last) {
  const int64_t rows = g.group_inputs() * g.taps();
  const int64_t stored_input = channels_last ? 1 : g.taps(), tap = channels_last ? g.group_inputs() : 1;
  return direction == Direction::forward ? WeightSteps{rows, stored_input, tap} : WeightSteps{stored_input, rows, tap};
}

// Where the taps of each depth tap and phase lie in the weight, `step` from tap to tap; -1 for taps that a phase lacks.
template <typename T>
std::vector<int64_t> tap_offsets(const Plan<T>& plan, int64_t step) {
  const ConvGeometry& g = plan.g;
  const int64_t high = plan.kernel->size_h - plan.kernel->out_h + 1,
                wide = plan.kernel->size_w - plan.kernel->out_w + 1;
  std::vector<int64_t> at;
  for (int64_t t = 0; t < g.kernel[0]; ++t)
    for (int64_t i = 0; i < plan.phases; ++i)
      for (int64_t r = plan.phase(i).h; r < plan.phase(i).h + high * g.stride[1]; r += g.stride[1])
        for (int64_t s = plan.phase(i).w; s < plan.phase(i).w + wide * g.stride[2]; s += g.stride[2])
          at.push_back(r < g.kernel[1] && s < g.kernel[2] ? g.weight_tap((t * g.kernel[1] + r) * g.kernel[2] + s) * step
                                                          : -1);
  return at;
}

// A weight that is packed on the way.
template <typename T>
struct RawWeight {
  const T* data;
  WeightSteps steps;
  std::vector<int64_t> taps;  // tap_offsets
};

template <typename A>
struct Buffers {
  A *v, *m, *strip, *u, *sums;
};

template <typename T, typename A = Accumulate<T>>
Buffers<A> take_buffers(Workspace& workspace, const Plan<T>& plan) {
  Buffers<A> own;
  own.v = workspace.take<A>(plan.v_elements());
  own.m = workspace.take<A>(plan.m_elements());
  own.strip = workspace.take<A>(plan.kernel->strip_elements(plan.by_tiles, plan.block));
  own.u = workspace.take<A>(plan.on_the_way ? plan.kernel->points() * plan.way_point() : 0);
  own.sums = workspace.take<A>(plan.on_the_way ? plan.kernel->points() * plan.way_sums() : 0);
  return own;
}

// A block and the steps of its computation. Each step may be done in parts, by several threads.
template <typename T>
struct Block {
  using A = Accumulate<T>;
  const Plan<T>& plan;
  const T* x;
  const A* u;
  WinogradEnd<A> end;
  const ConvArguments* finish;  // null: the end is all
  T* y;
  int64_t first_image, images, group, first_depth;
  WinogradTiles tiles;  // of each image
  A *v, *m;

  int64_t depths() const { return std::min(plan.depths, plan.g.output[0] - first_depth); }

  int64_t tile_count() const { return tiles.end - tiles.begin; }

  void transform_input(const OutputPhase& part, Span channels, A* strip) const {
    for (int64_t i = 0; i < images; ++i)
      transform_image(part, first_image + i, channels, v + i * tile_count() * plan.v.tiles, strip);
  }
  void transform_image(const OutputPhase& part, int64_t n, Span channels, A* to_image, A* strip) const {
    const ConvGeometry& g = part.phase.geometry;
    const int64_t place = plan.contiguous ? 1 : g.in_channels, plane = plan.contiguous ? g.input_places() : 1;
    const int64_t slices = (depths() - 1) * g.stride[0] + g.kernel[0];
    for (int64_t s = 0; s < slices; ++s) {
      const int64_t at = first_depth * g.stride[0] - g.pad_before[0] + s;
      const bool inside = at >= -g.pad_before[0] && at < g.input[0] + g.pad_after[0];
      const int64_t d = inside ? padded_source(at, g.input[0], g.padding_mode) : -1;
      const T* from = x + g.input_offset(n, group * plan.inputs + channels.begin, d * g.input[1] * g.input[2]);
      A* to = to_image + s * plan.phases * plan.v_phase + channels.begin * plan.v.channels;
      for (int64_t i = 0; i < plan.phases; ++i, to += plan.v_phase)
        plan.kernel->transform_input(g, d < 0 ? nullptr : from, plane, place, plan.phase(i), tiles, channels.size(), to,
                                     plan.v, strip);
    }
  }

  // m of one point, for some of u's panels.
  void multiply(int64_t i, int64_t point, Span panels) const {
    const ConvGeometry& g = plan.g;
    const int64_t k0 = panels.begin * plan.width, count = std::min(panels.end * plan.width, plan.outputs) - k0;
    const int64_t some = images * tile_count(), nr = gemm<A>().nr, lanes = gemm<A>().lanes;
    const Span seen = plan.seen(point);
    const A* weight = u + ((group * int64_t(plan.parts.size()) + i) * plan.kernel->points() + point) * plan.u_point() +
                      k0 * plan.reduction;
    for (int64_t o = 0; o < depths(); ++o) {
      const A* from = v + point * plan.v.points + o * g.stride[0] * plan.phases * plan.v_phase;
      A* to = m + point * plan.m.points + o * plan.m_depth + k0 * plan.m.channels;
      if (plan.vanishes(plan.parts[i], point)) {
        const int64_t rows = plan.by_tiles ? count : some, row = plan.by_tiles ? some : count;
        for (int64_t r = 0; r < rows; ++r, to += plan.by_tiles ? plan.m.channels : plan.m.tiles)
          std::fill(to, to + round_up(row, lanes), A(0));
        continue;
      }
      for (int64_t c = seen.begin; c < seen.end; c += kReduction<A>) {
        const int64_t depth = std::min(kReduction<A>, seen.end - c);
        Panels<A> w = packed_panels(weight, plan.width, plan.reduction);
        w.data += c * plan.width;
        if (plan.by_tiles)
          gemm<A>().multiply(count, round_up(some, lanes), depth, w,
                             {from + c * plan.v.channels, nr, nr, plan.v.channels}, to, plan.m.channels,
                             {c > seen.begin});
        else
          gemm<A>().multiply(some, round_up(count, lanes), depth,
                             rows_of_matrix(from + c, panel_width(some, gemm<A>().mr), plan.v.tiles), w, to,
                             plan.m.tiles, {c > seen.begin});
      }
    }
  }

  // m of all points for one panel of u, which is made of the weight, way_terms terms at a time. Sums are those of
  // multiply to the bit: of kReduction terms each, then added up.
  void multiply_on_the_way(const RawWeight<T>& weight, int64_t panel, const Buffers<A>& own) const {
    const int64_t k0 = panel * plan.width, count = std::min(plan.width, plan.outputs - k0),
                  rows = images * tile_count();
    const int64_t points = plan.kernel->points(), lanes = gemm<A>().lanes, columns = round_up(count, lanes);
    for (int64_t c = 0; c < plan.reduction; c += kReduction<A>) {
      const int64_t depth = std::min(kReduction<A>, plan.reduction - c);
      A* const sums = c == 0 ? m + k0 : own.sums;
      const int64_t point = c == 0 ? plan.m.points : plan.way_sums(), row = c == 0 ? plan.m.tiles : plan.width;
      for (int64_t s = 0; s < depth; s += plan.way_terms()) {
        const int64_t some = std::min(plan.way_terms(), depth - s);
        Phase phase("pack weight");
        plan.kernel->transform_weight(weight.data + k0 * weight.steps.output + (c + s) * weight.steps.input,
                                      weight.steps.output, weight.steps.input, weight.taps.data(), 1, some, count,
                                      plan.width, own.u, plan.way_point());
        phase.next("gemm");
        for (int64_t e = 0; e < points; ++e)
          gemm<A>().multiply(
              rows, columns, some,
              rows_of_matrix(v + e * plan.v.points + c + s, panel_width(rows, gemm<A>().mr), plan.v.tiles),
              packed_panels(own.u + e * plan.way_point(), plan.width, some), sums + e * point, row,
              {/*accumulate=*/false, /*resume=*/s > 0});
      }
      for (int64_t e = 0; c > 0 && e < points; ++e)
        for (int64_t r = 0; r < rows; ++r) {
          A* const to = m + e * plan.m.points + r * plan.m.tiles + k0;
          const A* const from = own.sums + e * point + r * row;
          for (int64_t l = 0; l < columns; ++l) to[l] = from[l] + to[l];
        }
    }
  }

  void transform_output(const OutputPhase& part, Span channels, A* strip) const {
    for (int64_t i = 0; i < images; ++i)
      transform_output_image(part, first_image + i, channels, m + i * tile_count() * plan.m.tiles, strip);
  }
  void transform_output_image(const OutputPhase& part, int64_t n, Span channels, const A* from_image, A* strip) const {
    const ConvGeometry& g = part.phase.geometry;
    const int64_t element = plan.contiguous ? 1 : g.out_channels, image = g.output[0] * plan.height * plan.row;
    const int64_t plane = plan.contiguous ? image : 1, place = plan.apart * element, row = place * plan.row;
    const int64_t k = group * plan.outputs + channels.begin;
    T* first = y + n * g.out_channels * image + k * plane;
    const WinogradEnd<A> here = {end.bias == nullptr ? nullptr : end.bias + k, end.finish};
    for (int64_t o = 0; o < depths(); ++o) {
      const int64_t slice = (first_depth + o) * plan.height * plan.row;
      const int64_t at = slice + part.phase.first[1] * plan.row + part.phase.first[2];
      plan.kernel->transform_output(g, from_image + o * plan.m_depth + channels.begin * plan.m.channels, plan.m, tiles,
                                    channels.size(), here, first + at * element, plane, row, place, strip);
      if (finish != nullptr) finish_tiles(n, k, channels.size(), slice);
    }
  }

  // The tiles of a row of them make a few rows of places.
  void finish_tiles(int64_t n, int64_t channel, int64_t channels, int64_t slice) const {
    const ConvGeometry& g = plan.g;
    for (int64_t t = tiles.begin, next; t < tiles.end; t = next) {
      const int64_t i = t / tiles.per_row, h = i * plan.kernel->out_h, w = t % tiles.per_row * plan.kernel->out_w;
      next = std::min(tiles.end, (i + 1) * tiles.per_row);
      finish_block(*finish, {n, channel, channels, slice + h * g.output[2] + w,
                             std::min((next - t) * plan.kernel->out_w, g.output[2] - w),
                             std::min<int64_t>(plan.kernel->out_h, g.output[1] - h)});
    }
  }
};

template <typename T>
void run(const ConvArguments& args, Direction direction) {
  using A = Accumulate<T>;
  const Plan<T> plan = make_plan<T>(args.geometry, direction, /*on_the_way=*/args.packed_weight == nullptr);
  const bool forward = direction == Direction::forward;
  RawWeight<T> raw = {
      static_cast<const T*>(args.weight), weight_steps(args.geometry, direction, args.weight_channels_last), {}};
  if (plan.on_the_way) raw.taps = tap_offsets(plan, raw.steps.tap);
  Workspace workspace(args.workspace), measure(nullptr);
  const A* bias = widened(static_cast<const T*>(forward ? args.bias : nullptr), plan.g.out_channels, workspace);
  char* buffers = static_cast<char*>(args.workspace) + workspace.used();
  take_buffers(measure, plan);
  Finish<A> finish;
  const bool in_registers = finish_in_registers<T>(args, &finish);
  const auto block_of = [&](int64_t task, const Buffers<A>& own) {
    const int64_t tile = task % plan.blocks * plan.block, image = task / plan.blocks / plan.depth_blocks;
    const int64_t first = image / plan.g.groups * plan.together;
    return Block<T>{plan,
                    static_cast<const T*>(forward ? args.input : args.grad_output),
                    static_cast<const A*>(args.packed_weight),
                    {bias, in_registers ? &finish : nullptr},
                    in_registers || args.epilogue.empty() ? nullptr : &args,
                    static_cast<T*>(args.output),
                    first,
                    std::min(plan.together, plan.g.batch - first),
                    image % plan.g.groups,
                    task / plan.blocks % plan.depth_blocks * plan.depths,
                    {tile, std::min(tile + plan.block, plan.tiles), plan.per_row},
                    own.v,
                    own.m};
  };
  const int64_t points = plan.kernel->points(), parts = int64_t(plan.parts.size());
  if (!plan.shared) {
    parallel_for(plan.tasks, [&](int64_t task, int thread) {
      Workspace mine(buffers + thread * measure.used());
      const Buffers<A> own = take_buffers(mine, plan);
      const Block<T> block = block_of(task, own);
      for (int64_t i = 0; i < parts; ++i) {
        Phase phase("transform input");
        if (!plan.parts[i].same_input) block.transform_input(plan.parts[i], {0, plan.inputs}, own.strip);
        phase.next("gemm");
        for (int64_t e = 0; e < points; ++e) block.multiply(i, e, {0, plan.panels});
        phase.next("transform output");
        block.transform_output(plan.parts[i], {0, plan.outputs}, own.strip);
      }
    });
    return;
  }
  const auto own_of = [&](int thread) {
    Workspace mine(buffers + thread * measure.used());
    return take_buffers(mine, plan);
  };
  const int64_t threads = max_threads(), lanes = gemm<A>().lanes;
  const Blocks in = cut(plan.inputs, lanes, ceil_div(plan.inputs, threads));
  const Blocks out = cut(plan.outputs, lanes, ceil_div(plan.outputs, threads));
  const Blocks panels = cut(plan.panels, 1, ceil_div(plan.panels, ceil_div(kTasksPerThread * threads, points)));
  for (int64_t step = 0; step < plan.tasks * parts; ++step) {
    const Block<T> block = block_of(step / parts, own_of(0));
    const int64_t turn = step % parts;
    const OutputPhase& part = plan.parts[turn];
    {
      const Phase phase("transform input");
      parallel_for(part.same_input ? 0 : in.count,
                   [&](int64_t i, int thread) { block.transform_input(part, in[i], own_of(thread).strip); });
    }
    if (plan.on_the_way) {
      parallel_for(plan.panels, [&](int64_t i, int thread) { block.multiply_on_the_way(raw, i, own_of(thread)); });
    } else {
      const Phase phase("gemm");
      parallel_for(points * panels.count,
                   [&](int64_t i, int) { block.multiply(turn, i / panels.count, panels[i % panels.count]); });
    }
    const Phase phase("transform output");
    parallel_for(out.count, [&](int64_t i, int thread) { block.transform_output(part, out[i], own_of(thread).strip); });
  }
}

// What no other device's winograd does: 2x2 kernels, and of slices that see one depth a stride of 2; both without the
// gradient of the weight.
bool also_here(const ConvGeometry& g, Direction direction) {
  const bool square = g.kernel[1] == g.kernel[2] && g.stride[1] == g.stride[2];
  const bool dilated = g.dilation[0] != 1 || g.dilation[1] != 1 || g.dilation[2] != 1;
  if (!square || dilated || direction == Direction::backward_weight) return false;
  if (direction == Direction::backward_input && g.stride[0] != 1) return false;
  if (g.stride[1] == 1) return g.kernel[1] == 2;
  return g.stride[1] == 2 && g.kernel[0] == 1 && g.kernel[1] >= 3 && g.kernel[1] <= 8;
}

const char* unsupported(const ConvGeometry& g, DType, Direction direction) {
  return also_here(g, direction) ? nullptr : winograd_refusal(g, direction);
}

// What packing on the way is for: few tiles in all, whose products take no longer than writing and reading a large u.
// Of small weights, whose calls are short, that is said without a plan.
template <typename T>
bool pays_on_the_way(const Plan<T>& plan) {
  const int64_t bytes = plan.kernel->points() * plan.u_point() * int64_t(sizeof(Accumulate<T>));
  return !plan.by_tiles && plan.g.output[0] == 1 && plan.parts.size() == 1 && plan.tiles * plan.g.batch <= kWayTiles &&
         bytes >= kWayBytes;
}
bool may_pack_on_the_way(const ConvGeometry& g, Direction direction) {
  constexpr int64_t kMostPoints = 64, kMostBytes = 8;
  if (g.groups > 1 || g.kernel[0] > 1 || strided(g) || direction == Direction::backward_weight) return false;
  if (direction == Direction::backward_input && repeats_padding(g)) return false;
  return round_up(g.in_channels, kWidestVector) * round_up(g.out_channels, kWidestVector) * kMostPoints * kMostBytes >=
         kWayBytes / 2;
}
bool packs_on_the_way(const ConvGeometry& g, DType dtype, Direction direction) {
  return may_pack_on_the_way(g, direction) && dispatch_floating(dtype, [&](auto type) {
           return pays_on_the_way(make_plan<typename decltype(type)::type>(g, direction));
         });
}

template <typename T>
int64_t plan_bytes(const Plan<T>& plan) {
  Workspace shared(nullptr), own(nullptr);
  shared.take<Accumulate<T>>(sizeof(T) == sizeof(Accumulate<T>) ? 0 : plan.g.out_channels);
  take_buffers(own, plan);
  return shared.used() + max_threads() * own.used();
}
int64_t run_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Plan<T> plan = make_plan<T>(g, direction);
    const int64_t bytes = plan_bytes(plan);
    if (!may_pack_on_the_way(g, direction) || !pays_on_the_way(plan)) return bytes;
    return std::max(bytes, plan_bytes(make_plan<T>(g, direction, /*on_the_way=*/true)));
  });
}

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return backward_weight_bytes(g, dtype);
  if (direction == Direction::forward) return run_bytes(g, dtype, direction);
  return input_gradient_bytes(g, dtype,
                              [&](const ConvGeometry& part, DType type) { return run_bytes(part, type, direction); });
}

Packing packing(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return {};
  return dispatch_floating(dtype, [&](auto type) -> Packing {
    using T = typename decltype(type)::type;
    const Plan<T> plan = make_plan<T>(g, direction);
    const int64_t parts = int64_t(plan.parts.size()), elements = plan.g.groups * parts * plan.kernel->points();
    int64_t arrangement = int64_t(choose_tile(plan.g)) * 2 + plan.by_tiles;
    if (plan.apart > 1)  // which taps are whose
      for (const OutputPhase& part : plan.parts)
        arrangement = (arrangement * 8 + part.phase.tap[1]) * 8 + part.phase.tap[2];
    return {elements * plan.u_point() * int64_t(sizeof(Accumulate<T>)), arrangement};
  });
}

// Where the taps of a part of the output lie in the weight, `step` from tap to tap, as above.
template <typename T>
std::vector<int64_t> tap_offsets(const Plan<T>& plan, const OutputPhase& part, const ConvGeometry& g, int64_t step) {
  const int64_t* taps = part.phase.geometry.kernel;
  std::vector<int64_t> at;
  for (int64_t t = 0; t < taps[0]; ++t)
    for (int64_t r = 0; r < plan.g.kernel[1]; ++r)
      for (int64_t s = 0; s < plan.g.kernel[2]; ++s) {
        const int64_t tap = (t * taps[1] + r) * taps[2] + s;
        at.push_back(r < taps[1] && s < taps[2] ? g.weight_tap(part.phase.kernel_tap(g, tap)) * step : -1);
      }
  return at;
}

template <typename T>
void pack_weight(const PackArguments& args) {
  using A = Accumulate<T>;
  const Plan<T> plan = make_plan<T>(args.geometry, args.direction);
  const int64_t rows = args.geometry.group_inputs() * args.geometry.taps();
  const auto [output, input, tap] = weight_steps(args.geometry, args.direction, args.channels_last);
  std::vector<std::vector<int64_t>> at;
  for (const OutputPhase& part : plan.parts)
    at.push_back(plan.apart > 1 ? tap_offsets(plan, part, args.geometry, tap) : tap_offsets(plan, tap));
  const T* w = static_cast<const T*>(args.weight);
  A* u = static_cast<A*>(args.packed);
  const Phase phase("pack weight");
  const int64_t parts = int64_t(plan.parts.size());
  parallel_for(plan.g.groups * parts * plan.panels, [&](int64_t task, int) {
    const int64_t part = task / plan.panels, group = part / parts, k = task % plan.panels * plan.width;
    const T* from = w + group * args.geometry.group_outputs() * rows + k * output;
    A* to = u + part * plan.kernel->points() * plan.u_point() + k * plan.reduction;
    plan.kernel->transform_weight(from, output, input, at[part % parts].data(), plan.phases * plan.g.kernel[0],
                                  plan.inputs, std::min(plan.width, plan.outputs - k), plan.width, to, plan.u_point());
  });
}

void pack(const PackArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { pack_weight<typename decltype(type)::type>(args); });
}

void run_any(const ConvArguments& args, Direction direction) {
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args, direction); });
}

void backward_input(const ConvArguments& args) {
  compute_input_gradient(args, [](const ConvArguments& part) { run_any(part, Direction::backward_input); });
}

}  // namespace
}  // namespace winograd_cpu

double winograd_gain(const ConvGeometry& geometry, DType dtype, Direction direction) {
  using namespace winograd_cpu;
  if (unsupported(geometry, dtype, direction) != nullptr) return 0;
  if (direction == Direction::backward_weight) return backward_weight_gain(geometry);
  const ConvGeometry g = as_forward(geometry, direction);
  const WinogradKernel<float>& kernel = kernel_of<float>(choose_tile(g));
  // Of a stride of 2: phases of the input that are summed, or of the output that are computed one by one.
  const bool strides = strided(geometry), gathers = strided(g);
  double plain = double(g.kernel[1] * g.kernel[2] * g.output[1] * g.output[2]), inputs = gathers ? 4 : 1, outputs = 1;
  if (strides && !gathers) {
    plain = inputs = outputs = 0;
    for (const OutputPhase& part : output_phases(geometry, g, direction)) {
      const ConvGeometry& p = part.phase.geometry;
      plain += double(p.kernel[1] * p.kernel[2] * p.output[1] * p.output[2]);
      inputs += part.same_input ? 0 : 1;
      outputs += 1;
    }
  }
  const int64_t all_tiles = winograd_tiles(g, kernel.out_h, kernel.out_w);
  const double tiles = double(round_up(all_tiles, 8)), points = kernel.points();
  const bool odd = geometry.kernel[1] % 2 == 1;
  double products = !strides ? points : odd ? std::pow(2 * kernel.size_h - 1, 2) : (gathers ? 4 : outputs) * points;
  if (strides && (g.layout == Layout::channels_last || !better_by_tiles<float>(g, all_tiles))) {
    // Channels are lanes: first layers, and their gradients, fill few of them.
    const auto padded = [](int64_t channels) { return double(round_up(channels, kWidestVector)) / double(channels); };
    inputs *= padded(g.group_inputs()), outputs *= padded(g.group_outputs()), products *= padded(g.group_outputs());
  }
  const double transforms =
      kTransformCost * points * (outputs / double(g.group_inputs()) + inputs / double(g.group_outputs()));
  const bool widened = direction == Direction::backward_input && repeats_padding(geometry);
  const double rate = dtype == DType::bfloat16 && pairs_bfloat16() && !widened ? kPairRate : 1;  // of the plain product
  return plain / (rate * (tiles + (strides ? kStridedWeight : 0)) * (products + transforms));
}

const ConvAlgorithm conv_winograd = {
    "winograd",
    winograd_cpu::unsupported,
    winograd_cpu::workspace_bytes,
    [](const ConvArguments& args) { winograd_cpu::run_any(args, Direction::forward); },
    winograd_cpu::backward_input,
    winograd_cpu::backward_weight,
    winograd_cpu::packing,
    winograd_cpu::pack,
    /*finishes=*/true,
    winograd_cpu::packs_on_the_way,
};

}  // namespace convext::cpu
