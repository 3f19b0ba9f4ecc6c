// Convolution as matrix multiplication: y = w u, where u is the input unfolded (unfold.h), per image and group.
//
// The weight is packed beforehand, but for the case below; u is made a block at a time (kReduction of its rows, a few
// panels of pixels), multiplied with all of the weight while it is in L2, and made anew over it. The bias is what sums
// start from. Whose lanes are vectors is decided by the layout, so that y is stored as it lies in memory:
//
//   contiguous     a = weight (mr output channels broadcast), b = u (nr pixels), a tile of y is mr rows of nr pixels
//   channels_last  a = u (mr pixels broadcast), b = weight (nr output channels), a tile of y is mr pixels
//
// A pointwise weight that serves one call, with few places, is packed on the way: a task is then some outputs and all
// places, and makes the panels of one block of the sum at a time.
//
// Where u would be a copy (pointwise) and is read but a few times, it is not made: gemm reads the planes, or channels.
// Where the processor multiplies pairs of bfloat16, bfloat16 is not widened: u, its rows, are pairs of channels
// (bfloat16_pairs.h).
//
// A task is one image (pointwise and channels_last: all images), group, block of pixels and block of output channels,
// cut so that the slowest thread is done first. 16-bit types are widened while packing, summed in float in a tile of
// their own, and rounded once. Traffic: u is written to and read from L2 once per block of output channels; y is read
// and written again for every kReduction rows. Limits: groups of few channels waste most of each tile.
#include "conv_im2col.h"

#include <type_traits>
#include <vector>

#include "conv_im2col_packing.h"
#include "conv_im2col_plan.h"
#include "phases.h"

namespace convext::cpu {
namespace im2col {
namespace {

template <typename E, typename A = Accumulate<E>>
struct ForwardThread {
  E* weight;  // on the way
  E* panels;
  A* tile;
  char* lines;
  const E** rows;  // gathered
  E* zeros;
};

template <typename T, typename E>
ForwardThread<E> take_forward(Elements<T, E>, Workspace& workspace, const ConvGeometry& g, const ForwardPlan& plan) {
  using A = Accumulate<T>;
  ForwardThread<E> own = {};
  own.weight = workspace.take<E>(plan.on_the_way ? plan.outputs.size * plan.reduction.size : 0);
  const int64_t width = g.layout == Layout::contiguous ? gemm<E>().nr : plan.width;
  own.tile = workspace.take<A>(std::is_same_v<T, A> ? 0 : plan.outputs.size * plan.pixels.size);
  own.rows = workspace.take<const E*>(plan.gathered ? plan.pixels.size * g.taps() : 0);
  own.zeros = workspace.take<E>(plan.gathered ? rows_geometry<E>(g).group_inputs() : 0);
  if (plan.gathered || plan.in_place) return own;
  if (plan.rows) {
    own.panels = workspace.take<E>(plan.pixels.size * row_stride(plan.reduction.size));
    return own;
  }
  own.panels = workspace.take<E>(ceil_div(plan.pixels.size, width) * panel_stride(width, plan.reduction.size));
  const int64_t lines = line_bytes(g, plan.pixels.size, width, sizeof(E));
  own.lines = lines > 0 ? workspace.take<char>(lines) : nullptr;
  return own;
}

template <typename T, typename E>
int64_t workspace_of(Elements<T, E> elements, const ConvGeometry& g, bool on_the_way) {
  using A = Accumulate<T>;
  const ForwardPlan plan = plan_forward(elements, g, on_the_way);
  Workspace shared(nullptr), own(nullptr);
  shared.take<A>(std::is_same_v<T, A> ? 0 : g.out_channels);
  take_forward(elements, own, g, plan);
  return shared.used() + max_threads() * own.used();
}

// rows[tap][pixel]: the first of the channels that the pixel sees through the tap.
template <typename E>
void gather_rows(const ConvGeometry& g, const E* x, Span pixels, const E** rows, const E* zeros) {
  Run runs[kMaxRun];
  for (int64_t m = 0; m < pixels.size(); m += kMaxRun) {
    const int count = int(std::min(pixels.size() - m, int64_t(kMaxRun)));
    const OutputPlace out = output_place(g, pixels.begin + m);
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const E** row = rows + tap * pixels.size() + m;
      std::fill(row, row + count, zeros);
      const int found = find_runs(g, out, tap, count, runs);
      for (int i = 0; i < found; ++i)
        for (int l = runs[i].first; l < runs[i].last; ++l)
          row[l] = x + (runs[i].at + (l - runs[i].first) * g.stride[2]) * g.in_channels;
    }
  }
}

// Some outputs and places of an image.
struct Part {
  int64_t n, group;
  Span outputs, pixels;
};

template <typename T, typename E>
struct ForwardRun {
  using A = Accumulate<T>;
  const ConvArguments& args;
  const ConvGeometry& g;
  ConvGeometry view;  // whose rows are u's
  const ForwardPlan& plan;
  const A* bias;
  Finish<A> finish;
  bool in_registers, contiguous;

