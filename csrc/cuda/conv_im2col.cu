// Convolution as a matrix product: the input's windows are copied out into the columns of a panel, and then
//
//   forward          y[k, col]  = sum over j   of w[k, j] * panel[j, col]        j: c and tap, col: image and o p q
//   backward_weight  dw[k, j]   = sum over col of dy[k, col] * panel[j, col]
//   backward_input   panel[j, col] = sum over k of w[k, j] * dy[k, col], and then every place of dx gathers the panel
//                    elements that were copied from it (a gather: one thread per place, fixed order, no atomics)
//
// by the tiles of gemm.cuh. The panel lies so that copy, product and result all run along the contiguous index of the
// images: [c tap][col] for contiguous ones, [col][tap c] for channels_last. It holds kPanelBytes at most; longer
// batches pass through it piece by piece, whole images or not, and backward_input a few channels at a time. A 1x1
// kernel without stride and padding needs no panel. backward_weight cuts its long sums into parts (a number that the
// geometry fixes), kept in the accumulating type beside the panel and added in order by a kernel of its own.
//
// Traffic: the panel is written and read once, taps times the input, on top of the product's own. Depthwise
// convolutions fill a 64th of a tile: direct serves those. Refused: see unsupported.
#include "../algorithms.h"
#include "gemm.cuh"

namespace convext::cuda {
namespace {

#if !defined(CONVEXT_IM2COL_PANEL_BYTES)
#define CONVEXT_IM2COL_PANEL_BYTES (48 << 20)
#endif
constexpr int64_t kPanelBytes = CONVEXT_IM2COL_PANEL_BYTES, kPartBytes = kPanelBytes / 3;  // 64 MB together
constexpr int64_t kColumnStep = 128, kShortestPart = 256;  // columns: a panel's, where there are so many; a part's

// Where the panel's element of channel c (of all in the panel), tap and column lies.
struct Panel {
  int group_channels;  // in the panel
  int group, channel, tap, column;

  Panel(Layout layout, int64_t channels, int64_t taps, int64_t columns)
      : group_channels(int(channels)), group(int(channels * taps * columns)) {
    const bool contiguous = layout == Layout::contiguous;
    channel = int(contiguous ? taps * columns : 1);
    tap = int(contiguous ? columns : channels);
    column = int(contiguous ? 1 : channels * taps);
  }
};

// panel[c, tap, col] = x[n, c, source(o p q, tap)], columns [first, first + columns) of the images at x. A thread per
// channel and column copies its window.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void im2col_kernel(const Window window, const Strides input,
                                                             const Panel panel, const T* __restrict__ x, int first,
                                                             Divide by_columns, Divide by_channels,
                                                             Divide by_group_channels, Divide by_places,
                                                             T* __restrict__ out) {
  const int columns = by_columns.divisor, channels = by_channels.divisor;
  int at = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (at >= columns * channels) return;
  const int quotient = split(at, panel.column == 1 ? by_columns : by_channels);
  const int column = panel.column == 1 ? at : quotient;
  int c = panel.column == 1 ? quotient : at;

  int place = first + column;
  const int n = split(place, by_places);
  const Place32 o = window.output_place(place);
  const T* plane = x + n * input.image + c * input.channel;
  const int group = split(c, by_group_channels);
  T* to = out + group * panel.group + c * panel.channel + column * panel.column;
  const T zero = from_accumulate<T>(0);
  for (int t = 0; t < window.kernel[0]; ++t) {
    const int d = window.source(0, o.d * window.stride[0] - window.before[0] + t * window.dilation[0]);
    for (int r = 0; r < window.kernel[1]; ++r) {
      const int h = window.source(1, o.h * window.stride[1] - window.before[1] + r * window.dilation[1]);
      for (int s = 0; s < window.kernel[2]; ++s) {
        const int w = window.source(2, o.w * window.stride[2] - window.before[2] + s * window.dilation[2]);
        const bool inside = d >= 0 && h >= 0 && w >= 0;
        *to = inside ? plane[((d * window.in[1] + h) * window.in[2] + w) * input.place] : zero;
        to += panel.tap;
      }
    }
  }
}

// dx[n, c, d h w] = sum of panel[c, tap, col] over the taps and columns that were copied from there. A thread per
// place.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void col2im_kernel(const Window window, const Strides input,
                                                             const Panel panel,
                                                             const Accumulate<T>* __restrict__ columns, int elements,
                                                             Divide by_channels, Divide by_group_channels,
                                                             Divide by_places, T* __restrict__ dx) {
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= elements) return;
  int at = int(element), c, n;
  if (input.place == 1) {
    c = split(at, by_places), n = split(c, by_channels);
  } else {
    c = at, at = split(c, by_channels), n = split(at, by_places);
  }
  const int offset = n * input.image + c * input.channel + at * input.place;
  const Place32 in = window.input_place(at);
  const int group = split(c, by_group_channels);
  const Accumulate<T>* from = columns + group * panel.group + c * panel.channel + n * window.out_places * panel.column;
  const int shown = window.shown(in);
  Accumulate<T> sum = 0;
  for (int m = 0; m < shown; ++m) {
    const Place32 padded = window.shown_at(in, m);
    int tap = 0;
    for (int t = 0; t < window.kernel[0]; ++t) {
      const int o = window.seen_by(0, padded.d, t);
      for (int r = 0; r < window.kernel[1]; ++r) {
        const int p = window.seen_by(1, padded.h, r);
        for (int s = 0; s < window.kernel[2]; ++s, ++tap) {
          const int q = window.seen_by(2, padded.w, s);
          if (o < 0 || p < 0 || q < 0) continue;
          sum += from[tap * panel.tap + ((o * window.out[1] + p) * window.out[2] + q) * panel.column];
        }
      }
    }
  }
  dx[offset] = from_accumulate<T>(sum);
}

