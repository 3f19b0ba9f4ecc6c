// Gradient of the input by im2col the other way round (col2im): dy times the weight is what each output place gives to
// each place of its window, and is added there.
//
//   dx[c][p stride + r dilation - before] += sum over k of dy[k][p] w[k, c, r]        tap by tap
//
// As forward convolutions of dy (conv_im2col_backward_input.cpp) every place of dx costs all taps, whether an output
// sees it through them or not. Where outputs are fewer than inputs by more than the stride says, kernels that are large
// for their map or dilated, without padding, that is several times the work.
//
// The unfolded matrix is not made: gemm adds a tap's products where they belong, to a tile with all places of dx, for a
// panel's input channels. A tile's rows are places, and lines of outputs are lines of the tile, a stride apart; those
// that a tap carries into the padding are left out. At the end the tile is moved to dx. The weight is packed
// [group][panel][tap][k][lane], lanes being input channels; dy's rows are places, which contiguous planes are turned to
// (16-bit types are widened for it).
//
// So a forward convolution of stride 1 whose taps mostly see padding (large dilations, kernels as large as the map)
// goes this way, too: it is the gradient of the input of a convolution with the taps reversed and the channels
// exchanged.
//
// A task is an image, group and panel of input channels. Traffic: the tile, in L2, is read and written once for each
// tap and kReduction output channels; dy is read from L2 as often. Limits: tiles of kMostTile bytes; few channels are
// few tasks.
#include <utility>

#include "conv_im2col.h"
#include "finish.h"
#include "input_gradient.h"
#include "phases.h"

namespace convext::cpu::im2col {
namespace {

constexpr double kMostTile = 1 << 20;
constexpr int64_t kRowsBytes = int64_t(4) << 20;  // of dy's rows, but at least an image's
constexpr double kPays = 1.25;                    // times the products, from which on the forward convolutions lose
constexpr double kPaysAlone = 2.0;                // where an image is one task

// Of a gradient_geometry.
template <typename A>
struct Plan {
  int64_t width, panels;  // input channels
  int64_t row;            // from place to place of a tile
  Blocks reduction;       // output channels

