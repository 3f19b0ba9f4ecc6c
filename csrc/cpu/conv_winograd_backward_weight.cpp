// Winograd's gradient of the weight, the transpose of its forward pass in the weight, with the same matrices:
//
//   u[e][k][tile] = A dy A^T      v[e][c][tile] = B^T d B      m[e][k][c] = sum over tiles of u v      dw = G^T m G
//
// A tile of dy acts as a filter of m x m taps on a tile of the input: F(4x4,3x3) multiplies 36 times where the
// definition does 144 times. The sum over tiles and images happens at the points: one matrix product per element e and
// phase or tap along depth, and a single transform of the sums. Both operands have channels side by side, whatever the
// layout.
//
// With a stride of 2, x is taken in four phases of its places. What the taps of a phase sum is the gradient of a kernel
// of stride 1; u, of dy, serves all four. A 4x4 kernel takes 100 products for 256, with F(4x4,2x2), a 3x3 kernel 81 for
// 144: phases that lack a tap leave the points at infinity out. 5x5 and 6x6 kernels take F(4x4,3x3), 7x7 and 8x8 ones
// F(4x4,4x4), or F(2x2,4x4) where tiles are very many.
//
// A chunk is a range of tiles, depths or images. If all tiles are one, blocks of sums (k, c) that fit L2 are multiplied
// out and transformed one by one. If there are several, of kChunkBytes of u and v, the sums of a part of k and c, up to
// kSumBytes, are kept while they pass. Many threads share u and v, and the steps. A few take a part of k and c each,
// with u and v of their own, though parts in one row or column then compute the same: lines that pass from core to core
// cost more.
//
// A dilation is split into phases, whose places of x and dy are images to what follows (dilation.h).
//
// Where all tiles together are few (deep layers), most of a product would be its sums: they stay in registers
// (multiply_to_taps) and m is never written.
//
// The order of an element's sum: pieces of up to kChain tiles, piece by piece; after kAdds chunks a new sum is begun,
// lest the error grow with the map.
//
// Traffic: x and dy once per block of sums (n^2 / m^2 of x, for tiles overlap), u and v written and read once, m read
// and written once per chunk.
// Error, norm-wise: 1.3e-6 for F(4x4,3x3) on four maps of 224 x 224, 0.5e-6 on 14 x 14; modes as in the forward pass.
// Of a stride of 2, on four of 112 x 112 outputs: 0.7e-6 for 3x3 and 4x4, 1.0e-6 for 5x5 and 6x6, 2.0e-6 for 7x7 and
// 8x8.
#include "conv_winograd_weight_plan.h"
#include "dilation.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_winograd_backward_weight.inl"
#include "for_each_isa.inl"

namespace convext::cpu::winograd_cpu {
namespace weight {

template <typename T>
const WinogradWeightKernel<T>& kernel_of(WinogradTile tile) {
  return *CONVEXT_SELECT_ISA(kWinogradWeightKernels<T>)[int(tile)];
}

}  // namespace weight

namespace {

using namespace weight;

// One chunk.
struct Chunk {
  Span images, depths;
  WinogradTiles tiles;
  int64_t count() const { return tiles.end - tiles.begin; }
};

template <typename T>
struct Work {
  using A = Accumulate<T>;
  const ConvArguments& args;
  const Plan<T>& plan;
  Buffers<T> at;

  Chunk chunk(int64_t i) const {
    const Span tiles = plan.tile_block[i % plan.tile_block.count];
    i /= plan.tile_block.count;
    return {
        plan.images[i / plan.depths.count], plan.depths[i % plan.depths.count], {tiles.begin, tiles.end, plan.per_row}};
  }

  // How many slices of a chunk there are: its depths, or what they see of all phases. They are counted by phase, image
  // and depth.
  int64_t slices(const Chunk& chunk, bool is_u) const {
    const int64_t depths = chunk.depths.size();
    return chunk.images.size() * (is_u ? depths : plan.phases * seen_slices(depths));
  }

