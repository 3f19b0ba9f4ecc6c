// Winograd convolution for stride 1: tiles of the output are computed in another basis, where a convolution is a
// product element by element and its sum over channels a matrix product per element (formulas: ../winograd.h):
//
//   v[e][c][tile] = B^T d B      u[e][k][c] = G w G^T      m[e][k][tile] = sum_c u v      y = A^T m A
//
// F(4x4,3x3) multiplies 36 times where the definition does 144 times, F(2x2,3x3) 16 for 36. The gradient of the input
// is the convolution of the output's gradient with the flipped weight, channels exchanged; where padding repeats the
// input, that of the padded input, folded. That of the weight contracts the same form over tiles:
//
//   m[e][k][c] = sum over tiles of (A dy A^T) v      dw = G^T m G
//
// Two ways. Fused (conv_winograd_fused.cu): F(2x2,3x3) in one kernel, for few channels, where reading and writing
// points would cost more than the larger tile saves. Through memory: the transforms of conv_winograd_transforms.cu and
// between them one product per point and group by the tiles of gemm.cuh, a panel of tiles at a time, small enough to
// stay in the second-level cache of a large GPU. Taps along depth are more terms of the sum over channels. Workspace:
// kWorkspaceBytes at most; weights too large for their part of it pass in pieces of output channels.
//
// Bits: every sum runs in the order of its channels, and of that nothing depends on the batch. The gradient of the
// weight is cut into parts, added in order (a number that the geometry fixes), so that no chain is longer than kChain.
// Error as on the CPU (docs/winograd.md). Refused: see unsupported.
#include "conv_winograd.cuh"
#include "gemm.cuh"

namespace convext::cuda {
namespace {

#if !defined(CONVEXT_WINOGRAD_BYTES)
#define CONVEXT_WINOGRAD_BYTES (64 << 20)
#endif
#if !defined(CONVEXT_WINOGRAD_TRANSFORM_COST)
#define CONVEXT_WINOGRAD_TRANSFORM_COST 50
#endif
constexpr int64_t kWorkspaceBytes = CONVEXT_WINOGRAD_BYTES;
constexpr int64_t kWeightBytes = kWorkspaceBytes / 16 * 9;  // of the weight at the points: 36 x 512 x 512 floats
constexpr int64_t kPanelBytes = kWorkspaceBytes / 16 * 7;   // of tiles at the points
constexpr int64_t kColumnStep = 128, kShortestPart = 128;   // tiles: a panel's, where there are so many; a part's
constexpr int64_t kChain = 256;                             // tiles of one sum
constexpr double kTransformCost = CONVEXT_WINOGRAD_TRANSFORM_COST;  // of a point written and read, in multiply-adds
constexpr double kFusedCost = 1.25;                                 // of a multiply-add in the fused kernel, in gemm's
constexpr double kSumTiles = 6;  // the transform of a sum costs as many tiles' products

bool repeats_padding(const ConvGeometry& g) { return g.padding_mode != PaddingMode::zeros && g.padded(); }

// The convolution that a direction comes down to; the gradient of the input where padding repeats: of the padded input.
ConvGeometry as_forward(const ConvGeometry& g, Direction direction) {
  if (direction != Direction::backward_input) return g;
  ConvGeometry mirrored = g;
  mirrored.in_channels = g.out_channels, mirrored.out_channels = g.in_channels;
  mirrored.padding_mode = PaddingMode::zeros;
  mirrored.flip_kernel = !g.flip_kernel;
  for (int i = 0; i < kMaxSpatial; ++i) {
    const bool whole = repeats_padding(g);
    mirrored.input[i] = g.output[i];
    mirrored.output[i] = g.input[i] + (whole ? g.pad_before[i] + g.pad_after[i] : 0);
    mirrored.pad_before[i] = g.kernel[i] - 1 - (whole ? 0 : g.pad_before[i]);  // may be below zero
    mirrored.pad_after[i] = mirrored.output[i] + g.kernel[i] - 1 - mirrored.pad_before[i] - mirrored.input[i];
  }
  return mirrored;
}

// The output's gradient as an input without padding.
ConvGeometry gradient_view(const ConvGeometry& g) {
  ConvGeometry view = g;
  view.in_channels = g.out_channels;
  view.padding_mode = PaddingMode::zeros;
  for (int i = 0; i < kMaxSpatial; ++i) view.input[i] = g.output[i], view.pad_before[i] = view.pad_after[i] = 0;
  view.stride[0] = 1;
  return view;
}

int64_t clamp(int64_t i, int64_t least, int64_t most) { return i < least ? least : i < most ? i : most; }

struct Plan {
  ConvGeometry g;
  WinogradTile tile = WinogradTile::f4x4_3x3;
  int m_h = 1, m_w = 1;
  int64_t points = 0, rows = 0, made = 0;  // rows: taps along depth and channels, of the sum; made: channels of a group
  bool fused = false, folded = false;
  int64_t groups = 1, channels = 1;         // of a piece: several groups whole, or some channels of one
  int64_t images = 1, columns = 1;          // in 32 bits; of a panel
  int64_t parts = 1;                        // of the weight's gradient
  int64_t u = 0, v = 0, m = 0, padded = 0;  // bytes of the workspace
  const char* refusal = nullptr;

