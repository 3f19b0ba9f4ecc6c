// Winograd's gradient of the weight, the transpose of its forward pass in the weight, with the same matrices:
//
//   u[e][k][tile] = A dy A^T      v[e][c][tile] = B^T d B      m[e][k][c] = sum over tiles of u v      dw = G^T m G
//
// A tile of dy acts as a filter of m x m taps on a tile of the input: F(4x4,3x3) multiplies 36 times where the
// definition does 144 times. The sum over tiles and images happens at the points: one matrix product per element e and
// tap along depth, and a single transform of the sums. Both operands have channels side by side, whatever the layout.
//
// A chunk is a range of tiles, depths or images whose u and v fit kOperandBytes. If all tiles are one chunk, blocks of
// sums (k, c) that fit L2 are the tasks: each is multiplied out and transformed. Else the sums of a block of up to
// kSumBytes are kept while the chunks pass, threads sharing each step. The order of an element's sum: pieces of up to
// kChain tiles, piece by piece; after kAdds chunks a new sum is begun, lest the error grow with the map.
//
// Traffic: x and dy once per block of sums (n^2 / m^2 of x, for tiles overlap), u and v written and read once, m read
// and written once per chunk.
// Error, norm-wise: 1.3e-6 for F(4x4,3x3) on four maps of 224 x 224, 0.5e-6 on 14 x 14; modes as in the forward pass.
#include "../winograd.h"

#include "blocking.h"
#include "conv_winograd.h"
#include "gemm.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_winograd_backward_weight.inl"
#include "for_each_isa.inl"

namespace convext::cpu::winograd_cpu {
namespace {

constexpr int64_t kOperandBytes = int64_t(16) << 20;  // u and v together, where all tiles are one chunk
constexpr int64_t kChunkBytes = int64_t(8) << 20;     // u and v of one of several
constexpr int64_t kSumBytes = int64_t(8) << 20;       // sums that are kept over several chunks
constexpr int64_t kBlockBytes = int64_t(400) << 10;   // sums of a task: a small second-level cache
constexpr int64_t kMinChunk = 64, kMaxChunk = 512;    // tiles
constexpr int64_t kChain = 128;                       // tiles
constexpr int64_t kAdds = 32;                         // chunks
constexpr double kSumTiles = 6;                       // reading and writing a sum costs as many tiles' products
constexpr double kPlainPlaces = 20;                   // and in a plain product as many places'
constexpr double kTransformCost = 9;                  // of an element of u or v, in multiply-adds of the product

template <typename T>
const WinogradWeightKernel<T>& kernel_of(WinogradTile tile) {
  return *CONVEXT_SELECT_ISA(kWinogradWeightKernels<T>)[int(tile)];
}

// The larger tile multiplies less, but has more sums to read and write; few tiles do not pay for that.
WinogradTile choose_tile(const ConvGeometry& g) {
  return choose_winograd_tile(g, [&](int m) {
    const double tiles = double(g.batch) * double(g.output[0] * winograd_tiles(g, m, m));
    return double((m + 2) * (m + 2)) * (tiles + kSumTiles);
  });
}

// dy as an input without padding.
ConvGeometry gradient_view(const ConvGeometry& g) {
  ConvGeometry view = g;
  view.in_channels = g.out_channels;
  view.padding_mode = PaddingMode::zeros;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    view.input[axis] = g.output[axis];
    view.pad_before[axis] = view.pad_after[axis] = 0;
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
  Blocks block;      // transformed together
  int64_t slices;    // of a chunk
  WinogradSteps steps;
};

template <typename T>
struct Plan {
  using A = Accumulate<T>;
  const WinogradWeightKernel<T>* kernel;
  Operand x, dy;
  int64_t depth_taps, depth_stride;
  int64_t per_row, tiles;             // of a slice
  Blocks images, depths, tile_block;  // of a chunk; more than one depth or image only of whole slices
  Blocks k, c;                        // of sums
  int64_t sum_row, sum_points;        // from output channel to output channel, from point to point
  int64_t chunks;
  bool shared;  // threads share the steps: there are several chunks