  // u or v of a chunk: of one slice, of channels `some` of a group. to: of the first of them.
  void transform_slice(const Chunk& chunk, int64_t group, bool is_u, int64_t number, Span some, A* to, A* strip) const {
    const int64_t depths = chunk.depths.size(), all = is_u ? depths : seen_slices(depths);
    const int64_t slice = number % all, image = number / all % chunk.images.size();
    const WinogradPhase phase = is_u ? WinogradPhase{} : phase_of(args.geometry, number / all / chunk.images.size());
    const Operand& operand = is_u ? plan.dy : plan.x;
    const ConvGeometry& g = operand.view;
    int64_t d = chunk.depths.begin + slice;
    if (!is_u) {
      const ConvGeometry& x = plan.x.view;
      const int64_t first = chunk.depths.begin * x.stride[0] - x.pad_before[0];
      const int64_t place = plan.depth_stride < plan.depth_taps
                                ? first + slice
                                : first + slice / plan.depth_taps * x.stride[0] + slice % plan.depth_taps;
      const bool inside = place >= -x.pad_before[0] && place < x.input[0] + x.pad_after[0];
      d = inside ? padded_source(place, x.input[0], x.padding_mode) : -1;
    }
    const T* from = static_cast<const T*>(is_u ? args.grad_output : args.input);
    if (d >= 0)
      from += g.input_offset(chunk.images.begin + image, group * operand.channels + some.begin,
                             d * g.input[1] * g.input[2]);
    const bool contiguous = g.layout == Layout::contiguous;
    (is_u ? plan.kernel->transform_gradient : plan.kernel->transform_input)(
        g, d < 0 ? nullptr : from, contiguous ? g.input_places() : 1, contiguous ? 1 : g.in_channels, phase,
        chunk.tiles, some.size(), to + number * chunk.count() * operand.steps.tiles, operand.steps, strip);
  }

  int64_t seen_slices(int64_t depths) const { return plan.slice(depths - 1, plan.depth_taps - 1) + 1; }

  // Both operands, for some channels: a task is a slice and a part of the channels.
  void transform(const Chunk& chunk, int64_t group, Span k, Span c, const Room<A>& room) const {
    const int64_t lanes = gemm<A>().lanes, u_slices = slices(chunk, true), v_slices = slices(chunk, false);
    const int64_t least = ceil_div(wanted_tasks(), u_slices + v_slices);
    const Blocks k_parts = cut(k.size(), 2 * lanes, ceil_div(k.size(), least));
    const Blocks c_parts = cut(c.size(), 2 * lanes, ceil_div(c.size(), least));
    const int64_t u_tasks = u_slices * k_parts.count, v_tasks = v_slices * c_parts.count;
    parallel_for(u_tasks + v_tasks, [&](int64_t task, int thread) {
      const bool is_u = task < u_tasks;
      if (!is_u) task -= u_tasks;
      const Blocks& parts = is_u ? k_parts : c_parts;
      const Span part = parts[task % parts.count];
      const int64_t first = (is_u ? k : c).begin;
      transform_slice(chunk, group, is_u, task / parts.count, {first + part.begin, first + part.end},
                      (is_u ? room.all.u : room.all.v) + part.begin,
                      room.strip != nullptr ? room.strip : at.own(thread, plan).strip);
    });
  }

  // Which of the phases and depth taps a point has sums of.
  Span seen_sums(int64_t point) const {
    const int h = plan.kernel->size_h, w = plan.kernel->size_w;
    const Span phases = seen_phases(args.geometry, point / w == h - 1, point % w == w - 1);
    return {phases.begin * plan.depth_taps, phases.end * plan.depth_taps};
  }

