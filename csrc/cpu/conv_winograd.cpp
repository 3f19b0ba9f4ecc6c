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
// A dilation is split into phases, too: each is a convolution without one of fewer places, and all of them are images
// to what follows (dilation.h). Its gradients likewise.
//
// A block is a range of tiles of one image and group, or all tiles of some small images: v and m of a block stay in L2
// where channels are few; where they are many, blocks grow so that the weight, which is streamed once per block, is
// read less often. Blocks are tasks; where there are too few for all threads, shares of a block's outputs are, each
// with v and m of its own: what two threads both transform costs less than lines that pass from core to core. Only
// where threads are many do they share each step of a block. u is made beforehand, or on the way:
// conv_winograd_packing.h.
//
// Traffic per block: x and y once (tiles overlap: n^2 / m^2 of x), v and m written and read once, u read once.
// Error, norm-wise, in multiples of the plain sum's: F(4x4,2x2) 1.4, F(2x2,3x3) 1.7, F(4x4,3x3) 4.9, F(2x2,5x5) 3.2;
// F(2x2,4x4) 1.8; F(2x4,5x5) 7, F(4x4,4x4) 6, used for short sums; F(4x4,5x5) 12 and more, used only in mode fast. A
// NaN or infinity spreads to its whole tile.
#include <cmath>
#include <vector>

#include "bfloat16_pairs.h"
#include "conv_winograd_packing.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_winograd.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace winograd_cpu {
namespace {

constexpr int64_t kSplitBytes = int64_t(4) << 20;  // of a dilation's phases, but at least an image's

}  // namespace

template <typename T>
const WinogradKernel<T>& kernel_of(WinogradTile tile) {
  return *CONVEXT_SELECT_ISA(kWinogradKernels<T>)[int(tile)];
}
template const WinogradKernel<float>& kernel_of(WinogradTile);
template const WinogradKernel<double>& kernel_of(WinogradTile);
template const WinogradKernel<Half>& kernel_of(WinogradTile);
template const WinogradKernel<BFloat16>& kernel_of(WinogradTile);