// dw = the parts of its sums, added in order.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void add_parts_kernel(const Accumulate<T>* __restrict__ parts, int elements,
                                                                int count, T* __restrict__ dw) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  Accumulate<T> sum = parts[i];
  for (int part = 1; part < count; ++part) sum += parts[i + part * int64_t(elements)];
  dw[i] = from_accumulate<T>(sum);
}

// A 1x1 kernel at stride 1 without padding: the images are their own panel.
bool pointwise(const ConvGeometry& g) {
  return g.taps() == 1 && !g.padded() && g.stride[0] == 1 && g.stride[1] == 1 && g.stride[2] == 1;
}

int64_t columns_at_once(const ConvGeometry& g, DType dtype) {
  const int64_t all = images_at_once(g.batch, g.out_channels * g.output_places()) * g.output_places();
  const int64_t fitting = kPanelBytes / (g.in_channels * g.taps() * bytes_of(dtype));
  const int64_t most = fitting < kColumnStep ? fitting : fitting / kColumnStep * kColumnStep;
  return all < most ? all : most;
}

// How much of the gradient of the input one panel serves: whole images if it can, else one image and a few groups,
// else a few channels of one group.
struct Piece {
  int64_t images, groups, channels;
};
Piece piece_of(const ConvGeometry& g, DType dtype) {
  const int64_t most = kPanelBytes / (g.taps() * g.output_places() * accumulate_bytes_of(dtype));  // channels
  const auto clamp = [](int64_t i, int64_t end) { return i < 1 ? 1 : i < end ? i : end; };
  const int64_t elements = g.in_channels * g.input_places(), made = g.out_channels * g.output_places();
  const int64_t images = images_at_once(g.batch, elements > made ? elements : made);
  return {clamp(most / g.in_channels, images), clamp(most / g.group_inputs(), g.groups), clamp(most, g.group_inputs())};
}

int64_t parts_of(const ConvGeometry& g, DType dtype) {
  constexpr int64_t kTile = 64;
  const int64_t tiles = g.groups * ceil_div(g.group_outputs(), kTile) * ceil_div(g.group_inputs() * g.taps(), kTile);
  const int64_t columns = pointwise(g) ? g.batch * g.output_places() : columns_at_once(g, dtype);
  int64_t parts = CONVEXT_GEMM_ENOUGH_TILES / tiles;
  const int64_t fitting = kPartBytes / (g.weight_elements() * accumulate_bytes_of(dtype));
  if (parts > fitting) parts = fitting;
  if (parts > columns / kShortestPart) parts = columns / kShortestPart;
  return parts > 1 ? parts : 1;
}

int64_t parts_bytes(const ConvGeometry& g, DType dtype) {
  return ceil_div(parts_of(g, dtype) * g.weight_elements() * accumulate_bytes_of(dtype), 64) * 64;
}

const char* unsupported(const ConvGeometry& g, DType dtype, Direction) {
  if (const char* reason = too_large(g)) return reason;
  if (pointwise(g)) return nullptr;
  if (g.in_channels * g.taps() * bytes_of(dtype) > kPanelBytes) return "one column of the panel exceeds the workspace";
  if (g.taps() * g.output_places() * accumulate_bytes_of(dtype) > kPanelBytes)
    return "the panel of one channel exceeds the workspace";
  return nullptr;
}

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  const int64_t parts = direction == Direction::backward_weight ? parts_bytes(g, dtype) : 0;
  if (pointwise(g)) return parts;
  if (direction != Direction::backward_input)
    return parts + columns_at_once(g, dtype) * g.in_channels * g.taps() * bytes_of(dtype);
  const Piece piece = piece_of(g, dtype);
  return piece.images * piece.groups * piece.channels * g.taps() * g.output_places() * accumulate_bytes_of(dtype);
}