  explicit Plan(const ConvGeometry& g) {
    width = gemm<A>().nr;
    panels = ceil_div(g.group_inputs(), width);
    row = std::min(width, round_up(g.group_inputs(), gemm<A>().lanes));
    reduction = cut(g.group_outputs(), 1, kReduction<A>);
  }
  double tile_bytes(const ConvGeometry& g) const { return double(g.input_places()) * double(row) * sizeof(A); }
  int64_t packed(const ConvGeometry& g) const { return g.groups * panels * g.taps() * g.group_outputs() * width; }
};

template <typename T>
constexpr bool kWiden = !std::is_same_v<T, Accumulate<T>>;

// Is dy read where it lies?
template <typename T>
bool rows_as_they_lie(const ConvGeometry& g) {
  return !kWiden<T> && g.layout == Layout::channels_last;
}

template <typename T>
int64_t images_at_once(const ConvGeometry& g) {
  if (rows_as_they_lie<T>(g)) return std::max(g.batch, int64_t(1));
  const int64_t image = g.out_channels * g.output_places() * int64_t(sizeof(Accumulate<T>));
  return images_within(kRowsBytes, image, g.batch);
}

template <typename A>
struct Col2imThread {
  A *tile, *turned;  // turned: a panel's channels of a row of dx, for 16-bit types
};
template <typename T, typename A = Accumulate<T>>
Col2imThread<A> take_thread(Workspace& workspace, const ConvGeometry& g, const Plan<A>& plan) {
  Col2imThread<A> own;
  own.tile = workspace.take<A>(g.input_places() * plan.row);
  own.turned = workspace.take<A>(kWiden<T> ? g.input[2] * plan.width : 0);
  return own;
}

// rows[image][group][place][output channel] of dy.
template <typename T, typename A = Accumulate<T>>
void turn_rows(const ConvGeometry& g, const T* dy, int64_t images, A* rows) {
  const Phase timed("turn");
  const int64_t outputs = g.group_outputs(), places = g.output_places();
  parallel_for(images * g.groups, [&](int64_t task, int) {
    A* to = rows + task * places * outputs;
    const T* from = dy + g.output_offset(task / g.groups, task % g.groups * outputs, 0);
    if (g.layout == Layout::contiguous)
      return unfold<T>().transpose(from, places, outputs, places, to, outputs, outputs);
    for (int64_t p = 0; p < places; ++p)
      for (int64_t k = 0; k < outputs; ++k) to[p * outputs + k] = to_accumulate(from[p * g.out_channels + k]);
  });
}

// The tile, of `count` channels, to dx.
template <typename T, typename A = Accumulate<T>>
void write_tile(const ConvGeometry& g, const Plan<A>& plan, const Col2imThread<A>& own, int64_t count, T* dx) {
  const int64_t places = g.input_places(), width = g.input[2];
  if (g.layout == Layout::channels_last)
    return unfold<T>().convert(own.tile, plan.row, places, count, dx, g.in_channels);
  if constexpr (!kWiden<T>) {
    unfold<A>().transpose(own.tile, plan.row, places, count, dx, places, places);
  } else {
    for (int64_t at = 0; at < places; at += width) {
      unfold<A>().transpose(own.tile + at * plan.row, plan.row, width, count, own.turned, width, width);
      unfold<T>().convert(own.turned, width, count, width, dx + at, places);
    }
  }
}

// Adds one tap's products to the tile. rows: dy's, `apart` elements each, all terms from the first on.
template <typename A>
void add_tap(const ConvGeometry& g, const Plan<A>& plan, const A* rows, int64_t apart, int64_t lanes, int64_t terms,
             const Panels<A>& w, int64_t tap, A* tile) {
  const Reached d(g, 0, tap / (g.kernel[1] * g.kernel[2])), h(g, 1, tap / g.kernel[2] % g.kernel[1]),
      q(g, 2, tap % g.kernel[2]);
  if (h.outputs.size() <= 0 || q.outputs.size() <= 0) return;
  const int64_t next_row = g.input[2] * plan.row, step = g.stride[2] * plan.row;
  const bool whole = q.outputs.size() == g.output[2];  // rows, so that all of them are lines of one product
  const Lines lines = {g.output[2], g.stride[1] * next_row - g.output[2] * step};
  for (int64_t o = d.outputs.begin; o < d.outputs.end; ++o) {
    const int64_t slice = d.place + (o - d.outputs.begin) * g.stride[0];
    const A* from = rows + ((o * g.output[1] + h.outputs.begin) * g.output[2] + q.outputs.begin) * apart;
    A* to = tile + ((slice * g.input[1] + h.place) * g.input[2] + q.place) * plan.row;
    if (whole) {
      gemm<A>().multiply_rows(h.outputs.size() * g.output[2], lanes, terms, from, apart, w, to, step, {true}, lines);
      continue;
    }
    for (int64_t p = 0; p < h.outputs.size(); ++p, from += g.output[2] * apart, to += g.stride[1] * next_row)
      gemm<A>().multiply_rows(q.outputs.size(), lanes, terms, from, apart, w, to, step, {true}, {});
  }
}

template <typename T>
void run_typed(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const Plan<A> plan(g);
  const int64_t outputs = g.group_outputs(), taps = g.taps(), places = g.output_places(),
                at_once = images_at_once<T>(g);
  const bool as_they_lie = rows_as_they_lie<T>(g);
  Workspace workspace(args.workspace), measure(nullptr);
  A* turned_rows = workspace.take<A>(as_they_lie ? 0 : at_once * g.out_channels * places);
  char* threads = static_cast<char*>(args.workspace) + workspace.used();
  take_thread<T>(measure, g, plan);
  const A* weight = static_cast<const A*>(args.packed_weight);
  const int64_t apart = as_they_lie ? g.out_channels : outputs;
  for (int64_t image = 0; image < g.batch; image += at_once) {
    const int64_t images = std::min(at_once, g.batch - image);
    const T* dy = static_cast<const T*>(args.grad_output) + g.output_offset(image, 0, 0);
    if (!as_they_lie) turn_rows(g, dy, images, turned_rows);
    parallel_for(images * g.groups * plan.panels, [&](int64_t task, int thread) {
      const int64_t panel = task % plan.panels, group = task / plan.panels % g.groups;
      const int64_t n = task / plan.panels / g.groups, first = panel * plan.width;
      const int64_t count = std::min(plan.width, g.group_inputs() - first);
      Workspace mine(threads + thread * measure.used());
      const Col2imThread<A> own = take_thread<T>(mine, g, plan);
      const A* rows = turned_rows + (n * g.groups + group) * places * outputs;
      if constexpr (!kWiden<T>)
        if (as_they_lie) rows = dy + g.output_offset(n, group * outputs, 0);
      Phase phase("gemm");
      const T* bias = static_cast<const T*>(args.bias);
      if (bias == nullptr) {
        std::fill(own.tile, own.tile + g.input_places() * plan.row, A(0));
      } else {
        bias += group * g.group_inputs() + first;
        std::vector<A> start(plan.row, A(0));
        for (int64_t c = 0; c < count; ++c) start[c] = to_accumulate(bias[c]);
        for (int64_t i = 0; i < g.input_places(); ++i) std::copy(start.begin(), start.end(), own.tile + i * plan.row);
      }
      const A* packed = weight + (group * plan.panels + panel) * taps * outputs * plan.width;
      const int64_t lanes = std::min(plan.row, round_up(count, gemm<A>().lanes));
      for (int64_t i = 0; i < plan.reduction.count; ++i)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Span some = plan.reduction[i];
          const Panels<A> w =
              packed_panels(packed + (tap * outputs + some.begin) * plan.width, plan.width, some.size());
          add_tap(g, plan, rows + some.begin, apart, lanes, some.size(), w, tap, own.tile);
        }
      phase.next("write");
      write_tile(g, plan, own, count,
                 static_cast<T*>(args.output) + g.input_offset(image + n, group * g.group_inputs() + first, 0));
    });
  }
}

template <typename T>
void pack_typed(const PackArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry g = gradient_geometry(args.geometry);
  const Plan<A> plan(g);
  const int64_t outputs = g.group_outputs(), inputs = g.group_inputs(), taps = g.taps();
  const T* w = static_cast<const T*>(args.weight);
  parallel_for(g.groups * plan.panels, [&](int64_t task, int) {
    const Phase timed("pack weight");
    const int64_t group = task / plan.panels, first = task % plan.panels * plan.width;
    const int64_t count = std::min(plan.width, inputs - first);
    const int64_t next_tap = outputs * plan.width, step = g.flip_kernel ? -next_tap : next_tap;
    A* to = static_cast<A*>(args.packed) + task * taps * next_tap + (g.flip_kernel ? (taps - 1) * next_tap : 0);
    for (int64_t k = 0; k < outputs; ++k, to += plan.width) {
      const T* from = w + (group * outputs + k) * inputs * taps;
      if (!args.channels_last) {
        unfold<T>().transpose(from + first * taps, taps, count, taps, to, step, plan.width);
        continue;
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        A* lanes = to + tap * step;
        for (int64_t c = 0; c < count; ++c) lanes[c] = to_accumulate(from[tap * inputs + first + c]);
        std::fill(lanes + count, lanes + plan.width, A(0));
      }
    }
  });
}

// The same of a forward convolution: lanes are output channels, k input channels, taps reversed.
template <typename T>
void pack_reversed(const PackArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const Plan<A> plan(reversed(g));
  const int64_t outputs = g.group_outputs(), inputs = g.group_inputs(), taps = g.taps();
  const T* w = static_cast<const T*>(args.weight);
  parallel_for(g.groups * plan.panels, [&](int64_t task, int) {
    const Phase timed("pack weight");
    const int64_t group = task / plan.panels, first = task % plan.panels * plan.width;
    const int64_t count = std::min(plan.width, outputs - first), next_tap = inputs * plan.width;
    const T* from = w + (group * outputs + first) * inputs * taps;
    const int64_t step = g.flip_kernel ? next_tap : -next_tap;
    A* to = static_cast<A*>(args.packed) + task * taps * next_tap + (g.flip_kernel ? 0 : (taps - 1) * next_tap);
    if (args.channels_last)
      for (int64_t tap = 0; tap < taps; ++tap)
        unfold<T>().transpose(from + tap * inputs, inputs * taps, count, inputs, to + tap * step, plan.width,
                              plan.width);
    else
      for (int64_t c = 0; c < inputs; ++c)
        unfold<T>().transpose(from + c * taps, inputs * taps, count, taps, to + c * plan.width, step, plan.width);
  });
}

}  // namespace