  int64_t sum_elements() const { return sum_points * kernel->points(); }
  // The slice of x, in a chunk, that tap t sees from depth o.
  int64_t slice(int64_t o, int64_t t) const {
    return depth_stride < depth_taps ? o * depth_stride + t : o * depth_taps + t;
  }
};

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
  plan.per_row = ceil_div(g.output[2], plan.kernel->out_w);
  plan.tiles = winograd_tiles(g, plan.kernel->out_h, plan.kernel->out_w);
  const int64_t points = plan.kernel->points(), taps = plan.depth_taps;
  const auto slices = [&](int64_t depths) { return plan.slice(depths - 1, taps - 1) + 1; };
  const auto operand_bytes = [&](int64_t tiles, int64_t depths, int64_t k, int64_t c) {
    return points * tiles * (depths * row_of<A>(k) + slices(depths) * row_of<A>(c)) * element;
  };

  plan.shared = g.batch * operand_bytes(plan.tiles, g.output[0], plan.dy.channels, plan.x.channels) > kOperandBytes;
  const int64_t most_sums = (plan.shared ? kSumBytes : kBlockBytes) / (points * taps * element);
  int64_t k = round_up(plan.dy.channels, panel_width(plan.dy.channels, multiply.mr)),
          c = round_up(plan.x.channels, multiply.lanes);
  const int64_t threads = max_threads();
  while (true) {
    plan.k = cut(plan.dy.channels, panel_width(plan.dy.channels, multiply.mr), k);
    plan.c = cut(plan.x.channels, multiply.lanes, c);
    const bool few = !plan.shared && threads > 1 && plan.k.count * plan.c.count < kTasksPerThread * threads;
    if (plan.k.size * plan.c.size <= most_sums && !few) break;
    if (c > 2 * multiply.nr && c >= k)
      c = round_up(c / 2, multiply.nr);
    else if (k > multiply.mr)
      k = ceil_div(k, 2);
    else if (c > multiply.nr)
      c = round_up(c / 2, multiply.nr);
    else
      break;
  }
  plan.dy.block = plan.shared ? plan.k : Blocks{plan.dy.channels, plan.dy.channels, 1};
  plan.x.block = plan.shared ? plan.c : Blocks{plan.x.channels, plan.x.channels, 1};

  plan.images = {g.batch, g.batch, 1};
  plan.depths = {g.output[0], g.output[0], 1};
  plan.tile_block = {plan.tiles, plan.tiles, 1};
  if (plan.shared) {
    const auto bytes = [&](int64_t tiles, int64_t depths) {
      return operand_bytes(tiles, depths, plan.dy.block.size, plan.x.block.size);
    };
    const int64_t most = std::clamp(kChunkBytes / bytes(1, 1), kMinChunk, kMaxChunk);
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
    const int64_t row = row_of<A>(operand->block.size);
    operand->steps = {points_apart<A>(plan.images.size * operand->slices * plan.tile_block.size * row), 1, row};
  }
  plan.sum_row = taps * round_up(plan.c.size, multiply.lanes);
  plan.sum_points = points_apart<A>(plan.k.size * plan.sum_row);
  return plan;
}

template <typename T, typename A = Accumulate<T>>
struct Buffers {
  A *u, *v;
  A *sums, *total;  // where threads share the steps; total: where there are more than kAdds chunks
  char* threads;
  int64_t thread_bytes;
  int64_t bytes;

  Buffers(void* workspace, const Plan<T>& plan) {
    Workspace shared(workspace), own(nullptr);
    u = shared.take<A>(plan.dy.steps.points * plan.kernel->points());
    v = shared.take<A>(plan.x.steps.points * plan.kernel->points());
    sums = shared.take<A>(plan.shared ? plan.sum_elements() : 0);
    total = shared.take<A>(plan.chunks > kAdds ? plan.sum_elements() : 0);
    threads = static_cast<char*>(workspace) + shared.used();
    own.take<A>(thread_elements(plan));
    thread_bytes = own.used();
    bytes = shared.used() + max_threads() * thread_bytes;
  }
  // Of a thread: a strip, or the sums of a block.
  static int64_t thread_elements(const Plan<T>& plan) {
    const int64_t strip = plan.kernel->strip_elements(plan.x.view.layout);
    return std::max(strip, plan.shared ? 0 : plan.sum_elements());
  }
  A* own(int thread) const { return reinterpret_cast<A*>(threads + thread * thread_bytes); }
};

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