// The weight of panel row j of a group, from channel `first` of it on: w + weight_start + weight_row.offset(j).
Span weight_row(const ConvGeometry& g, int64_t channels) {
  if (g.layout == Layout::channels_last) return span(channels, g.flip_kernel ? -1 : 1, g.taps());
  return g.flip_kernel ? span(g.taps(), g.taps(), -1) : plain_span(1);
}
int64_t weight_start(const ConvGeometry& g, int64_t first) {
  return first * g.taps() + (g.flip_kernel ? g.taps() - 1 : 0);
}

// The panel (or, pointwise, the images themselves from column `first` on) as an operand with the row given first.
struct PanelSpans {
  int group;
  Span row, column;
};
PanelSpans panel_spans(const ConvGeometry& g, const Panel& panel, int64_t first) {
  if (pointwise(g)) {
    const Strides x = input_strides(g);
    return {int(g.group_inputs() * x.channel), plain_span(x.channel), span(g.input_places(), x.image, x.place, first)};
  }
  const bool contiguous = g.layout == Layout::contiguous;
  return {panel.group, plain_span(contiguous ? panel.tap : 1), plain_span(panel.column)};
}

template <typename T>
void im2col(const ConvArguments& args, const T* x, const Panel& panel, int64_t first, int64_t columns, T* out) {
  const ConvGeometry& g = args.geometry;
  launch("conv_im2col_panel", im2col_kernel<T>, grid_of(ceil_div(g.in_channels * columns, kThreads)), kThreads, 0,
         args.stream, Window(g), input_strides(g), panel, x, int(first), Divide(columns), Divide(g.in_channels),
         Divide(g.group_inputs()), Divide(g.output_places()), out);
}

// run(n, images, first, columns): the columns of images n .. in pieces that fit the panel.
template <typename Run>
void for_each_piece(const ConvGeometry& g, DType dtype, const Run& run) {
  const int64_t elements = g.in_channels * g.input_places(), made = g.out_channels * g.output_places();
  const int64_t most_images = images_at_once(g.batch, elements > made ? elements : made);
  for (int64_t n = 0; n < g.batch; n += most_images) {
    const int64_t images = g.batch - n < most_images ? g.batch - n : most_images, all = images * g.output_places();
    const int64_t most = pointwise(g) ? all : columns_at_once(g, dtype);
    for (int64_t first = 0; first < all; first += most) run(n, first, all - first < most ? all - first : most);
  }
}

template <typename T>
void forward(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const T *weight = static_cast<const T*>(args.weight), *bias = static_cast<const T*>(args.bias);
  T* panel_data = static_cast<T*>(args.workspace);
  const int64_t rows = g.group_inputs() * g.taps();
  const Strides y = output_strides(g);
  for_each_piece(g, args.dtype, [&](int64_t n, int64_t first, int64_t columns) {
    const T* x = static_cast<const T*>(args.input) + n * g.in_channels * g.input_places();
    const Panel panel(g.layout, g.group_inputs(), g.taps(), columns);
    if (!pointwise(g)) im2col(args, x, panel, first, columns, panel_data);
    const PanelSpans spans = panel_spans(g, panel, first);
    const Operand<T> a = {weight + weight_start(g, 0), int(g.group_outputs() * rows), plain_span(rows),
                          weight_row(g, g.group_inputs())};
    const Operand<T> b = {pointwise(g) ? x : panel_data, spans.group, spans.column, spans.row};
    const Result<T> c = {static_cast<T*>(args.output) + n * y.image,
                         0,
                         int(g.group_outputs() * y.channel),
                         plain_span(y.channel),
                         span(g.output_places(), y.image, y.place, first),
                         false};
    gemm("conv_im2col_forward", a, b, c, bias, {int(g.group_outputs()), int(columns), int(rows), int(g.groups)},
         args.stream);
  });
}