namespace {

template <typename A>
struct Buffers {
  A *v, *m, *strip, *turned, *u, *sums;
};

template <typename T, typename A = Accumulate<T>>
Buffers<A> take_buffers(Workspace& workspace, const Plan<T>& plan) {
  Buffers<A> own;
  own.v = workspace.take<A>(plan.v_elements());
  own.m = workspace.take<A>(plan.m_elements());
  own.strip = workspace.take<A>(plan.kernel->strip_elements(plan.by_tiles, plan.block));
  own.turned = workspace.take<A>(plan.few ? plan.turned_filters() : 0);
  own.u = workspace.take<A>(plan.own_u                     ? plan.u_elements()
                            : plan.on_the_way && !plan.few ? plan.kernel->points() * plan.way_point()
                                                           : 0);
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
      A* to = to_image + s * plan.phases * plan.v_phase + plan.v_channel(channels.begin);
      const int64_t some = plan.few ? kTurnedTerms : channels.size();  // side by side in v
      for (int64_t i = 0; i < plan.phases; ++i, to += plan.v_phase)
        for (int64_t c = 0; c < channels.size(); c += some)
          plan.kernel->transform_input(g, d < 0 ? nullptr : from + c * plane, plane, place, phase_of(g, i), tiles,
                                       std::min(some, channels.size() - c), to + plan.v_channel(c), plan.v, strip);
    }
  }

  // m of one point and depth where u is zero, of `count` outputs.
  void clear(A* to, int64_t count) const {
    const int64_t some = images * tile_count(), rows = plan.by_tiles ? count : some, row = plan.by_tiles ? some : count;
    for (int64_t r = 0; r < rows; ++r, to += plan.by_tiles ? plan.m.channels : plan.m.tiles)
      std::fill(to, to + round_up(row, gemm<A>().lanes), A(0));
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
        clear(to, count);
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

  // The filters of `some` input channels from c on and a vector of outputs from k on, turned.
  TurnedFilters<A> filters(const RawWeight<T>& weight, int64_t k, int64_t c, int64_t some, A* to) const {
    const int64_t lanes = gemm<A>().lanes, present = std::min(lanes, plan.outputs - k);
    const T* from = weight.data + k / lanes * weight.vector + c * weight.steps.input;
    const std::vector<int64_t>& taps = weight.taps[0];
    if constexpr (std::is_same_v<T, A>)
      if (weight.turned) {
        const int64_t first = taps[0], tap = taps.size() > 1 ? taps[1] - first : 0;
        return {from + first, weight.steps.input, tap, from + some * weight.steps.input};
      }
    TurnedFilters<A> turned =
        plan.kernel->turn_weight(from, weight.steps.output, weight.steps.input, taps.data(), some, int(present), to);
    turned.ahead = to;
    return turned;
  }

  // Adds a panel's sums of further terms, of all tiles, to m from `to` on.
  void add_sums(const A* sums, int64_t columns, A* to) const {
    for (int64_t r = 0; r < images * tile_count(); ++r, to += plan.m.tiles, sums += plan.width) {
      A* __restrict all = to;
      const A* __restrict more = sums;
      for (int64_t l = 0; l < columns; ++l) all[l] = more[l] + all[l];
    }
  }

  // m of outputs [k, k + columns) from sums of kReduction terms each, then added up: those of multiply to the bit.
  // add(c, terms, to, point, row) makes one of them, of `terms` terms from c on.
  template <typename Add>
  void sum_in_parts(int64_t k, int64_t columns, A* sums, const Add& add) const {
    for (int64_t c = 0; c < plan.reduction; c += kReduction<A>) {
      const int64_t terms = std::min(kReduction<A>, plan.reduction - c);
      if (c == 0) {
        add(c, terms, m + k, plan.m.points, plan.m.tiles);
        continue;
      }
      add(c, terms, sums, plan.way_sums(), plan.width);
      for (int64_t e = 0; e < plan.kernel->points(); ++e)
        add_sums(sums + e * plan.way_sums(), columns, m + e * plan.m.points + k);
    }
  }

  // m of all points for one panel of u, which is never in memory.
  void multiply_turned(const RawWeight<T>& weight, int64_t panel, const Buffers<A>& own) const {
    const int64_t lanes = gemm<A>().lanes, first = panel * plan.width, rows = images * tile_count();
    for (int64_t k = first; k < std::min(first + plan.width, plan.outputs); k += lanes)
      sum_in_parts(k, lanes, own.sums, [&](int64_t c, int64_t terms, A* to, int64_t point, int64_t row) {
        for (int64_t s = 0; s < terms; s += kTurnedTerms) {
          const int64_t some = std::min(kTurnedTerms, terms - s);
          Phase phase(weight.turned ? "gemm" : "pack weight");
          const TurnedFilters<A> turned = filters(weight, k, c + s, some, own.turned);
          phase.next("gemm");
          const A* const from = v + plan.v_channel(c + s);
          for (int64_t t = 0; t < rows; t += plan.kernel->few_tiles)
            plan.kernel->multiply_turned(turned, some, from + t * plan.v.tiles, plan.v.points,
                                         std::min<int64_t>(rows - t, plan.kernel->few_tiles), to + t * row, point, row,
                                         s > 0);
        }
      });
  }

  // m of all points for one panel of u, which is made of the weight, way_terms terms of a phase at a time.
  void multiply_on_the_way(const RawWeight<T>& weight, int64_t i, int64_t panel, const Buffers<A>& own) const {
    const int64_t k = panel * plan.width, count = std::min(plan.width, plan.outputs - k);
    const int64_t columns = round_up(count, gemm<A>().lanes), taps = int64_t(weight.taps[i].size()) / plan.phases;
    for (int64_t phase = 0; phase < plan.phases; ++phase)
      for (int64_t c = 0; c < plan.inputs; c += plan.way_terms()) {
        const int64_t some = std::min(plan.way_terms(), plan.inputs - c), first = phase * plan.inputs + c;
        Phase step("pack weight");
        plan.kernel->transform_weight(weight.data + k * weight.steps.output + c * weight.steps.input,
                                      weight.steps.output, weight.steps.input, weight.taps[i].data() + phase * taps, 1,
                                      some, count, plan.width, own.u, plan.way_point());
        step.next("gemm");
        for (int64_t e = 0; e < plan.kernel->points(); ++e) {
          const Span seen = plan.seen(e);
          if (plan.vanishes(plan.parts[i], e))
            clear(m + e * plan.m.points + k, count);
          else if (first >= seen.begin && first < seen.end)
            continue_sums(e, first - seen.begin, some, seen, own.u + e * plan.way_point(), k, columns,
                          own.sums + e * plan.way_sums());
        }
      }
  }

  // Goes on with the sums of a point, from term `done` of those it sees on: sums of kReduction terms each, then added
  // up, those of multiply to the bit. u: of these terms.
  void continue_sums(int64_t e, int64_t done, int64_t terms, Span seen, const A* u, int64_t k, int64_t columns,
                     A* sums) const {
    const int64_t rows = images * tile_count(), end = done + terms;
    A* const all = m + e * plan.m.points + k;
    for (int64_t t = done, next; t < end; u += (next - t) * plan.width, t = next) {
      const int64_t begun = t / kReduction<A> * kReduction<A>;
      next = std::min(begun + kReduction<A>, end);
      const A* from = v + e * plan.v.points + seen.begin + t;
      gemm<A>().multiply(rows, columns, next - t, rows_of_matrix(from, panel_width(rows, gemm<A>().mr), plan.v.tiles),
                         packed_panels(u, plan.width, next - t), begun == 0 ? all : sums,
                         begun == 0 ? plan.m.tiles : plan.width, {/*accumulate=*/false, /*resume=*/t > begun});
      if (begun > 0 && (next % kReduction<A> == 0 || next == seen.size())) add_sums(sums, columns, all);
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

// How a weight comes to a call. That is settled for all of it: parts of it, a few images of a dilation or of padding
// that repeats, would be taken otherwise.
enum class Comes { packed, turned, raw };

template <typename T>
Plan<T> plan_of(const ConvGeometry& g, Direction direction, Comes weight) {
  if (weight != Comes::raw) return make_plan<T>(g, direction, /*on_the_way=*/weight == Comes::turned);
  Plan<T> plan = make_plan<T>(g, direction);
  if (may_pack_on_the_way(g, direction) && pays_on_the_way(plan))
    return make_plan<T>(g, direction, /*on_the_way=*/true);
  plan.own_u = true;
  if (plan.shared) plan.shares = {plan.panels, plan.panels, 1}, plan.shared = false;
  return plan;
}

Comes comes(const ConvGeometry& g, DType dtype, Direction direction, bool packed) {
  if (!packed) return Comes::raw;
  return dispatch_floating(dtype, [&](auto type) {
    return keeps_turned<typename decltype(type)::type>(g, direction) ? Comes::turned : Comes::packed;
  });
}

template <typename T>
struct Run {
  using A = Accumulate<T>;
  const ConvArguments& args;
  bool forward;
  const Plan<T>& plan;
  RawWeight<T> raw;
  const A* bias;
  Finish<A> finish;
  bool in_registers;
  char* buffers;
  int64_t thread_bytes;

  Buffers<A> own_of(int thread) const {
    Workspace mine(buffers + thread * thread_bytes);
    return take_buffers(mine, plan);
  }

  Block<T> block_of(int64_t task, const Buffers<A>& own) const {
    const int64_t tile = task % plan.blocks * plan.block, image = task / plan.blocks / plan.depth_blocks;
    const int64_t first = image / plan.g.groups * plan.together;
    return {plan,
            static_cast<const T*>(forward ? args.input : args.grad_output),
            plan.own_u ? own.u : static_cast<const A*>(args.packed_weight),
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
  }

  void multiply_made(const Block<T>& block, int64_t part, int64_t panel, const Buffers<A>& own) const {
    if (plan.few)
      block.multiply_turned(raw, panel, own);
    else
      block.multiply_on_the_way(raw, part, panel, own);
  }

  // Some panels of a block, from the input on.
  void run_share(int64_t task, Span panels, const Buffers<A>& own) const {
    const Block<T> block = block_of(task, own);
    const Span outputs = {panels.begin * plan.width, std::min(panels.end * plan.width, plan.outputs)};
    for (int64_t i = 0; i < int64_t(plan.parts.size()); ++i) {
      if (!plan.parts[i].same_input) {
        const Phase phase("transform input");
        block.transform_input(plan.parts[i], {0, plan.inputs}, own.strip);
      }
      if (plan.on_the_way) {
        share(panels.size(),
              [&](int64_t panel, int thread) { multiply_made(block, i, panels.begin + panel, own_of(thread)); });
      } else {
        share(plan.kernel->points(), [&](int64_t e, int) {
          const Phase phase("gemm");
          block.multiply(i, e, panels);
        });
      }
      const Phase phase("transform output");
      block.transform_output(plan.parts[i], outputs, own.strip);
    }
  }

  // u of the panels of a task's share.
  void make_share(int64_t task, A* u) const {
    const Phase phase("pack weight");
    const Span panels = plan.shares[task % plan.shares.count];
    for (int64_t group = 0; group < plan.g.groups; ++group)
      for (int64_t part = 0; part < int64_t(plan.parts.size()); ++part)
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) make_u(plan, raw, group, part, panel, u);
  }

  void run_shares() const {
    const int64_t all = plan.tasks * plan.shares.count;
    const auto share = [&](int64_t task, const Buffers<A>& own) {
      run_share(task / plan.shares.count, plan.shares[task % plan.shares.count], own);
    };
    if (!plan.own_u) {
      parallel_for(all, [&](int64_t task, int thread) { share(task, own_of(thread)); });
      return;
    }
    // A thread makes those panels of u that its tasks use.
    const Blocks turns = cut(all, 1, ceil_div(all, max_threads()));
    parallel_for(turns.count, [&](int64_t turn, int thread) {
      const Buffers<A> own = own_of(thread);
      const Span tasks = turns[turn];
      for (int64_t i = 0; i < std::min(tasks.size(), plan.shares.count); ++i) make_share(tasks.begin + i, own.u);
      for (int64_t task = tasks.begin; task < tasks.end; ++task) share(task, own);
    });
  }

  // Step by step, each by all threads.
  void run_steps() const {
    const int64_t points = plan.kernel->points(), parts = int64_t(plan.parts.size());
    const int64_t threads = max_threads(), lanes = gemm<A>().lanes;
    const Blocks in = cut(plan.inputs, plan.few ? kTurnedTerms : lanes, ceil_div(plan.inputs, threads));
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
        parallel_for(plan.panels, [&](int64_t i, int thread) { multiply_made(block, turn, i, own_of(thread)); });
      } else {
        const Phase phase("gemm");
        parallel_for(points * panels.count,
                     [&](int64_t i, int) { block.multiply(turn, i / panels.count, panels[i % panels.count]); });
      }
      const Phase phase("transform output");
      parallel_for(out.count,
                   [&](int64_t i, int thread) { block.transform_output(part, out[i], own_of(thread).strip); });
    }
  }
};

template <typename T>
void run(const ConvArguments& args, Direction direction, Comes weight) {
  using A = Accumulate<T>;
  const bool forward = direction == Direction::forward;
  const Plan<T> plan = plan_of<T>(args.geometry, direction, weight);
  Workspace workspace(args.workspace), measure(nullptr);
  const A* bias = widened(static_cast<const T*>(forward ? args.bias : nullptr), plan.g.out_channels, workspace);
  take_buffers(measure, plan);
  Run<T> whole = {
      args, forward, plan, {}, bias, {}, false, static_cast<char*>(args.workspace) + workspace.used(), measure.used()};
  if (weight == Comes::turned)
    whole.raw = turned_weight(plan, args.packed_weight, args.geometry);
  else if (weight == Comes::raw)
    whole.raw = raw_weight(plan, args.weight, args.geometry, direction, args.weight_channels_last);
  whole.in_registers = finish_in_registers<T>(args, &whole.finish);
  plan.shared ? whole.run_steps() : whole.run_shares();
}

// What no other device's winograd does: 2x2 kernels, of slices that see one depth a stride of 2, dilations.
bool also_here(const ConvGeometry& g, Direction direction) {
  const bool square = g.kernel[1] == g.kernel[2] && g.stride[1] == g.stride[2];
  const bool dilated = g.dilation[0] != 1 || g.dilation[1] != 1 || g.dilation[2] != 1;
  if (!square || dilated) return false;
  if (direction == Direction::backward_input && g.stride[0] != 1) return false;
  if (g.stride[1] == 1) return g.kernel[1] == 2;
  return g.stride[1] == 2 && g.kernel[0] == 1 && g.kernel[1] >= 3 && g.kernel[1] <= 8;
}

}  // namespace