ConvGeometry reversed(const ConvGeometry& geometry) {
  ConvGeometry g = geometry;
  std::swap(g.in_channels, g.out_channels);
  g.flip_kernel = false;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    std::swap(g.input[axis], g.output[axis]);
    const int64_t reach = (g.kernel[axis] - 1) * g.dilation[axis];
    g.pad_before[axis] = reach - geometry.pad_before[axis];
    g.pad_after[axis] = reach - geometry.pad_after[axis];
  }
  return g;
}

bool forward_by_col2im(const ConvGeometry& g, DType dtype) {
  if (g.stride[0] * g.stride[1] * g.stride[2] > 1 || g.padding_mode != PaddingMode::zeros || !g.padded()) return false;
  return col2im_pays(reversed(g), dtype);
}

void convolve_by_col2im(const ConvArguments& args) {
  ConvArguments gradient = args;
  gradient.geometry = reversed(args.geometry);
  gradient.grad_output = args.input;
  gradient.epilogue = {};
  col2im(gradient);
  finish_output(args);
}

void pack_forward_col2im(const PackArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { pack_reversed<typename decltype(type)::type>(args); });
}

bool col2im_pays(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    using A = Accumulate<typename decltype(type)::type>;
    const Plan<A> plan(g);
    if (plan.tile_bytes(g) > kMostTile || g.group_inputs() < gemm<A>().lanes / 2) return false;
    // With pairs the convolutions take two products at once.
    const double pays = g.groups * plan.panels == 1 ? kPaysAlone : kPays;
    return StridePhases(g).excess() > (dtype == DType::bfloat16 && pairs_bfloat16() ? 2 * pays : pays);
  });
}

Packing col2im_packing(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) -> Packing {
    using A = Accumulate<typename decltype(type)::type>;
    const Plan<A> plan(g);
    return {plan.packed(g) * int64_t(sizeof(A)), -plan.width};  // no packing of phases has a negative width
  });
}

void pack_col2im(const PackArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { pack_typed<typename decltype(type)::type>(args); });
}

int64_t col2im_bytes(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Plan<Accumulate<T>> plan(g);
    Workspace shared(nullptr), own(nullptr);
    shared.take<Accumulate<T>>(rows_as_they_lie<T>(g) ? 0 : images_at_once<T>(g) * g.out_channels * g.output_places());
    take_thread<T>(own, g, plan);
    return shared.used() + max_threads() * own.used();
  });
}

void col2im(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { run_typed<typename decltype(type)::type>(args); });
}

}  // namespace convext::cpu::im2col
