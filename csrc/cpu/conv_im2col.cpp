// Convolution as matrix multiplication: y = w u, where u is the input unfolded (unfold.h), per image and group.
//
// The weight is packed beforehand; u is made a block at a time (kReduction of its rows, a few panels of pixels),
// multiplied with all of the weight while it is in L2, and made anew over it. The bias is what sums start from. Whose
// lanes are vectors is decided by the layout, so that y is stored as it lies in memory:
//
//   contiguous     a = weight (mr output channels broadcast), b = u (nr pixels), a tile of y is mr rows of nr pixels
//   channels_last  a = u (mr pixels broadcast), b = weight (nr output channels), a tile of y is mr pixels
//
// Where u would be a copy (pointwise) and is read but a few times, it is not made: gemm reads the planes, or channels.
//
// A task is one image, group, block of pixels and, where maps are small, block of output channels. 16-bit types are
// widened while packing, summed in float in a tile of their own, and rounded once. Traffic: u is written to and read
// from L2 once per block of output channels; y is read and written again for every kReduction rows.
// Limits: groups of few channels waste most of each tile.
#include "conv_im2col.h"

#include <numeric>
#include <type_traits>

#include "phases.h"

namespace convext::cpu {
namespace im2col {
namespace {

constexpr int64_t kPixelVectors = 7;  // contiguous: panels of nr pixels in a block; rows of 7 x 2^n are common
constexpr int64_t kPixelTiles = 9;    // channels_last: panels of mr pixels in a block
constexpr int64_t kGathered = 16;     // channels_last: with so many channels a pixel is read where it lies
constexpr int64_t kOutputs = 1024;    // output channels in a task
constexpr int64_t kInPlace = 96;      // contiguous, pointwise: for so few output channels packing does not pay
constexpr int64_t kSameSet = 4096;    // bytes apart, lines compete for the same places of first-level cache
constexpr int64_t kWays = 16;         // how many of them are left to do so, at most: twice what the cache holds

struct ForwardPlan {
  Blocks reduction, pixels, outputs;
  int64_t width;          // of the panels of gemm's a
  int64_t output_width;   // of the weight's panels
  int64_t weight_panels;  // per group
  bool gathered;          // u is not packed: gemm gets pointers to the channels of each pixel, by tap
  bool in_place;          // u is not packed: the planes are its rows
  int64_t tasks;
};

// Pointwise, contiguous: may gemm read u in the planes? They must be cut into whole panels. A panel is then a line of
// each plane, read anew for every panel of the weight: few of those, and not too many lines whose distance makes them
// push each other out of the cache.
template <typename A>
bool suits_in_place(const ConvGeometry& g, int64_t depth) {
  if (g.layout != Layout::contiguous || !is_pointwise(g) || g.input_places() % gemm<A>().nr != 0) return false;
  if (g.group_outputs() <= gemm<A>().mr) return true;
  const int64_t apart = g.input_places() * int64_t(sizeof(A)) % kSameSet;
  const int64_t different = kSameSet / std::max(std::gcd(apart, kSameSet), int64_t(64));
  return g.group_outputs() <= kInPlace && ceil_div(depth, different) <= kWays;
}

template <typename T>
ForwardPlan plan_forward(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const Gemm<A>& kernel = gemm<A>();
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t places = g.output_places(), images = g.batch * g.groups, wanted = wanted_tasks();
  ForwardPlan plan;
  plan.width = panel_width(contiguous ? g.group_outputs() : places, kernel.mr);
  plan.output_width = contiguous ? plan.width : kernel.nr;
  plan.weight_panels = ceil_div(g.group_outputs(), plan.output_width);
  plan.gathered = !contiguous && std::is_same_v<T, A> && g.group_inputs() >= kGathered;
  const bool by_channels = contiguous && 4 * g.taps() <= kReduction<A>;
  plan.reduction = cut(g.group_inputs() * g.taps(), by_channels ? g.taps() : 1, kReduction<A>);
  plan.in_place = std::is_same_v<T, A> && suits_in_place<A>(g, plan.reduction.size);
  const int64_t unit = contiguous ? kernel.nr : plan.width;
  int64_t panels = contiguous ? kPixelVectors : kPixelTiles;
  plan.pixels = cut(places, unit, panels * unit);
  while (images * plan.pixels.count < wanted && panels > 1) plan.pixels = cut(places, unit, (panels /= 2) * unit);
  const int64_t have = std::max(images * plan.pixels.count, int64_t(1)), parts = ceil_div(wanted, have);
  plan.outputs = cut(g.group_outputs(), plan.output_width,
                     std::min(kOutputs, std::max(ceil_div(g.group_outputs(), parts), int64_t(1))));
  plan.tasks = images * plan.pixels.count * plan.outputs.count;
  return plan;
}

template <typename A>
struct ForwardThread {
  A *panels, *tile;
  char* lines;
  const A** rows;  // gathered
  A* zeros;
};

template <typename T, typename A = Accumulate<T>>
ForwardThread<A> take_forward(Workspace& workspace, const ConvGeometry& g, const ForwardPlan& plan) {
  ForwardThread<A> own = {};
  const int64_t width = g.layout == Layout::contiguous ? gemm<A>().nr : plan.width;
  own.rows = workspace.take<const A*>(plan.gathered ? plan.pixels.size * g.taps() : 0);
  own.zeros = workspace.take<A>(plan.gathered ? g.group_inputs() : 0);
  if (plan.gathered || plan.in_place) return own;
  own.panels = workspace.take<A>(ceil_div(plan.pixels.size, width) * panel_stride(width, plan.reduction.size));
  const int64_t lines = line_bytes(g, plan.pixels.size, width, sizeof(A));
  own.lines = lines > 0 ? workspace.take<char>(lines) : nullptr;
  own.tile = workspace.take<A>(std::is_same_v<T, A> ? 0 : plan.outputs.size * plan.pixels.size);
  return own;
}

template <typename T>
int64_t workspace_of(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const ForwardPlan plan = plan_forward<T>(g);
  Workspace shared(nullptr), own(nullptr);
  shared.take<A>(std::is_same_v<T, A> ? 0 : g.out_channels);
  take_forward<T>(own, g, plan);
  return shared.used() + max_threads() * own.used();
}

// packed[group][panel][row][lane], rows in the order of u's.
template <typename T>
void pack_weight(const PackArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const ForwardPlan plan = plan_forward<T>(g);
  const T* w = static_cast<const T*>(args.weight);
  A* packed = static_cast<A*>(args.packed);
  const int64_t inputs = g.group_inputs(), taps = g.taps(), rows = inputs * taps, width = plan.output_width;
  const bool taps_first = g.layout == Layout::channels_last;
  parallel_for(g.groups * plan.weight_panels, [&](int64_t task, int) {
    const int64_t first = task % plan.weight_panels * width, count = std::min(width, g.group_outputs() - first);
    const Phase phase("pack weight");
    const T* from = w + (task / plan.weight_panels * g.group_outputs() + first) * rows;
    A* to = packed + task * rows * width;
    if (taps == 1 || inputs == 1 || args.channels_last == taps_first) {
      unfold<T>().transpose(from, rows, count, rows, to, width, width);
      return;
    }
    // Transposed besides: `inner` elements of the stored order are `outer` apart in u's.
    const int64_t inner = taps_first ? taps : inputs, outer = taps_first ? inputs : taps;
    for (int64_t i = 0; i < outer; ++i)
      unfold<T>().transpose(from + i * inner, rows, count, inner, to + i * width, outer * width, width);
  });
}

// rows[tap][pixel]: the first of the channels that the pixel sees through the tap.
template <typename A>
void gather_rows(const ConvGeometry& g, const A* x, Span pixels, const A** rows, const A* zeros) {
  Run runs[kMaxRun];
  for (int64_t m = 0; m < pixels.size(); m += kMaxRun) {
    const int count = int(std::min(pixels.size() - m, int64_t(kMaxRun)));
    const OutputPlace out = output_place(g, pixels.begin + m);
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const A** row = rows + tap * pixels.size() + m;
      std::fill(row, row + count, zeros);
      const int found = find_runs(g, out, tap, count, runs);
      for (int i = 0; i < found; ++i)
        for (int l = runs[i].first; l < runs[i].last; ++l)
          row[l] = x + (runs[i].at + (l - runs[i].first) * g.stride[2]) * g.in_channels;
    }
  }
}

template <typename T>
void run(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry &g = args.geometry, view = unfolding_geometry(g);
  const T* x = static_cast<const T*>(args.input);
  const A* weight = static_cast<const A*>(args.packed_weight);
  T* y = static_cast<T*>(args.output);
  const ForwardPlan plan = plan_forward<T>(g);
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t depth = plan.reduction.total;

  Workspace workspace(args.workspace);
  const A* bias = widened(static_cast<const T*>(args.bias), g.out_channels, workspace);
  char* threads = static_cast<char*>(args.workspace) + workspace.used();
  Workspace measure(nullptr);
  take_forward<T>(measure, g, plan);
  Finish<A> finish;
  const bool in_registers = finish_in_registers<T>(args, &finish);

  parallel_for(plan.tasks, [&](int64_t task, int thread) {
    const Span outputs = plan.outputs[task % plan.outputs.count];
    task /= plan.outputs.count;
    const Span pixels = plan.pixels[task % plan.pixels.count];
    task /= plan.pixels.count;
    const int64_t group = task % g.groups, n = task / g.groups;

    Workspace mine(threads + thread * measure.used());
    const ForwardThread<A> own = take_forward<T>(mine, g, plan);
    const T* image = x + g.input_offset(n, group * g.group_inputs(), 0);
    T* to = y + g.output_offset(n, group * g.group_outputs() + outputs.begin, pixels.begin);
    const int64_t step = contiguous ? g.output_places() : g.out_channels;
    A* tile = own.tile;
    int64_t tile_step = contiguous ? plan.pixels.size : plan.outputs.size;
    if constexpr (std::is_same_v<T, A>) {
      tile = to;
      tile_step = step;
    }
    if constexpr (std::is_same_v<T, A>)
      if (plan.gathered) {
        std::fill(own.zeros, own.zeros + g.group_inputs(), A(0));
        gather_rows(view, image, pixels, own.rows, own.zeros);
      }
    const A* packed =
        weight + (group * plan.weight_panels + outputs.begin / plan.output_width) * depth * plan.output_width;
    for (int64_t i = 0; i < plan.reduction.count; ++i) {
      const Span rows = plan.reduction[i];
      Panels<A> w = packed_panels(packed, plan.output_width, depth);
      w.data += rows.begin * plan.output_width;
      GemmStart<A> start = {i > 0};
      if (in_registers && i == plan.reduction.count - 1) start.finish = &finish;
      if (bias != nullptr && i == 0) {
        const A* first = bias + group * g.group_outputs() + outputs.begin;
        (contiguous ? start.row_bias : start.column_bias) = first;
      }
      if (plan.gathered) {
        const Phase phase("gemm");
        gemm<A>().multiply_gathered(pixels.size(), outputs.size(), rows.begin, rows.size(),
                                    {own.rows, pixels.size(), g.group_inputs()}, w, tile, tile_step, start);
        continue;
      }
      const int64_t pixel_width = contiguous ? gemm<A>().nr : plan.width;
      if constexpr (std::is_same_v<T, A>)
        if (plan.in_place) {
          const Phase phase("gemm");
          const A* from = image + rows.begin * g.input_places() + pixels.begin;
          gemm<A>().multiply(outputs.size(), pixels.size(), rows.size(), w,
                             {from, pixel_width, pixel_width, g.input_places()}, tile, tile_step, start);
          continue;
        }
      Phase phase("unfold");
      unfold<T>().unfold_pixels(view, image, x + g.input_elements(), pixels, rows, own.panels, pixel_width, own.lines);
      const Panels<A> u = {own.panels, pixel_width, panel_stride(pixel_width, rows.size()), pixel_width};
      phase.next("gemm");
      if (contiguous)
        gemm<A>().multiply(outputs.size(), pixels.size(), rows.size(), w, u, tile, tile_step, start);
      else
        gemm<A>().multiply(pixels.size(), outputs.size(), rows.size(), u, w, tile, tile_step, start);
    }
    if constexpr (!std::is_same_v<T, A>) {
      const Phase phase("narrow");
      unfold<T>().convert(tile, tile_step, contiguous ? outputs.size() : pixels.size(),
                          contiguous ? pixels.size() : outputs.size(), to, step);
    }
    if (!in_registers)
      finish_block(args, {n, group * g.group_outputs() + outputs.begin, outputs.size(), pixels.begin, pixels.size()});
  });
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  switch (direction) {
    case Direction::backward_input: return backward_input_bytes(g, dtype);
    case Direction::backward_weight: return backward_weight_bytes(g, dtype);
    default: return forward_bytes(g, dtype);
  }
}

Packing packing(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return {};
  if (direction == Direction::backward_input) return backward_input_packing(g, dtype);
  return dispatch_floating(dtype, [&](auto type) -> Packing {
    using A = Accumulate<typename decltype(type)::type>;
    const ForwardPlan plan = plan_forward<typename decltype(type)::type>(g);
    const int64_t elements = g.groups * plan.weight_panels * plan.output_width * g.group_inputs() * g.taps();
    return {elements * int64_t(sizeof(A)), plan.output_width};
  });
}

void pack(const PackArguments& args) {
  if (args.direction == Direction::backward_input) return pack_backward_input(args);
  dispatch_floating(args.dtype, [&](auto type) { pack_weight<typename decltype(type)::type>(args); });
}

}  // namespace

void forward(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run<typename decltype(type)::type>(args); });
}
int64_t forward_bytes(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) { return workspace_of<typename decltype(type)::type>(g); });
}
int64_t weight_width(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype,
                           [&](auto type) { return plan_forward<typename decltype(type)::type>(g).output_width; });
}

}  // namespace im2col

const ConvAlgorithm conv_im2col = {
    "im2col",          im2col::unsupported,    im2col::workspace_bytes,
    im2col::forward,   im2col::backward_input, im2col::backward_weight,
    im2col::packing,   im2col::pack,
    /*finishes=*/true,
};

}  // namespace convext::cpu