const char* unsupported(const ConvGeometry& geometry, DType, Direction direction) {
  ConvGeometry g = geometry;
  if (dilated(g)) {
    if (g.stride[0] * g.stride[1] * g.stride[2] > 1) return "with a dilation the stride must be 1";
    for (int64_t& dilation : g.dilation) dilation = 1;
  }
  return also_here(g, direction) ? nullptr : winograd_refusal(g, direction);
}

namespace {

// Of a dilation, what is split at once: a few images.
struct Pieces {
  int64_t images, input, output;  // bytes of all phases of what goes in and of what comes out
};
Pieces pieces_of(const ConvGeometry& forward, DType dtype) {
  const DilationPhases all(forward);
  const int64_t batch = std::max(forward.batch, int64_t(1)), input = all.input_bytes(dtype) / batch,
                output = all.output_bytes(dtype) / batch;
  const int64_t images = images_within(kSplitBytes, input + output, batch);
  return {images, images * input, images * output};
}

template <typename T>
int64_t plan_bytes(const Plan<T>& plan) {
  Workspace shared(nullptr), own(nullptr);
  shared.take<Accumulate<T>>(sizeof(T) == sizeof(Accumulate<T>) ? 0 : plan.g.out_channels);
  take_buffers(own, plan);
  return shared.used() + max_threads() * own.used();
}
// `once`: the weight may come raw.
int64_t whole_bytes(const ConvGeometry& g, DType dtype, Direction direction, Comes kept, bool once) {
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t bytes = plan_bytes(plan_of<T>(g, direction, kept));
    return once ? std::max(bytes, plan_bytes(plan_of<T>(g, direction, Comes::raw))) : bytes;
  });
}