  // u or v of a chunk, for some channels of a group: a task is a slice of an image and a part of the channels.
  void transform(const Chunk& chunk, int64_t group, Span k, Span c) const {
    const int64_t lanes = gemm<A>().lanes, depths = chunk.depths.size();
    const int64_t slices = plan.slice(depths - 1, plan.depth_taps - 1) + 1;
    const int64_t least = ceil_div(wanted_tasks(), chunk.images.size() * (depths + slices));
    const Blocks k_parts = cut(k.size(), 2 * lanes, ceil_div(k.size(), least));
    const Blocks c_parts = cut(c.size(), 2 * lanes, ceil_div(c.size(), least));
    const int64_t u_tasks = depths * k_parts.count, v_tasks = slices * c_parts.count;
    parallel_for(chunk.images.size() * (u_tasks + v_tasks), [&](int64_t task, int thread) {
      const int64_t image = task / (u_tasks + v_tasks);
      task -= image * (u_tasks + v_tasks);
      const bool is_u = task < u_tasks;
      if (!is_u) task -= u_tasks;
      const Operand& operand = is_u ? plan.dy : plan.x;
      const Blocks& parts = is_u ? k_parts : c_parts;
      const Span part = parts[task % parts.count];
      const int64_t slice = task / parts.count, all = is_u ? depths : slices;
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
        from += g.input_offset(chunk.images.begin + image, group * operand.channels + (is_u ? k : c).begin + part.begin,
                               d * g.input[1] * g.input[2]);
      const bool contiguous = g.layout == Layout::contiguous;
      A* to = (is_u ? at.u : at.v) + (image * all + slice) * chunk.count() * operand.steps.tiles + part.begin;
      (is_u ? plan.kernel->transform_gradient : plan.kernel->transform_input)(
          g, d < 0 ? nullptr : from, contiguous ? g.input_places() : 1, contiguous ? 1 : g.in_channels, chunk.tiles,
          part.size(), to, operand.steps, at.own(thread));
    });
  }

  // Adds to one point's sums, for rows k and columns c of the channels transformed.
  void multiply(const Chunk& chunk, int64_t point, Span k, Span c, A* sums, bool accumulate) const {
    const int64_t depths = chunk.depths.size(), slices = plan.slice(depths - 1, plan.depth_taps - 1) + 1;
    const int64_t lanes = gemm<A>().lanes, columns = round_up(c.size(), lanes);
    const bool adjacent = plan.depth_stride == 1 || plan.depth_taps == 1;  // depths follow each other in v as in u
    const int64_t images = plan.depth_taps == 1 ? 1 : chunk.images.size(), runs = adjacent ? 1 : depths;
    const int64_t length = chunk.count() * (adjacent ? depths : 1) * (chunk.images.size() / images);
    const Blocks pieces = cut(length, 1, kChain);
    const A* u = at.u + point * plan.dy.steps.points + k.begin;
    const A* v = at.v + point * plan.x.steps.points + c.begin;
    const int64_t u_step = plan.dy.steps.tiles, v_step = plan.x.steps.tiles;
    const int64_t width = panel_width(k.size(), gemm<A>().mr), nr = gemm<A>().nr;
    for (int64_t t = 0; t < plan.depth_taps; ++t, sums += columns) {
      bool begun = accumulate;
      for (int64_t run = 0; run < images * runs; ++run) {
        const int64_t image = run / runs, o = run % runs;
        const A* a = u + (image * depths + o) * chunk.count() * u_step;
        const A* b = v + (image * slices + plan.slice(o, t)) * chunk.count() * v_step;
        for (int64_t i = 0; i < pieces.count; ++i) {
          const Span piece = pieces[i];
          gemm<A>().multiply(k.size(), columns, piece.size(), {a + piece.begin * u_step, width, width, u_step},
                             {b + piece.begin * v_step, nr, nr, v_step}, sums, plan.sum_row, {begun});
          begun = true;
        }
      }
    }
  }

