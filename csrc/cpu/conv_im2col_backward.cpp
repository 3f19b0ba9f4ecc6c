// The gradient of the input of im2col, with u the unfolded input (unfold.h), per group: du = w^T dy per image, then
// folded: every element of du is added onto the input place it came from.
//
// A task is one image, group and block of input channels, whose planes of dx are its own: for
// each block of pixels it makes the taps x channels part of du that fits L2 (kFoldRows), and folds it. An element of dx
// is added up by pixel block, tap, pixel, whatever the tasks. 16-bit types collect whole planes in float and are
// rounded once. Pointwise convolutions multiply straight into dx. Traffic: du written to and read from L2 once; dy is
// packed once per block of channels.
#include <cstring>
#include <type_traits>

#include "conv_im2col.h"

namespace convext::cpu::im2col {
namespace {

constexpr int64_t kFoldRows = 576;                 // of du (contiguous) or columns (channels_last) in a block
constexpr int64_t kFoldVectors = 4;                // contiguous: panels of nr pixels in a block
constexpr int64_t kFoldTiles = 8;                  // channels_last: panels of mr pixels in a block
constexpr int64_t kPlaneBytes = int64_t(1) << 20;  // of float planes for 16-bit types, but at least one plane

struct FoldPlan {
  Blocks reduction, pixels, channels, taps;
  int64_t pixel_width;    // of dy's panels
  int64_t du_step;        // from row to row of du
  int64_t weight_stride;  // elements of the packed weight per block of channels and taps
  int64_t tasks;
};

template <typename T>
FoldPlan plan_fold(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const Gemm<A>& kernel = gemm<A>();
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t places = g.output_places(), inputs = g.group_inputs(), images = g.batch * g.groups;
  FoldPlan plan;
  plan.reduction = cut(g.group_outputs(), 1, kReduction<A>);
  plan.pixel_width = contiguous ? kernel.nr : panel_width(places, kernel.mr);
  plan.pixels = cut(places, plan.pixel_width, (contiguous ? kFoldVectors : kFoldTiles) * plan.pixel_width);
  plan.taps = cut(g.taps(), 1, kFoldRows);
  int64_t most = std::max(kFoldRows / plan.taps.size, int64_t(1));  // 1 where the taps are more than one block
  if (!std::is_same_v<T, A>)
    most =
        std::max(std::min(most, kPlaneBytes / int64_t(sizeof(A)) / std::max(g.input_places(), int64_t(1))), int64_t(1));
  const int64_t parts = ceil_div(wanted_tasks(), std::max(images, int64_t(1)));
  most = std::min(most, std::max(ceil_div(inputs, parts), int64_t(1)));
  const int64_t unit = !contiguous && most >= kernel.lanes ? kernel.lanes : 1;
  plan.channels = cut(inputs, unit, most / unit * unit);
  const int64_t rows = plan.channels.size * plan.taps.size;
  plan.du_step = contiguous ? plan.pixels.size : rows;
  plan.weight_stride = (contiguous ? rows + kernel.mr : round_up(rows, kernel.nr)) * g.group_outputs();
  plan.tasks = images * plan.channels.count;
  return plan;
}

template <typename A>
struct FoldThread {
  A *panels, *du, *planes;
};

template <typename T, typename A = Accumulate<T>>
FoldThread<A> take_fold(Workspace& workspace, const ConvGeometry& g, const FoldPlan& plan) {
  const int64_t rows = plan.channels.size * plan.taps.size;
  FoldThread<A> own;
  own.panels = workspace.take<A>(ceil_div(plan.pixels.size, plan.pixel_width) *
                                 panel_stride(plan.pixel_width, plan.reduction.size));
  own.du = workspace.take<A>(rows * plan.pixels.size);
  own.planes = workspace.take<A>(std::is_same_v<T, A> ? 0 : plan.channels.size * g.input_places());
  return own;
}

// packed[group][block of channels][block of taps][panel][k][lane], the lanes being rows of du.
template <typename T>
void pack_weight(const ConvGeometry& g, const FoldPlan& plan, const T* w, Accumulate<T>* packed, char* threads,
                 int64_t thread_bytes) {
  using A = Accumulate<T>;
  const int64_t taps = g.taps(), rows = g.group_inputs() * taps, outputs = g.group_outputs();
  const ConvGeometry matrix = matrix_geometry(Layout::channels_last, rows, 1, outputs);
  parallel_for(g.groups * plan.channels.count * plan.taps.count, [&](int64_t task, int thread) {
    const Span tap = plan.taps[task % plan.taps.count];
    const Span c = plan.channels[task / plan.taps.count % plan.channels.count];
    const T* from = w + task / plan.taps.count / plan.channels.count * outputs * rows;
    A* to = packed + task * plan.weight_stride;
    const int64_t count = c.size() * tap.size(), nr = gemm<A>().nr;
    const bool contiguous = g.layout == Layout::contiguous;
    if (contiguous || taps == 1) {
      const int64_t first = c.begin * taps + tap.begin;
      unfold<T>().unfold_rows(matrix, from, {0, outputs}, {first, first + count}, to,
                              contiguous ? panel_width(count, gemm<A>().mr) : nr, nullptr);
      return;
    }
    Workspace mine(threads + thread * thread_bytes);
    A* line = take_fold<T>(mine, g, plan).du;  // [tap][channel] of one output channel
    for (int64_t k = 0; k < outputs; ++k) {
      unfold<T>().transpose(from + k * rows + c.begin * taps + tap.begin, taps, c.size(), tap.size(), line, c.size(),
                            c.size());
      for (int64_t i = 0; i < count; i += nr) {
        A* lane = to + i * outputs + k * nr;
        const int64_t used = std::min(nr, count - i);
        std::copy(line + i, line + i + used, lane);
        std::fill(lane + used, lane + nr, A(0));
      }
    }
  });
}

template <typename T>
int64_t fold_bytes(const ConvGeometry& g) {
  const FoldPlan plan = plan_fold<T>(g);
  Workspace shared(nullptr), own(nullptr);
  shared.take<Accumulate<T>>(g.groups * plan.channels.count * plan.taps.count * plan.weight_stride);
  take_fold<T>(own, g, plan);
  return shared.used() + max_threads() * own.used();
}

template <typename T>
void run_backward_input(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const T* dy = static_cast<const T*>(args.grad_output);
  T* dx = static_cast<T*>(args.output);
  const FoldPlan plan = plan_fold<T>(g);
  const bool contiguous = g.layout == Layout::contiguous, straight = is_pointwise(g) && std::is_same_v<T, A>;
  const ConvGeometry outputs = matrix_geometry(g.layout, g.out_channels, g.groups, g.output_places());
  const int64_t places = g.input_places();

  Workspace workspace(args.workspace), measure(nullptr);
  A* weight = workspace.take<A>(g.groups * plan.channels.count * plan.taps.count * plan.weight_stride);
  char* threads = static_cast<char*>(args.workspace) + workspace.used();
  take_fold<T>(measure, g, plan);
  pack_weight(g, plan, static_cast<const T*>(args.weight), weight, threads, measure.used());

  parallel_for(plan.tasks, [&](int64_t task, int thread) {
    const int64_t block = task % plan.channels.count, image = task / plan.channels.count;
    const int64_t group = image % g.groups, n = image / g.groups;
    const Span c = plan.channels[block];
    Workspace mine(threads + thread * measure.used());
    const FoldThread<A> own = take_fold<T>(mine, g, plan);
    const T* from = dy + g.output_offset(n, group * g.group_outputs(), 0);
    T* to = dx + g.input_offset(n, group * g.group_inputs() + c.begin, 0);

    // Where channel c.begin is summed up, and the distance to the next channel (contiguous) or place (channels_last).
    A* sum = own.planes;
    int64_t sum_step = contiguous ? places : c.size();
    const int64_t step = contiguous ? places : g.in_channels;
    if constexpr (std::is_same_v<T, A>) {
      sum = to;
      sum_step = step;
    }
    const int64_t lines = contiguous ? c.size() : places, line = contiguous ? places : c.size();
    if (!straight)
      for (int64_t i = 0; i < lines; ++i) std::fill(sum + i * sum_step, sum + i * sum_step + line, A(0));

    for (int64_t p = 0; p < plan.pixels.count; ++p)
      for (int64_t t = 0; t < plan.taps.count; ++t) {
        const Span pixels = plan.pixels[p], taps = plan.taps[t];
        const int64_t rows = c.size() * taps.size();
        const int64_t width = contiguous ? panel_width(rows, gemm<A>().mr) : gemm<A>().nr;
        const A* packed = weight + ((group * plan.channels.count + block) * plan.taps.count + t) * plan.weight_stride;
        A* du = straight ? sum + pixels.begin * (contiguous ? 1 : sum_step) : own.du;
        const int64_t du_step = straight ? sum_step : plan.du_step;
        for (int64_t i = 0; i < plan.reduction.count; ++i) {
          const Span k = plan.reduction[i];
          unfold<T>().unfold_pixels(outputs, from, dy + g.output_elements(), pixels, k, own.panels, plan.pixel_width,
                                    nullptr);
          Panels<A> w = packed_panels(packed, width, g.group_outputs());
          w.data += k.begin * width;
          const Panels<A> d = {own.panels, plan.pixel_width, panel_stride(plan.pixel_width, k.size()),
                               plan.pixel_width};
          if (contiguous)
            gemm<A>().multiply(rows, pixels.size(), k.size(), w, d, du, du_step, {i > 0});
          else
            gemm<A>().multiply(pixels.size(), rows, k.size(), d, w, du, du_step, {i > 0});
        }
        if (!straight) unfold<T>().fold(g, du, du_step, pixels, c, taps, sum, sum_step);
      }
    if constexpr (!std::is_same_v<T, A>) unfold<T>().convert(sum, sum_step, lines, line, to, step);
  });
}

}  // namespace

int64_t backward_input_bytes(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) { return fold_bytes<typename decltype(type)::type>(g); });
}
void backward_input(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run_backward_input<typename decltype(type)::type>(args); });
}
}  // namespace convext::cpu::im2col