int64_t run_bytes(const ConvGeometry& g, DType dtype, Direction direction, Comes kept, bool once) {
  if (!dilated(g)) return whole_bytes(g, dtype, direction, kept, once);
  const Pieces pieces = pieces_of(as_forward(g, direction), dtype);
  Workspace workspace(nullptr);
  workspace.take<char>(pieces.input);
  workspace.take<char>(pieces.output);
  return workspace.used() + most_of_batches(g.batch, pieces.images, [&](int64_t batch) {
           ConvGeometry some = g;
           some.batch = batch;
           return whole_bytes(some, dtype, direction, kept, once);
         });
}

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return backward_weight_bytes(g, dtype);
  const Comes kept = comes(g, dtype, direction, /*packed=*/true);
  const bool once = packs_on_the_way(g, dtype, direction);
  if (direction == Direction::forward) return run_bytes(g, dtype, direction, kept, once);
  return input_gradient_bytes(
      g, dtype, [&](const ConvGeometry& part, DType type) { return run_bytes(part, type, direction, kept, once); });
}

void run_whole(const ConvArguments& args, Direction direction, Comes weight) {
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args, direction, weight); });
}

// With a dilation the phases of a few images at a time; what follows the sums comes last.
void run_any(const ConvArguments& args, Direction direction, Comes weight) {
  if (!dilated(args.geometry)) return run_whole(args, direction, weight);
  const bool is_forward = direction == Direction::forward;
  const void* const from = is_forward ? args.input : args.grad_output;
  ConvGeometry g = as_forward(args.geometry, direction);
  const Pieces pieces = pieces_of(g, args.dtype);
  Workspace workspace(args.workspace);
  char* input = workspace.take<char>(pieces.input);
  char* output = workspace.take<char>(pieces.output);
  ConvArguments part = args;
  (is_forward ? part.input : part.grad_output) = input;
  part.output = output;
  part.workspace = static_cast<char*>(args.workspace) + workspace.used();
  part.epilogue = {};
  for (int64_t n = 0; n < args.geometry.batch; n += pieces.images) {
    g.batch = part.geometry.batch = std::min(pieces.images, args.geometry.batch - n);
    const DilationPhases phases(g);
    const int64_t element = size_of(args.dtype);
    phases.split_input(static_cast<const char*>(from) + g.input_offset(n, 0, 0) * element, input, args.dtype);
    run_whole(part, direction, weight);
    phases.join_output(output, static_cast<char*>(args.output) + g.output_offset(n, 0, 0) * element, args.dtype);
  }
  if (is_forward) finish_output(args);
}

Comes comes(const ConvArguments& args, Direction direction) {
  return comes(args.geometry, args.dtype, direction, args.packed_weight != nullptr);
}

void forward(const ConvArguments& args) { run_any(args, Direction::forward, comes(args, Direction::forward)); }

void backward_input(const ConvArguments& args) {
  const Comes weight = comes(args, Direction::backward_input);
  compute_input_gradient(args, [&](const ConvArguments& part) { run_any(part, Direction::backward_input, weight); });
}

}  // namespace
}  // namespace winograd_cpu

const ConvAlgorithm conv_winograd = {
    "winograd",
    winograd_cpu::unsupported,
    winograd_cpu::workspace_bytes,
    winograd_cpu::forward,
    winograd_cpu::backward_input,
    winograd_cpu::backward_weight,
    winograd_cpu::packing,
    winograd_cpu::pack,
    /*finishes=*/true,
    winograd_cpu::packs_on_the_way,
    /*writes_channels_last=*/true,
};

}  // namespace convext::cpu