// The pieces of the gradient of the input: images n .., groups of them and channels of those from `first` on.
template <typename T>
void backward_input_piece(const ConvArguments& args, int64_t n, int64_t group, int64_t first, const Piece& piece) {
  const ConvGeometry& g = args.geometry;
  const int64_t rows = g.group_inputs() * g.taps(), columns = piece.images * g.output_places();
  const Strides x = input_strides(g), y = output_strides(g);
  const T* weight = static_cast<const T*>(args.weight) + group * g.group_outputs() * rows + weight_start(g, first);
  const T* dy = static_cast<const T*>(args.grad_output) + n * y.image + group * g.group_outputs() * y.channel;
  T* dx = static_cast<T*>(args.output) + n * x.image + (group * g.group_inputs() + first) * x.channel;

  const Operand<T> a = {weight, int(g.group_outputs() * rows), weight_row(g, piece.channels), plain_span(rows)};
  const Operand<T> b = {dy, int(g.group_outputs() * y.channel), span(g.output_places(), y.image, y.place),
                        plain_span(y.channel)};
  const GemmSize size = {int(piece.channels * g.taps()), int(columns), int(g.group_outputs()), int(piece.groups)};
  if (pointwise(g)) {
    const Result<T> c = {
        dx,   0, int(g.group_inputs() * x.channel), plain_span(x.channel), span(g.input_places(), x.image, x.place),
        false};
    gemm("conv_im2col_backward_input", a, b, c, static_cast<const T*>(nullptr), size, args.stream);
    return;
  }
  const Panel panel(g.layout, piece.channels, g.taps(), columns);
  Accumulate<T>* panel_data = static_cast<Accumulate<T>*>(args.workspace);
  const PanelSpans spans = panel_spans(g, panel, 0);
  const Result<Accumulate<T>> c = {panel_data, 0, spans.group, spans.row, spans.column, false};
  gemm("conv_im2col_backward_input", a, b, c, static_cast<const T*>(nullptr), size, args.stream);

  const int64_t channels = piece.groups * piece.channels, elements = piece.images * channels * g.input_places();
  launch("conv_im2col_gather", col2im_kernel<T>, grid_of(ceil_div(elements, kThreads)), kThreads, 0, args.stream,
         Window(g), x, panel, static_cast<const Accumulate<T>*>(panel_data), int(elements), Divide(channels),
         Divide(piece.channels), Divide(g.input_places()), dx);
}

template <typename T>
void backward_input(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  Piece most = piece_of(g, args.dtype);
  if (pointwise(g)) {
    const int64_t elements = g.in_channels > g.out_channels ? g.in_channels : g.out_channels;
    most = {images_at_once(g.batch, elements * g.input_places()), g.groups, g.group_inputs()};
  }
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  for (int64_t n = 0; n < g.batch; n += most.images)
    for (int64_t group = 0; group < g.groups; group += most.groups)
      for (int64_t first = 0; first < g.group_inputs(); first += most.channels)
        backward_input_piece<T>(args, n, group, first,
                                {least(most.images, g.batch - n), least(most.groups, g.groups - group),
                                 least(most.channels, g.group_inputs() - first)});
}

template <typename T>
void backward_weight(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const int64_t rows = g.group_inputs() * g.taps(), elements = g.weight_elements();
  const int count = int(parts_of(g, args.dtype));
  const Strides y = output_strides(g);
  A* parts = static_cast<A*>(args.workspace);
  T* panel_data = reinterpret_cast<T*>(static_cast<char*>(args.workspace) + parts_bytes(g, args.dtype));
  bool accumulate = false;
  for_each_piece(g, args.dtype, [&](int64_t n, int64_t first, int64_t columns) {
    const T* x = static_cast<const T*>(args.input) + n * g.in_channels * g.input_places();
    const Panel panel(g.layout, g.group_inputs(), g.taps(), columns);
    if (!pointwise(g)) im2col(args, x, panel, first, columns, panel_data);
    const PanelSpans spans = panel_spans(g, panel, first);
    const Operand<T> a = {static_cast<const T*>(args.grad_output) + n * y.image, int(g.group_outputs() * y.channel),
                          plain_span(y.channel), span(g.output_places(), y.image, y.place, first)};
    const Operand<T> b = {pointwise(g) ? x : panel_data, spans.group, spans.row, spans.column};
    const Result<A> c = {parts + weight_start(g, 0),      elements,  int(g.group_outputs() * rows), plain_span(rows),
                         weight_row(g, g.group_inputs()), accumulate};
    gemm("conv_im2col_backward_weight", a, b, c, static_cast<const T*>(nullptr),
         {int(g.group_outputs()), int(rows), int(columns), int(g.groups), count}, args.stream);
    accumulate = true;
  });
  launch("conv_im2col_add_parts", add_parts_kernel<T>, grid_of(ceil_div(elements, kThreads)), kThreads, 0, args.stream,
         static_cast<const A*>(parts), int(elements), count, static_cast<T*>(args.output));
}

}  // namespace

const ConvAlgorithm conv_im2col = {
    "im2col",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { forward<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { backward_input<typename decltype(type)::type>(args); });
    },
    [](const ConvArguments& args) {
      dispatch_floating(args.dtype, [&](auto type) { backward_weight<typename decltype(type)::type>(args); });
    },
};

}  // namespace convext::cuda