  const T* image(const Part& part) const {
    return static_cast<const T*>(args.input) + g.input_offset(part.n, part.group * g.group_inputs(), 0);
  }
  T* output(const Part& part) const {
    return static_cast<T*>(args.output) +
           g.output_offset(part.n, part.group * g.group_outputs() + part.outputs.begin, part.pixels.begin);
  }
  int64_t output_step() const { return contiguous ? g.output_places() : g.out_channels; }
  // Where sums are, and from one row of them to the next.
  A* tile(const Part& part, const ForwardThread<E>& own, int64_t* step) const {
    if constexpr (std::is_same_v<T, A>) {
      *step = output_step();
      return output(part);
    }
    *step = contiguous ? plan.pixels.size : plan.outputs.size;
    return own.tile;
  }

  void begin(const Part& part, const ForwardThread<E>& own) const {
    if (!plan.gathered) return;  // else T is what E is made of
    std::fill(own.zeros, own.zeros + view.group_inputs(), E());
    gather_rows(view, reinterpret_cast<const E*>(image(part)), part.pixels, own.rows, own.zeros);
  }

  // Adds block i of the sum; w: its panels of the part's outputs.
  void add(const Part& part, int64_t i, Panels<E> w, const ForwardThread<E>& own) const {
    const Span rows = plan.reduction[i], pixels = part.pixels, outputs = part.outputs;
    int64_t step;
    A* const to = tile(part, own, &step);
    GemmStart<A> start = {i > 0};
    if (in_registers && i == plan.reduction.count - 1) start.finish = &finish;
    if (bias != nullptr && i == 0)
      (contiguous ? start.row_bias : start.column_bias) = bias + part.group * g.group_outputs() + outputs.begin;
    const T* from = image(part);
    if (plan.gathered) {
      const Phase phase("gemm");
      gemm<E>().multiply_gathered(pixels.size(), outputs.size(), rows.begin, rows.size(),
                                  {own.rows, pixels.size(), view.group_inputs()}, w, to, step, start);
      return;
    }
    if (plan.in_place && !contiguous) {
      const Phase phase("gemm");
      const int64_t apart = view.in_channels;
      gemm<E>().multiply_rows(pixels.size(), outputs.size(), rows.size(),
                              reinterpret_cast<const E*>(from) + pixels.begin * apart + rows.begin, apart, w, to, step,
                              start, {});
      return;
    }
    const int64_t pixel_width = contiguous ? gemm<E>().nr : plan.width;
    if constexpr (std::is_same_v<T, E>)
      if (plan.in_place) {
        const Phase phase("gemm");
        gemm<E>().multiply(
            outputs.size(), pixels.size(), rows.size(), w,
            {from + rows.begin * g.input_places() + pixels.begin, pixel_width, pixel_width, g.input_places()}, to, step,
            start);
        return;
      }
    Phase phase("unfold");
    if constexpr (!std::is_same_v<T, E> && !kPairs<E>)
      if (plan.rows) {
        const int64_t row = row_stride(rows.size());
        unfold<T>().unfold_rows(view, from, pixels, rows, own.panels, row);
        phase.next("gemm");
        gemm<E>().multiply_rows(pixels.size(), outputs.size(), rows.size(), own.panels, row, w, to, step, start, {});
        return;
      }
    const T* end = static_cast<const T*>(args.input) + g.input_elements();
    if constexpr (kPairs<E>)
      bfloat16_pairs().unfold_pixels(view, g.group_inputs(), from, end, pixels, rows, own.panels, pixel_width,
                                     own.lines);
    else
      unfold<T>().unfold_pixels(view, from, end, pixels, rows, own.panels, pixel_width, own.lines);
    const Panels<E> u = {own.panels, pixel_width, panel_stride(pixel_width, rows.size()), pixel_width};
    phase.next("gemm");
    if (contiguous)
      gemm<E>().multiply(outputs.size(), pixels.size(), rows.size(), w, u, to, step, start);
    else
      gemm<E>().multiply(pixels.size(), outputs.size(), rows.size(), u, w, to, step, start);
  }