  // The sums of rows k and columns c, of which `sums` holds row k.begin first.
  void transform_sums(const A* sums, int64_t group, Span k, Span c) const {
    const ConvGeometry& g = args.geometry;
    const int64_t taps = g.taps(), slice_taps = g.kernel[1] * g.kernel[2];
    const int64_t columns = round_up(c.size(), gemm<A>().lanes);
    T* dw = static_cast<T*>(args.output) + (group * plan.dy.channels * plan.x.channels + c.begin) * taps;
    for (int64_t row = k.begin; row < k.end; ++row, sums += plan.sum_row)
      for (int64_t t = 0; t < plan.depth_taps; ++t)
        plan.kernel->transform_sums(
            sums + t * columns, plan.sum_points, c.size(), g.flip_kernel,
            dw + row * plan.x.channels * taps + (g.flip_kernel ? plan.depth_taps - 1 - t : t) * slice_taps, taps);
  }

  // All tiles at once: tasks are blocks of sums.
  void run_whole(int64_t group) const {
    const Chunk all = chunk(0);
    const int64_t points = plan.kernel->points();
    {
      const Phase phase("transform operands");
      transform(all, group, {0, plan.dy.channels}, {0, plan.x.channels});
    }
    parallel_for(plan.k.count * plan.c.count, [&](int64_t task, int thread) {
      const Span k = plan.k[task / plan.c.count], c = plan.c[task % plan.c.count];
      A* sums = at.own(thread);
      Phase step("gemm");
      for (int64_t e = 0; e < points; ++e) multiply(all, e, k, c, sums + e * plan.sum_points, false);
      step.next("transform sums");
      transform_sums(sums, group, k, c);
    });
  }

  // Chunk by chunk: tasks are points and parts of the rows.
  void run_chunks(int64_t group, Span k, Span c) const {
    const int64_t points = plan.kernel->points(), width = panel_width(k.size(), gemm<A>().mr);
    const Blocks rows = cut(k.size(), width, ceil_div(k.size(), ceil_div(wanted_tasks(), points)));
    for (int64_t i = 0; i < plan.chunks; ++i) {
      const Chunk part = chunk(i);
      Phase phase("transform operands");
      transform(part, group, k, c);
      phase.next("gemm");
      const bool last = i + 1 == plan.chunks || (i + 1) % kAdds == 0;
      parallel_for(points * rows.count, [&](int64_t task, int) {
        const int64_t e = task / rows.count;
        const Span some = rows[task % rows.count];
        A* sums = at.sums + e * plan.sum_points + some.begin * plan.sum_row;
        multiply(part, e, some, {0, c.size()}, sums, i % kAdds > 0);
        if (!last || plan.chunks <= kAdds) return;
        A* total = at.total + (sums - at.sums);
        for (int64_t j = 0; j < some.size() * plan.sum_row; ++j) total[j] = i < kAdds ? sums[j] : total[j] + sums[j];
      });
    }
    const Phase phase("transform sums");
    const A* sums = plan.chunks > kAdds ? at.total : at.sums;
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
  for (int64_t group = 0; group < args.geometry.groups; ++group) {
    if (!plan.shared) {
      work.run_whole(group);
      continue;
    }
    for (int64_t k = 0; k < plan.k.count; ++k)
      for (int64_t c = 0; c < plan.c.count; ++c) work.run_chunks(group, plan.k[k], plan.c[c]);
  }
}

}  // namespace

int64_t backward_weight_bytes(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return Buffers<T>(nullptr, make_plan<T>(g)).bytes;
  });
}

double backward_weight_gain(const ConvGeometry& geometry) {
  ConvGeometry g = geometry;
  g.batch = 1;
  const WinogradWeightKernel<float>& kernel = kernel_of<float>(choose_tile(g));
  const double plain = double(g.taps()) * (double(g.output_places()) + kPlainPlaces);
  const double taps = double(g.kernel[0]), products = double(kernel.points()) * taps;
  const double transforms = kTransformCost / taps * (1 / double(g.group_inputs()) + 1 / double(g.group_outputs()));
  return plain / (products * (double((g.output[0] * winograd_tiles(g, kernel.out_h, kernel.out_w))) * (1 + transforms) +
                              kSumTiles));
}

void backward_weight(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu::winograd_cpu
