// The gradient of the weight of im2col, with u the unfolded input (unfold.h), per group: dw = sum over images of dy
// u^T.
//
// A task is a block of dw (kWeightTiles x kWeightVectors of gemm's tiles), summed up in L2 over
// all images and all blocks of kWeightPixels pixels, in that order; it packs the dy and the u that it needs, pixels
// outermost. Traffic: dy is packed once per block of columns, u once per block of rows. Limits: a weight of one tile
// keeps one thread busy.
#include "conv_im2col.h"

namespace convext::cpu::im2col {
namespace {

constexpr int64_t kWeightTiles = 16, kWeightVectors = 8;
constexpr int64_t kWeightPixels = 256;

struct WeightPlan {
  Blocks outputs, rows, pixels;  // dw[output][row of u], summed over pixels
  int64_t width;                 // of dy's panels
  int64_t tasks;
};

template <typename A>
WeightPlan plan_weight(const ConvGeometry& g) {
  const Gemm<A>& kernel = gemm<A>();
  WeightPlan plan;
  plan.width = panel_width(g.group_outputs(), kernel.mr);
  plan.pixels = cut(g.output_places(), kMaxRun, kWeightPixels);
  int64_t tiles = kWeightTiles, vectors = kWeightVectors;
  while (true) {
    plan.outputs = cut(g.group_outputs(), plan.width, tiles * plan.width);
    plan.rows = cut(g.group_inputs() * g.taps(), kernel.nr, vectors * kernel.nr);
    plan.tasks = g.groups * plan.outputs.count * plan.rows.count;
    if (plan.tasks >= wanted_tasks() || (tiles == 1 && vectors == 1)) return plan;
    (vectors > 1 ? vectors : tiles) /= 2;
  }
}

template <typename A>
struct WeightThread {
  A *dy, *u, *sum, *strip;
};

template <typename A>
WeightThread<A> take_weight(Workspace& workspace, const ConvGeometry& g, const WeightPlan& plan) {
  WeightThread<A> own;
  own.dy = workspace.take<A>(plan.outputs.size * plan.pixels.size);
  own.u = workspace.take<A>(plan.rows.size * plan.pixels.size);
  own.sum = workspace.take<A>(plan.outputs.size * plan.rows.size);
  own.strip = workspace.take<A>(g.layout == Layout::contiguous ? plan.rows.size * kPixelStrip : 0);
  return own;
}

template <typename A>
int64_t weight_bytes(const ConvGeometry& g) {
  Workspace own(nullptr);
  take_weight<A>(own, g, plan_weight<A>(g));
  return max_threads() * own.used();
}

template <typename T>
void run_backward_weight(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry &g = args.geometry, view = unfolding_geometry(g);
  const ConvGeometry matrix = matrix_geometry(g.layout, g.out_channels, g.groups, g.output_places());
  const T *dy = static_cast<const T*>(args.grad_output), *x = static_cast<const T*>(args.input);
  T* dw = static_cast<T*>(args.output);
  const WeightPlan plan = plan_weight<A>(g);
  const int64_t inputs = g.group_inputs(), all_rows = inputs * g.taps(), nr = gemm<A>().nr;
  Workspace measure(nullptr);
  take_weight<A>(measure, g, plan);

  parallel_for(plan.tasks, [&](int64_t task, int thread) {
    const Span rows = plan.rows[task % plan.rows.count];
    task /= plan.rows.count;
    const Span outputs = plan.outputs[task % plan.outputs.count];
    const int64_t group = task / plan.outputs.count;
    Workspace mine(static_cast<char*>(args.workspace) + thread * measure.used());
    const WeightThread<A> own = take_weight<A>(mine, g, plan);
    for (int64_t n = 0; n < g.batch; ++n)
      for (int64_t p = 0; p < plan.pixels.count; ++p) {
        const Span pixels = plan.pixels[p];
        unfold<T>().unfold_rows(matrix, dy + g.output_offset(n, group * g.group_outputs(), 0), pixels, outputs, own.dy,
                                plan.width, own.strip);
        unfold<T>().unfold_rows(view, x + g.input_offset(n, group * inputs, 0), pixels, rows, own.u, nr, own.strip);
        gemm<A>().multiply(outputs.size(), rows.size(), pixels.size(),
                           packed_panels<A>(own.dy, plan.width, pixels.size()),
                           packed_panels<A>(own.u, nr, pixels.size()), own.sum, plan.rows.size, {n + p > 0});
      }
    T* to = dw + (group * g.group_outputs() + outputs.begin) * all_rows;
    if (g.layout == Layout::contiguous || g.taps() == 1) {
      unfold<T>().convert(own.sum, plan.rows.size, outputs.size(), rows.size(), to + rows.begin, all_rows);
      return;
    }
    for (int64_t k = 0; k < outputs.size(); ++k, to += all_rows) {
      const A* from = own.sum + k * plan.rows.size;
      for (int64_t row = rows.begin; row < rows.end;) {
        const int64_t tap = row / inputs, next = std::min(rows.end, (tap + 1) * inputs);
        for (int64_t c = row - tap * inputs; row < next; ++row, ++c)
          to[c * g.taps() + tap] = from_accumulate<T>(*from++);
      }
    }
  });
}

}  // namespace

int64_t backward_weight_bytes(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype,
                           [&](auto type) { return weight_bytes<Accumulate<typename decltype(type)::type>>(g); });
}
void backward_weight(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run_backward_weight<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu::im2col