  void end(const Part& part, const ForwardThread<E>& own) const {
    const Span pixels = part.pixels, outputs = part.outputs;
    if constexpr (!std::is_same_v<T, A>) {
      const Phase phase("narrow");
      unfold<T>().convert(own.tile, contiguous ? plan.pixels.size : plan.outputs.size,
                          contiguous ? outputs.size() : pixels.size(), contiguous ? pixels.size() : outputs.size(),
                          output(part), output_step());
    }
    if (!in_registers)
      finish_block(
          args, {part.n, part.group * g.group_outputs() + outputs.begin, outputs.size(), pixels.begin, pixels.size()});
  }

  void run_task(int64_t task, const ForwardThread<E>& own) const {
    const int64_t block = task / plan.outputs.count, image = block / plan.pixels.count;
    const Part part = {image / g.groups, image % g.groups, plan.outputs[task % plan.outputs.count],
                       plan.pixels[block % plan.pixels.count]};
    begin(part, own);
    const int64_t first = part.group * plan.weight_panels + part.outputs.begin / plan.output_width;
    Panels<E> w =
        packed_panels(static_cast<const E*>(args.packed_weight) + first * plan.reduction.total * plan.output_width,
                      plan.output_width, plan.reduction.total);
    for (int64_t i = 0; i < plan.reduction.count; ++i, w.data += plan.reduction.size * plan.output_width)
      add(part, i, w, own);
    end(part, own);
  }

  // Some outputs of all places, of which the weight is packed a block of the sum at a time; own_of(thread) is what a
  // thread has for itself.
  template <typename Own>
  void run_on_the_way(int64_t task, const PointWeight<T>& weight, const Own& own_of, int thread) const {
    const Span outputs = plan.outputs[task];
    T* const packed = own_of(thread).weight;
    for (int64_t i = 0; i < plan.reduction.count; ++i) {
      const Span rows = plan.reduction[i];
      pack_points(weight, outputs, rows, plan.output_width, packed);
      const Panels<E> w = packed_panels<E>(packed, plan.output_width, rows.size());
      share(g.batch * plan.pixels.count, [&](int64_t some, int here) {
        const Part part = {some / plan.pixels.count, 0, outputs, plan.pixels[some % plan.pixels.count]};
        const ForwardThread<E> own = own_of(here);
        begin(part, own);
        add(part, i, w, own);
        if (i == plan.reduction.count - 1) end(part, own);
      });
    }
  }
};

template <typename T, typename E>
void run(Elements<T, E> elements, const ConvArguments& args, const PointWeight<T>& raw) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const ForwardPlan plan = plan_forward(elements, g, /*on_the_way=*/raw.data != nullptr);
  Workspace workspace(args.workspace), measure(nullptr);
  const A* bias = widened(static_cast<const T*>(args.bias), g.out_channels, workspace);
  char* threads = static_cast<char*>(args.workspace) + workspace.used();
  take_forward(elements, measure, g, plan);
  ForwardRun<T, E> whole = {args, g,     unfolding_geometry(rows_geometry<E>(g)), plan, bias,
                            {},   false, g.layout == Layout::contiguous};
  whole.in_registers = finish_in_registers<T>(args, &whole.finish);
  const auto own_of = [&](int thread) {
    Workspace mine(threads + thread * measure.used());
    return take_forward(elements, mine, g, plan);
  };
  parallel_for(plan.tasks, [&](int64_t task, int thread) {
    if constexpr (std::is_same_v<T, E>)
      if (plan.on_the_way) return whole.run_on_the_way(task, raw, own_of, thread);
    whole.run_task(task, own_of(thread));
  });
}

const char* unsupported(const ConvGeometry&, DType, Direction) { return nullptr; }

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (is_patches(g, direction)) return patches_bytes(g, dtype, direction);
  switch (direction) {
    case Direction::backward_input: return backward_input_bytes(g, dtype);
    case Direction::backward_weight: return backward_weight_bytes(g, dtype);
    default:
      return forward_by_col2im(g, dtype) ? col2im_bytes(reversed(g), dtype) : forward_bytes(whatever_layout(g), dtype);
  }
}

