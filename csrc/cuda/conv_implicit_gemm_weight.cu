// The gradient of the weight as a matrix product over the places, without a column matrix:
//
//   dw[k, tap, c] = sum over n, o p q of dy[n, k, o p q] * x[n, c, source(o p q, tap)]
//
// Rows are k, columns are tap and channel, channels fastest in whole chunks, r is the place. A slice is a few places:
// chunks of channels of dy, and of x where each tap looks (implicit_gemm.cuh), so operands lie across
// (tile_product.cuh) and are turned on the way into fragments.
//
// The sum over the places of all images is long and the tiles are few: it is cut into parts, as many as fill the GPU,
// a block each, float32 in the workspace. A second kernel adds them in order, and puts k, c and tap in the weight's
// order. Traffic: dy once per column of tiles, x once per row of tiles and tap, from the second-level cache where it
// holds them; each part of the weight is written and read once.
#include "implicit_gemm.cuh"

namespace convext::cuda {
namespace {

constexpr int64_t kPartBytes = 64 << 20;  // of all parts, unless one has more

// Channels are those of one group.
struct Task {
  Lines lines;
  int images, groups, places, rows, columns, taps,
      reduced;                    // rows: k; columns: of all taps; reduced: places of all images
  Divide by_places, by_channels;  // channels in whole chunks
  int inputs;                     // channels of x
  Strides x, dy;
  int part_slices;
  int64_t part;  // stride of the parts
};

// Rows: neighbouring channels at a place of dy.
template <typename T, int kTile>
struct OutputLoader {
  using Loads = Share<T, kTile, false>;
  const Task& task;
  Channels<T> channels;
  int first;
  Chunk held[Loads::kLoads];

  __device__ __forceinline__ OutputLoader(const Task& task_, const Channels<T>& channels_, int first_)
      : task(task_), channels(channels_), first(first_) {}
  __device__ __forceinline__ void fetch(int slice, Chunk* to) {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i) {
      const int line = Loads::line(i, channels.whole), chunk = Loads::chunk(i, channels.whole);
      int place = slice * kSlice<T> + line, at = -1;
      if (place < task.reduced) {
        const int image = split(place, task.by_places);
        at = image * task.dy.image + place * task.dy.place;
      }
      channels.fetch(at, first + chunk * kChunk<T>, to + chunk_at<T, kTile, false>(line, chunk), held[i]);
    }
  }
  __device__ __forceinline__ void stash(Chunk* to) const {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i)
      channels.stash(to + chunk_at<T, kTile, false>(Loads::line(i, channels.whole), Loads::chunk(i, channels.whole)),
                     held[i]);
  }
};

// Neighbouring columns of the tile, in shared memory: where their tap looks, and their channel, or -1 past the last
// tap.
struct alignas(kChunkBytes) Column {
  Place32 tap;
  int channel;
};

// Columns: neighbouring channels at the place of x that a place sees through a tap.
template <typename T, int kTile>
struct InputLoader {
  using Loads = Share<T, kTile, false>;
  const Task& task;
  const Channels<T> channels;
  const Column* columns;  // in chunks
  Chunk held[Loads::kLoads];

  __device__ __forceinline__ InputLoader(const Task& task_, const Channels<T>& channels_, const Column* columns_)
      : task(task_), channels(channels_), columns(columns_) {}
  __device__ __forceinline__ void fetch(int slice, Chunk* to) {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i) {
      const int line = Loads::line(i, channels.whole), chunk = Loads::chunk(i, channels.whole);
      int place = slice * kSlice<T> + line, at = -1;
      const Column column = columns[chunk];
      if (place < task.reduced && column.channel >= 0) {
        const int image = split(place, task.by_places);
        at = task.lines.offset(task.lines.start(place), column.tap);
        if (at >= 0) at += image * task.x.image;
      }
      channels.fetch(at, column.channel, to + chunk_at<T, kTile, false>(line, chunk), held[i]);
    }
  }
  __device__ __forceinline__ void stash(Chunk* to) const {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i)
      channels.stash(to + chunk_at<T, kTile, false>(Loads::line(i, channels.whole), Loads::chunk(i, channels.whole)),
                     held[i]);
  }
};

template <typename T, bool kTensor, int kTile>
__global__ __launch_bounds__(kThreads, kBlocks<kTile>) void weight_kernel(const Task task, bool dy_whole, bool x_whole,
                                                                          const T* __restrict__ dy,
                                                                          const T* __restrict__ x,
                                                                          float* __restrict__ parts) {
  CONVEXT_DYNAMIC_SHARED(Chunk, shared);
  const int column_tiles = (task.columns - 1) / kTile + 1, row_tiles = (task.rows - 1) / kTile + 1;
  const int tile = blockIdx.x, first_column = tile % column_tiles * kTile;
  const int first_row = tile / column_tiles % row_tiles * kTile;
  const int group = tile / column_tiles / row_tiles % task.groups, part = tile / column_tiles / row_tiles / task.groups;

  Column* const chunks = reinterpret_cast<Column*>(shared + kStagedBytes<kTile> / kChunkBytes);
  if (int(threadIdx.x) < kTile / kChunk<T>) {
    int c = first_column + int(threadIdx.x) * kChunk<T>;
    const int tap = split(c, task.by_channels);
    const bool inside = tap < task.taps;
    chunks[threadIdx.x] = {task.lines.tap(inside ? tap : 0), inside ? c : -1};
  }
  __syncthreads();

  OutputLoader<T, kTile> rows(task, {dy + group * task.rows * task.dy.channel, task.rows, task.dy.channel, dy_whole},
                              first_row);
  InputLoader<T, kTile> columns(task, {x + group * task.inputs * task.x.channel, task.inputs, task.x.channel, x_whole},
                                chunks);
  const int slices = (task.reduced - 1) / kSlice<T> + 1, end = (part + 1) * task.part_slices;
  Product<T, kTensor, kTile, false, false> product;
  multiply_slices<kTile>(product, rows, columns, shared, part * task.part_slices, end < slices ? end : slices,
                         task.part_slices);

  float* const out = parts + part * task.part + int64_t(group) * task.rows * task.columns;
  hand_out<kTile, 4>(
      product, shared, false, true, [](int, int, float) {},
      [&](int row, int column, const float* sums) {  // columns come in chunks
        row += first_row, column += first_column;
        if (row < task.rows && column < task.columns)
          *reinterpret_cast<Four<float>*>(out + row * task.columns + column) =
              *reinterpret_cast<const Four<float>*>(sums);
      });
}