  int64_t tiles_of_image() const { return g.output[0] * winograd_tiles(g, m_h, m_w); }
};

// The fused kernel keeps the weight and a padded image whole.
bool may_fuse(const Plan& plan, DType dtype, Direction direction) {
  const ConvGeometry& g = plan.g;
  const int64_t elements = fused_weight_elements(int(g.groups), int(plan.made), int(plan.rows));
  return dtype == DType::float32 && direction != Direction::backward_weight && g.kernel[1] == 3 && g.kernel[2] == 3 &&
         elements * 4 <= kWeightBytes && (!plan.folded || g.out_channels * g.output_places() * 4 <= kPanelBytes);
}

// In multiply-adds. Outputs and gradients of the input look at one image.
WinogradTile choose_tile(const Plan& plan, bool fusible, Direction direction) {
  const bool weight = direction == Direction::backward_weight;
  return choose_winograd_tile(plan.g, [&](int m) {
    const double points = (m + 2) * (m + 2), rows = double(plan.rows), made = double(plan.made);
    const double tiles = double(plan.g.output[0] * winograd_tiles(plan.g, m, m) * (weight ? plan.g.batch : 1));
    if (m == 2 && fusible) return points * tiles * rows * double(ceil_div(plan.made, 32) * 32) * kFusedCost;
    return points * (tiles * (rows * made + kTransformCost * (rows + made)) + (weight ? kSumTiles * rows * made : 0));
  });
}

// Into how many parts the sums of the weight's gradient are cut: to fill the GPU, and lest a chain be too long.
void cut_sums(Plan& plan, int64_t size) {
  const int64_t tiles = plan.groups * plan.points * ceil_div(plan.channels, 64) * ceil_div(plan.rows, 64);
  const int64_t room = kWeightBytes / (plan.groups * plan.channels * plan.points * plan.rows * size);
  const int64_t longest = plan.columns / kShortestPart, most = room < longest ? room : longest;
  const int64_t to_fill = CONVEXT_GEMM_ENOUGH_TILES / tiles, to_be_short = ceil_div(plan.columns, kChain);
  plan.parts = clamp(to_fill > to_be_short ? to_fill : to_be_short, 1, most > 1 ? most : 1);
  plan.columns = clamp(plan.columns, 1, plan.parts * kChain);
}

// The pieces that weights and tiles pass in; sets `refusal` where not even the smallest fit.
void cut_work(Plan& plan, int64_t size) {
  const ConvGeometry& g = plan.g;
  const int64_t padded_channel = plan.folded ? g.output_places() * size : 0;
  const int64_t panel_bytes = plan.folded && !plan.fused ? kPanelBytes / 2 : kPanelBytes;
  int64_t most = kWeightBytes / (plan.points * plan.rows * size);  // channels of a piece
  if (plan.folded && most > panel_bytes / padded_channel) most = panel_bytes / padded_channel;
  if (plan.fused) most = g.out_channels;
  plan.refusal = most < 1 ? "one output channel does not fit the workspace" : nullptr;
  if (most < 1) return;
  plan.channels = ceil_div(plan.made, ceil_div(plan.made, most));
  plan.groups = clamp(most / plan.made, 1, g.groups);

  const int64_t read = g.in_channels * g.input_places(), made = g.out_channels * g.output_places();
  plan.images = images_at_once(g.batch, read > made ? read : made);
  if (!plan.fused) {
    const int64_t group_column = plan.points * (plan.rows + plan.channels) * size;
    plan.groups = clamp(panel_bytes / (kColumnStep * group_column), 1, plan.groups);
    plan.columns = panel_bytes / (plan.groups * group_column);
    plan.refusal = plan.columns < 1 ? "one tile does not fit the workspace" : nullptr;
    if (plan.columns > kColumnStep) plan.columns = plan.columns / kColumnStep * kColumnStep;
  }
  if (plan.folded) plan.images = clamp(panel_bytes / (padded_channel * plan.groups * plan.channels), 1, plan.images);
  const int64_t all = plan.images * plan.tiles_of_image();
  if (plan.fused || plan.columns > all) plan.columns = all;
}

Plan make_plan(const ConvGeometry& geometry, DType dtype, Direction direction) {
  const int64_t size = bytes_of(dtype);
  Plan plan;
  plan.g = as_forward(geometry, direction);
  const ConvGeometry& g = plan.g;
  if (g.in_channels == 0 || g.out_channels == 0 || g.batch == 0) return plan;  // never run
  plan.folded = direction == Direction::backward_input && repeats_padding(geometry);
  plan.rows = g.kernel[0] * g.group_inputs();
  plan.made = g.group_outputs();
  const bool fusible = may_fuse(plan, dtype, direction);
  plan.tile = choose_tile(plan, fusible, direction);
  plan.fused = fusible && plan.tile == WinogradTile::f2x2_3x3;
  dispatch_tile(plan.tile, [&](auto of) {
    using Tile = decltype(of);
    plan.m_h = Tile::H::m, plan.m_w = Tile::W::m, plan.points = Tile::H::n * Tile::W::n;
  });
  cut_work(plan, size);
  if (plan.refusal != nullptr) return plan;
  if (direction == Direction::backward_weight) cut_sums(plan, size);

  const auto bytes = [&](int64_t elements) { return ceil_div(elements * size, 64) * 64; };
  const int64_t piece = plan.groups * plan.channels, panel = plan.fused ? 0 : plan.points * plan.columns;
  plan.u = bytes(plan.fused ? fused_weight_elements(int(g.groups), int(plan.made), int(plan.rows))
                            : plan.parts * piece * plan.points * plan.rows);
  plan.v = bytes(panel * plan.groups * plan.rows);
  plan.m = bytes(panel * piece);
  plan.padded = plan.folded ? bytes(plan.images * piece * g.output_places()) : 0;
  return plan;
}

const char* unsupported(const ConvGeometry& g, DType dtype, Direction direction) {
  if (const char* reason = winograd_refusal(g, direction)) return reason;
  if (const char* reason = too_large(g)) return reason;
  if (dtype == DType::float16 || dtype == DType::bfloat16)
    return "on CUDA it computes float32 and float64: 16-bit types have tensor cores";
  return make_plan(g, dtype, direction).refusal;
}

int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  const Plan plan = make_plan(g, dtype, direction);
  return plan.u + plan.v + plan.m + plan.padded;
}

// run(first group, its channel `first`, a plan of so many groups and channels): the pieces of a weight.
template <typename Run>
void for_each_piece(const Plan& plan, const Run& run) {
  for (int64_t group = 0; group < plan.g.groups; group += plan.groups)
    for (int64_t first = 0; first < plan.made; first += plan.channels) {
      Plan piece = plan;
      piece.groups = clamp(plan.g.groups - group, 1, plan.groups);
      piece.channels = clamp(plan.made - first, 1, plan.channels);
      run(group, first, piece);
    }
}

// run(first image, images, first column, columns): the panels of tiles.
template <typename Run>
void for_each_panel(const Plan& plan, const Run& run) {
  for (int64_t n = 0; n < plan.g.batch; n += plan.images) {
    const int64_t images = clamp(plan.g.batch - n, 1, plan.images), all = images * plan.tiles_of_image();
    for (int64_t first = 0; first < all; first += plan.columns)
      run(n, images, int(first), int(clamp(all - first, 1, plan.columns)));
  }
}

// Points lie as the images do: along tiles, or along channels.
PointStrides point_strides(const ConvGeometry& g, int64_t rows, int64_t columns) {
  if (g.layout == Layout::contiguous) return {int(columns), 1};
  return {1, int(rows)};
}

Patches patches_of(const Plan& plan, const ConvGeometry& view, int64_t rows, int64_t channels, int first, int columns) {
  return {Window(view), input_strides(view), TileGrid(plan.g, plan.m_h, plan.m_w), first, columns, int(plan.groups),
          int(rows),    int(channels),       point_strides(plan.g, rows, columns)};
}

// The filters of a piece of the weight; `g` is the geometry of the call.
Filters filters_of(const Plan& plan, const ConvGeometry& g, Direction direction) {
  const int64_t taps = g.taps(), row = g.group_inputs() * taps;
  const bool mirrored = direction == Direction::backward_input;
  return {int(plan.groups),
          int(plan.channels),
          int(plan.rows),
          int(plan.g.group_inputs()),
          int(g.group_outputs() * row),
          int(mirrored ? taps : row),
          int(mirrored ? row : taps),
          int(taps),
          plan.g.flip_kernel};
}

// Outputs, or the gradient of the input: both are convolutions of `read`.
template <typename A>
void convolve(const ConvArguments& args, Direction direction, const A* read, const A* bias) {
  const Plan plan = make_plan(args.geometry, args.dtype, direction);
  const ConvGeometry& g = plan.g;
  char* at = static_cast<char*>(args.workspace);
  A *const u = reinterpret_cast<A*>(at), *const v = reinterpret_cast<A*>(at + plan.u);
  A* const m = reinterpret_cast<A*>(at + plan.u + plan.v);
  A* const padded = reinterpret_cast<A*>(at + plan.u + plan.v + plan.m);
  const Strides x = input_strides(g), y = strides_of(g.out_channels, args.geometry.input_places(), g.layout);
  const Strides out = plan.folded ? y : output_strides(g);
  for_each_piece(plan, [&](int64_t group, int64_t first_channel, const Plan& piece) {
    const Filters filters = filters_of(piece, args.geometry, direction);
    const int64_t made = group * plan.made + first_channel;
    const A* w =
        static_cast<const A*>(args.weight) + group * filters.group_stride + first_channel * filters.made_stride;
    const int64_t channels = piece.groups * piece.channels;
    if (!plan.fused) winograd_filters(plan.tile, filters, w, u, args.stream);
    for_each_panel(plan, [&](int64_t n, int64_t images, int first, int columns) {
      const A* from = read + n * x.image + group * g.group_inputs() * x.channel;
      A* to = static_cast<A*>(args.output) + n * out.image + made * out.channel;
      const A* start = bias == nullptr ? nullptr : bias + made;
      const Patches patches = patches_of(piece, g, plan.rows, g.group_inputs(), first, columns);
      const Results results = {plan.folded ? strides_of(channels, g.output_places(), g.layout) : out,
                               int(g.output[1]),
                               int(g.output[2]),
                               patches.tiles,
                               first,
                               columns,
                               int(piece.groups),
                               int(piece.channels),
                               point_strides(g, piece.channels, columns)};
      A* const made_at = plan.folded ? padded : to;
      if constexpr (sizeof(A) == 4)
        if (plan.fused) winograd_fused(patches, filters, results, from, w, start, u, made_at, args.stream);
      if (!plan.fused) {
        winograd_to_points(plan.tile, patches, false, from, v, args.stream);
        const Operand<A> a = {u, int(piece.channels * plan.rows), plain_span(plan.rows), plain_span(1)};
        const Operand<A> b = {v, int(plan.rows * columns), plain_span(patches.to.column), plain_span(patches.to.row)};
        const Result<A> c = {
            m, 0, int(piece.channels * columns), plain_span(results.from.row), plain_span(results.from.column), false};
        gemm("conv_winograd_product", a, b, c, static_cast<const A*>(nullptr),
             {int(piece.channels), columns, int(plan.rows), int(piece.groups * plan.points)}, args.stream);
        winograd_from_points(plan.tile, results, m, start, made_at, args.stream);
      }
      if (plan.folded && first + columns == images * plan.tiles_of_image())
        winograd_fold(args.geometry, int(images), int(channels), static_cast<const A*>(padded), to, args.stream);
    });
  });
}

template <typename A>
void backward_weight(const ConvArguments& args) {
  const Direction direction = Direction::backward_weight;
  const Plan plan = make_plan(args.geometry, args.dtype, direction);
  const ConvGeometry &g = plan.g, view = gradient_view(g);
  char* at = static_cast<char*>(args.workspace);
  A *const sums = reinterpret_cast<A*>(at), *const v = reinterpret_cast<A*>(at + plan.u);
  A* const u = reinterpret_cast<A*>(at + plan.u + plan.v);
  const Strides x = input_strides(g), y = output_strides(g);
  for_each_piece(plan, [&](int64_t group, int64_t first_channel, const Plan& piece) {
    bool accumulate = false;
    const int64_t made = group * plan.made + first_channel;
    for_each_panel(plan, [&](int64_t n, int64_t, int first, int columns) {
      const A* input = static_cast<const A*>(args.input) + n * x.image + group * g.group_inputs() * x.channel;
      const A* dy = static_cast<const A*>(args.grad_output) + n * y.image + made * y.channel;
      const Patches of_x = patches_of(piece, g, plan.rows, g.group_inputs(), first, columns);
      const Patches of_dy = patches_of(piece, view, piece.channels, piece.channels, first, columns);
      winograd_to_points(plan.tile, of_x, false, input, v, args.stream);
      winograd_to_points(plan.tile, of_dy, true, dy, u, args.stream);
      const Operand<A> a = {u, int(piece.channels * columns), plain_span(of_dy.to.row), plain_span(of_dy.to.column)};
      const Operand<A> b = {v, int(plan.rows * columns), plain_span(of_x.to.row), plain_span(of_x.to.column)};
      const int64_t point = piece.channels * plan.rows, matrices = piece.groups * plan.points;
      const Result<A> c = {sums, point * matrices, int(point), plain_span(plan.rows), plain_span(1), accumulate};
      gemm("conv_winograd_weight_product", a, b, c, static_cast<const A*>(nullptr),
           {int(piece.channels), int(plan.rows), columns, int(matrices), int(plan.parts)}, args.stream);
      accumulate = true;
    });
    const Filters filters = filters_of(piece, g, direction);
    A* dw = static_cast<A*>(args.output) + group * filters.group_stride + first_channel * filters.made_stride;
    winograd_filter_sums(plan.tile, filters, sums, int(plan.parts), dw, args.stream);
  });
}

// float or double
template <typename F>
void dispatch_plain(DType dtype, F&& f) {
  dtype == DType::float64 ? f(Type<double>()) : f(Type<float>());
}

}  // namespace

const ConvAlgorithm conv_winograd = {
    "winograd",
    unsupported,
    workspace_bytes,
    [](const ConvArguments& args) {
      dispatch_plain(args.dtype, [&](auto type) {
        using A = typename decltype(type)::type;
        convolve(args, Direction::forward, static_cast<const A*>(args.input), static_cast<const A*>(args.bias));
      });
    },
    [](const ConvArguments& args) {
      dispatch_plain(args.dtype, [&](auto type) {
        using A = typename decltype(type)::type;
        convolve(args, Direction::backward_input, static_cast<const A*>(args.grad_output),
                 static_cast<const A*>(nullptr));
      });
    },
    [](const ConvArguments& args) {
      dispatch_plain(args.dtype, [&](auto type) { backward_weight<typename decltype(type)::type>(args); });
    },
};

}  // namespace convext::cuda