Packing packing(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return {};
  if (is_patches(g, direction)) return packing(patches_geometry(g), dtype, direction);
  if (direction == Direction::backward_input) return backward_input_packing(g, dtype);
  if (forward_by_col2im(g, dtype)) return col2im_packing(reversed(g), dtype);
  return dispatch_elements(dtype, [&](auto elements) -> Packing {
    using E = typename decltype(elements)::Packed;
    const ForwardPlan plan = plan_forward(elements, whatever_layout(g));
    const int64_t packed = g.groups * plan.weight_panels * plan.output_width * plan.reduction.total;
    return {packed * int64_t(sizeof(E)), plan.output_width};
  });
}

void convolve(const ConvArguments& args) {
  if (is_patches(args.geometry, Direction::forward)) return run_patches(args, Direction::forward);
  if (forward_by_col2im(args.geometry, args.dtype)) return convolve_by_col2im(args);
  ConvArguments any = args;
  any.geometry = whatever_layout(args.geometry);
  forward(any);
}

bool packs_on_the_way(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight || is_patches(g, direction)) return false;
  if (direction == Direction::backward_input) return backward_input_packs_on_the_way(g, dtype);
  return !forward_by_col2im(g, dtype) && forward_packs_on_the_way(whatever_layout(g), dtype);
}

void gradient_of_input(const ConvArguments& args) {
  if (is_patches(args.geometry, Direction::backward_input)) return run_patches(args, Direction::backward_input);
  backward_input(args);
}

void gradient_of_weight(const ConvArguments& args) {
  if (is_patches(args.geometry, Direction::backward_weight)) return run_patches(args, Direction::backward_weight);
  backward_weight(args);
}

void pack(const PackArguments& args) {
  if (is_patches(args.geometry, args.direction)) {
    std::vector<char> moved;
    return pack(patches_weight(args, &moved));
  }
  if (args.direction == Direction::backward_input) return pack_backward_input(args);
  if (forward_by_col2im(args.geometry, args.dtype)) return pack_forward_col2im(args);
  PackArguments one = args;
  one.geometry = whatever_layout(args.geometry);
  dispatch_elements(args.dtype, [&](auto elements) { pack_weight(elements, one); });
}

}  // namespace

void forward(const ConvArguments& args, WeightIs weight) {
  ConvArguments one = args;
  one.geometry = one_image(args.geometry);
  const ConvGeometry& g = one.geometry;
  dispatch_elements(args.dtype, [&](auto elements) {
    using T = typename decltype(elements)::Stored;
    PointWeight<T> raw = {};
    if (args.packed_weight == nullptr)
      raw = {static_cast<const T*>(args.weight), weight == WeightIs::transposed ? 1 : g.in_channels,
             weight == WeightIs::transposed ? g.out_channels : 1};
    run(elements, one, raw);
  });
}
int64_t forward_bytes(const ConvGeometry& geometry, DType dtype) {
  const ConvGeometry g = one_image(geometry);
  return dispatch_elements(dtype, [&](auto elements) {
    const int64_t packed = workspace_of(elements, g, false);
    return forward_packs_on_the_way(g, dtype) ? std::max(packed, workspace_of(elements, g, true)) : packed;
  });
}
bool forward_packs_on_the_way(const ConvGeometry& g, DType dtype) {
  return dispatch_elements(dtype, [&](auto elements) {
    using T = typename decltype(elements)::Stored;
    using E = typename decltype(elements)::Packed;
    return std::is_same_v<T, E> && may_pack_on_the_way(g, gemm<E>().nr);
  });
}
int64_t weight_width(const ConvGeometry& g, DType dtype) {
  return dispatch_elements(dtype, [&](auto elements) { return plan_forward(elements, g).output_width; });
}

}  // namespace im2col

const ConvAlgorithm conv_im2col = {
    "im2col",
    im2col::unsupported,
    im2col::workspace_bytes,
    im2col::convolve,
    im2col::gradient_of_input,
    im2col::gradient_of_weight,
    im2col::packing,
    im2col::pack,
    /*finishes=*/true,
    im2col::packs_on_the_way,
    /*writes_channels_last=*/true,
};

}  // namespace convext::cpu