  // Adds to one point's sums, for rows k and columns c of the channels transformed.
  void multiply(const Chunk& chunk, const Operands<A>& all, int64_t point, Span k, Span c, A* sums,
                bool accumulate) const {
    const int64_t depths = chunk.depths.size(), slices = seen_slices(depths);
    const int64_t lanes = gemm<A>().lanes, columns = round_up(c.size(), lanes);
    const bool adjacent = plan.depth_stride == 1 || plan.depth_taps == 1;  // depths follow each other in v as in u
    const int64_t images = plan.depth_taps == 1 ? 1 : chunk.images.size(), runs = adjacent ? 1 : depths;
    const int64_t length = chunk.count() * (adjacent ? depths : 1) * (chunk.images.size() / images);
    const Blocks pieces = cut(length, 1, kChain);
    const A* u = all.u + point * plan.dy.steps.points + k.begin;
    const A* v = all.v + point * plan.x.steps.points + c.begin;
    const int64_t u_step = plan.dy.steps.tiles, v_step = plan.x.steps.tiles;
    const int64_t width = panel_width(k.size(), gemm<A>().mr), nr = gemm<A>().nr;
    const Span seen = seen_sums(point);
    for (int64_t i = seen.begin; i < seen.end; ++i) {
      const int64_t phase = i / plan.depth_taps, t = i % plan.depth_taps;
      A* const to = sums + i * columns;
      bool begun = accumulate;
      for (int64_t run = 0; run < images * runs; ++run) {
        const int64_t image = run / runs, o = run % runs;
        const A* a = u + (image * depths + o) * chunk.count() * u_step;
        const A* b = v + ((phase * chunk.images.size() + image) * slices + plan.slice(o, t)) * chunk.count() * v_step;
        for (int64_t j = 0; j < pieces.count; ++j) {
          const Span piece = pieces[j];
          gemm<A>().multiply(k.size(), columns, piece.size(), {a + piece.begin * u_step, width, width, u_step},
                             {b + piece.begin * v_step, nr, nr, v_step}, to, plan.sum_row, {begun});
          begun = true;
        }
      }
    }
  }

  TapSteps tap_steps() const {
    return args.weight_channels_last ? TapSteps{1, plan.x.channels} : TapSteps{args.geometry.taps(), 1};
  }

  // The sums of rows k and columns c, of which `sums` holds row k.begin first.
  void transform_sums(const A* sums, int64_t group, Span k, Span c) const {
    const ConvGeometry& g = args.geometry;
    const int64_t taps = g.taps(), slice_taps = g.kernel[1] * g.kernel[2];
    const int64_t columns = round_up(c.size(), gemm<A>().lanes);
    const TapSteps steps = tap_steps();
    T* dw = static_cast<T*>(args.output) + group * plan.dy.channels * plan.x.channels * taps + c.begin * steps.channel;
    for (int64_t row = k.begin; row < k.end; ++row, sums += plan.sum_row)
      for (int64_t t = 0; t < plan.depth_taps; ++t)
        plan.to_taps->transform_sums(
            sums + t * columns, plan.sum_points, plan.depth_taps * columns, c.size(), g.flip_kernel,
            dw + row * plan.x.channels * taps + (g.flip_kernel ? plan.depth_taps - 1 - t : t) * slice_taps * steps.tap,
            steps);
  }

  // A block of sums, multiplied out and transformed. k and c: among the channels transformed, the first of which are
  // first_k and first_c of the group.
  void run_block(const Chunk& chunk, const Operands<A>& all, int64_t group, Span k, Span c, int64_t first_k,
                 int64_t first_c, A* sums) const {
    Phase step("gemm");
    if (plan.few) {
      const ConvGeometry& g = args.geometry;
      const int64_t row = plan.x.channels * g.taps(), place = group * plan.dy.channels + first_k + k.begin;
      const int64_t tiles = slices(chunk, true) * chunk.count();
      const TapSteps steps = tap_steps();
      plan.to_taps->multiply_to_taps(all.u + k.begin, plan.dy.steps, all.v + c.begin, plan.x.steps,
                                     tiles * plan.x.steps.tiles, tiles, k.size(), c.size(), g.flip_kernel,
                                     static_cast<T*>(args.output) + place * row + (first_c + c.begin) * steps.channel,
                                     row, steps);
      return;
    }
    for (int64_t e = 0; e < plan.kernel->points(); ++e)
      multiply(chunk, all, e, k, c, sums + e * plan.sum_points, false);
    step.next("transform sums");
    transform_sums(sums, group, {first_k + k.begin, first_k + k.end}, {first_c + c.begin, first_c + c.end});
  }