// dw = the parts of its sums, added in order.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void add_weight_parts_kernel(const float* __restrict__ parts, int count,
                                                                       int64_t part, int elements, Divide by_taps,
                                                                       Divide by_channels, int filled, bool flip,
                                                                       T* __restrict__ dw) {
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= elements) return;
  int tap = int(element), c = split(tap, by_taps);
  const int k = split(c, by_channels), taps = by_taps.divisor;
  const float* from = parts + (k * taps + (flip ? taps - 1 - tap : tap)) * filled + c;
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += from[i * part];
  dw[element] = from_accumulate<T>(sum);
}

struct Plan {
  int64_t filled, columns, images, pieces, slices, part_slices, parts, part;  // images at once; parts: of a piece
  bool large;

  Plan(const ConvGeometry& g, DType dtype) {
    filled = round_up(g.group_inputs(), chunk_of(dtype)), columns = filled * g.taps();
    const int64_t x = g.in_channels * g.input_places(), dy = g.out_channels * g.output_places();
    images = images_at_once(g.batch, x > dy ? x : dy), pieces = ceil_div(g.batch, images);
    slices = ceil_div(images * g.output_places(), slice_of(dtype));
    part = g.out_channels * columns;
    int64_t most = kPartBytes / (part * int64_t(sizeof(float)));
    if (pieces > 1) most = 1;
    if (most > slices / kShortestSegment) most = slices / kShortestSegment;
    if (most < 1) most = 1;
    const int64_t large_tiles = tiles_of(g.group_outputs(), columns, g.groups, kLargeTile);
    large = g.group_outputs() > kSmallTile && columns > kSmallTile && large_tiles * most >= kEnoughBlocks;
    parts = kEnoughBlocks / (large ? large_tiles : tiles_of(g.group_outputs(), columns, g.groups, kSmallTile));
    if (parts > most) parts = most;
    if (parts < 1) parts = 1;
    part_slices = ceil_div(slices, parts), parts = ceil_div(slices, part_slices);
  }
};

template <typename T, bool kTensor>
void run(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const Plan plan(g, args.dtype);
  float* const parts = static_cast<float*>(args.workspace);
  const Strides x = input_strides(g), dy = output_strides(g);
  for (int64_t piece = 0; piece < plan.pieces; ++piece) {
    const int64_t n = piece * plan.images, images = g.batch - n < plan.images ? g.batch - n : plan.images;
    const T* from = static_cast<const T*>(args.input) + n * x.image;
    const T* grad = static_cast<const T*>(args.grad_output) + n * dy.image;
    const Task task{forward_lines(g),
                    int(images),
                    int(g.groups),
                    int(g.output_places()),
                    int(g.group_outputs()),
                    int(plan.columns),
                    int(g.taps()),
                    int(images * g.output_places()),
                    Divide(g.output_places()),
                    Divide(plan.filled),
                    int(g.group_inputs()),
                    x,
                    dy,
                    int(plan.part_slices),
                    plan.part};
    const int tile = plan.large ? kLargeTile : kSmallTile;
    const size_t bytes =
        (plan.large ? kStagedBytes<kLargeTile> : kStagedBytes<kSmallTile>)+tile / kChunk<T> * sizeof(Column);
    const int64_t blocks = tiles_of(g.group_outputs(), plan.columns, g.groups, tile) * plan.parts;
    launch("conv_implicit_gemm_backward_weight",
           plan.large ? weight_kernel<T, kTensor, kLargeTile> : weight_kernel<T, kTensor, kSmallTile>, grid_of(blocks),
           kThreads, bytes, args.stream, task, copied_whole<T>(grad, dy.channel, g.group_outputs()),
           copied_whole<T>(from, x.channel, g.group_inputs()), grad, from, parts + piece * plan.parts * plan.part);
  }
  launch("conv_implicit_gemm_add_weight_parts", add_weight_parts_kernel<T>,
         grid_of(ceil_div(g.weight_elements(), kThreads)), kThreads, 0, args.stream, parts,
         int(plan.pieces * plan.parts), plan.part, int(g.weight_elements()), Divide(g.taps()), Divide(g.group_inputs()),
         int(plan.filled), g.flip_kernel, static_cast<T*>(args.output));
}

}  // namespace

int64_t conv_implicit_gemm_weight_workspace(const ConvGeometry& g, DType dtype) {
  const Plan plan(g, dtype);
  return plan.pieces * plan.parts * plan.part * int64_t(sizeof(float));
}

void conv_implicit_gemm_backward_weight(const ConvArguments& args) {
  switch (args.dtype) {
    case DType::float16: return run<Half, true>(args);
    case DType::bfloat16: return run<BFloat16, true>(args);
    default: return args.geometry.tf32 ? run<float, true>(args) : run<float, false>(args);
  }
}

}  // namespace convext::cuda