  // All tiles at once: tasks are blocks of sums.
  void run_whole(int64_t group) const {
    const Chunk all = chunk(0);
    {
      const Phase phase("transform operands");
      transform(all, group, {0, plan.dy.channels}, {0, plan.x.channels}, at.shared);
    }
    parallel_for(plan.k.count * plan.c.count, [&](int64_t task, int thread) {
      run_block(all, at.shared.all, group, plan.k[task / plan.c.count], plan.c[task % plan.c.count], 0, 0,
                at.own(thread, plan).sums);
    });
  }

  // Tasks are parts of the operands.
  void run_parts() const {
    const Chunk all = chunk(0);
    const int64_t parts = plan.dy.block.count * plan.x.block.count;
    parallel_for(plan.x.view.groups * parts, [&](int64_t task, int thread) {
      const int64_t group = task / parts, part = task % parts;
      const Span k = plan.dy.block[part / plan.x.block.count], c = plan.x.block[part % plan.x.block.count];
      const Room<A> own = at.own(thread, plan);
      if (plan.several) {
        const OneThread alone;
        run_chunks(group, k, c, own);
        return;
      }
      {
        const Phase phase("transform operands");
        for (bool is_u : {true, false})
          for (int64_t slice = 0; slice < slices(all, is_u); ++slice)
            transform_slice(all, group, is_u, slice, is_u ? k : c, is_u ? own.all.u : own.all.v, own.strip);
      }
      share(plan.k.count * plan.c.count, [&](int64_t i, int here) {
        Span rows = plan.k[i / plan.c.count], columns = plan.c[i % plan.c.count];
        rows.end = std::min(rows.end, k.size());
        columns.end = std::min(columns.end, c.size());
        if (rows.size() > 0 && columns.size() > 0)
          run_block(all, own.all, group, rows, columns, k.begin, c.begin, at.own(here, plan).sums);
      });
    });
  }

  // Chunk by chunk: tasks are points and parts of the rows.
  void run_chunks(int64_t group, Span k, Span c, const Room<A>& room) const {
    const int64_t points = plan.kernel->points(), width = panel_width(k.size(), gemm<A>().mr);
    const Blocks rows = cut(k.size(), width, ceil_div(k.size(), ceil_div(wanted_tasks(), points)));
    for (int64_t i = 0; i < plan.chunks; ++i) {
      const Chunk part = chunk(i);
      Phase phase("transform operands");
      transform(part, group, k, c, room);
      phase.next("gemm");
      const bool last = i + 1 == plan.chunks || (i + 1) % kAdds == 0;
      share(points * rows.count, [&](int64_t task, int) {
        const int64_t e = task / rows.count;
        const Span some = rows[task % rows.count];
        A* sums = room.sums + e * plan.sum_points + some.begin * plan.sum_row;
        multiply(part, room.all, e, some, {0, c.size()}, sums, i % kAdds > 0);
        if (!last || plan.chunks <= kAdds) return;
        const int64_t columns = round_up(c.size(), gemm<A>().lanes);
        const Span seen = seen_sums(e);
        A* total = room.total + (sums - room.sums);
        for (int64_t row = 0; row < some.size(); ++row, sums += plan.sum_row, total += plan.sum_row)
          for (int64_t j = seen.begin * columns; j < seen.end * columns; ++j)
            total[j] = i < kAdds ? sums[j] : total[j] + sums[j];
      });
    }
    const Phase phase("transform sums");
    const A* sums = plan.chunks > kAdds ? room.total : room.sums;
    const Blocks parts = cut(k.size(), 1, ceil_div(k.size(), wanted_tasks()));
    parallel_for(parts.count, [&](int64_t task, int) {
      const Span some = parts[task];
      transform_sums(sums + some.begin * plan.sum_row, group, {k.begin + some.begin, k.begin + some.end}, c);
    });
  }
};

template <typename T>
void run(const ConvArguments& args) {
  const Plan<T> plan = make_plan<T>(args.geometry);
  const Work<T> work = {args, plan, Buffers<T>(args.workspace, plan)};
  if (plan.own) return work.run_parts();
  for (int64_t group = 0; group < args.geometry.groups; ++group) {
    if (!plan.several) {
      work.run_whole(group);
      continue;
    }
    for (int64_t k = 0; k < plan.dy.block.count; ++k)
      for (int64_t c = 0; c < plan.x.block.count; ++c)
        work.run_chunks(group, plan.dy.block[k], plan.x.block[c], work.at.shared);
  }
}

}  // namespace

// Of a dilation, the phases of both operands.
struct Split {
  char *input, *grad_output, *rest;
  int64_t used;

  Split(void* start, const DilationPhases& phases, DType dtype) {
    Workspace workspace(start);
    input = workspace.take<char>(phases.input_bytes(dtype));
    grad_output = workspace.take<char>(phases.output_bytes(dtype));
    used = workspace.used();
    rest = static_cast<char*>(start) + used;
  }
};

int64_t backward_weight_bytes(const ConvGeometry& g, DType dtype) {
  if (dilated(g)) {
    const DilationPhases phases(g);
    return Split(nullptr, phases, dtype).used + backward_weight_bytes(phases.undilated(), dtype);
  }
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return Buffers<T>(nullptr, make_plan<T>(g)).bytes;
  });
}

double backward_weight_gain(const ConvGeometry& geometry) {
  ConvGeometry g = geometry;
  g.batch = 1;
  if (dilated(g)) g = DilationPhases(g).undilated();
  const WinogradWeightKernel<float>& kernel = kernel_of<float>(choose_tile(g));
  const double tiles = double(g.batch * g.output[0] * winograd_tiles(g, kernel.out_h, kernel.out_w));
  const double u = kernel.points(), places = double(geometry.output_places()) + kPlainPlaces;
  // Phases of a dilation are split with their padding, which the others need not read.
  if (dilated(geometry) && double(g.taps() * geometry.output_places()) < kSplitPays * u * tiles * double(g.kernel[0]))
    return 0;
  const double k = double(g.group_outputs()), c = double(g.group_inputs());
  const double taps = double(g.taps()) * (g.groups > 1 ? kGroupedPlain : 1);
  if (g.kernel[1] != 2 && !strided(g)) {
    // As if sums went through memory: that few of them need not is no reason to take winograd for few channels.
    const double products = u * double(g.kernel[0]);
    return taps * k * c * places / (products * k * c * (tiles + kSumTiles) + kTransformCost * u * (k + c) * tiles);
  }
  double v = 0;  // of all phases
  for (int h = 0; h < kernel.size_h; ++h)
    for (int w = 0; w < kernel.size_w; ++w)
      v += double(seen_phases(g, h == kernel.size_h - 1, w == kernel.size_w - 1).size());
  // Lanes that channels leave empty count; those of the plain product, where it is one, are channels of the side that
  // has more.
  const double lanes_k = double(round_up(g.group_outputs(), kWidestVector));
  const double lanes_c = double(round_up(g.group_inputs(), kWidestVector));
  double plain = taps * places * k * c;
  if (std::max(k, c) >= kWidestVector)
    plain *= std::max(1.0, kPlainRows / k) * std::max(lanes_k, lanes_c) / std::max(k, c);
  const double narrow = active_isa() < Isa::avx512 ? kNarrowCost : 1;
  const double sums = few_tiles(g, kernel.out_h, kernel.out_w) ? kFewShortTiles : kShortTiles;
  const double products = v * double(g.kernel[0]) * k * lanes_c * narrow;
  return plain / (products * (tiles + sums) + kTransformCost * (u * lanes_k + v * lanes_c) * tiles);
}

void backward_weight(const ConvArguments& args) {
  if (dilated(args.geometry)) {
    const DilationPhases phases(args.geometry);
    const Split split(args.workspace, phases, args.dtype);
    phases.split_input(args.input, split.input, args.dtype);
    phases.split_output(args.grad_output, split.grad_output, args.dtype);
    ConvArguments part = args;
    part.geometry = phases.undilated();
    part.input = split.input;
    part.grad_output = split.grad_output;
    part.workspace = split.rest;
    return backward_weight(part);
  }
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu::winograd_cpu
