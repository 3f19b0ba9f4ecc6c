// Convolution as a matrix product whose left matrix is never made: im2col (conv_im2col.cu) without the panel. A block's
// loader finds, tap by tap, where the places of its tile read, padding of every mode resolved on the way, and brings
// slices of channels from there to shared memory (tile_product.cuh):
//
//   forward         y[n, k, o p q]  = sum over tap, c of x[n, c, source(o p q, tap)] * w[k, c, tap]   (+ bias[k])
//   backward_input  dx[n, c, d h w] = sum over tap, k of dy[n, k, the place that sees d h w by tap] * w[k, c, tap]
//
// Rows are places of all images, columns the channels made, r is tap and channel, channels fastest, in whole chunks.
// The gradient of the input is the same sum: the places d h w of one remainder by the stride see outputs along straight
// lines, through every stride-th tap, so each remainder (phase) is a launch with its own taps. Padding that shows
// places again: the gradient of the padded input goes to the workspace in float32, a few images at a time, and is
// folded.
//
// The weight passes through the workspace: [phase, group, column, tap, channel], channels filled up to chunks, so that
// its loads are whole. Those of images are where channels_last has 8 (float32: 4) channels per group or a multiple; all
// else is collected element by element, along places where those are contiguous. Traffic: images once per tap and
// column of tiles, mostly from the second-level cache; the weight once per row of tiles.
//
// Where one image makes few tiles of a long sum, the sum is cut into segments, a number that one image's geometry
// fixes. One block adds them up in registers or, where the whole batch has few tiles as well, several make one each and
// add_parts_kernel adds them in the same order: the same bits. Depthwise convolutions fill an eighth of a chunk: direct
// serves those. Refused: see unsupported.
#include "conv_implicit_gemm.cuh"
#include "implicit_gemm_plan.cuh"

namespace convext::cuda {
namespace {

// A launch's part of the convolution. Channels are those of one group.
struct Task {
  Lines lines;
  int images, groups, places, columns, taps, reduced;                           // reduced: r's
  Divide by_places, by_read_channels;                                           // channels in whole chunks
  int read_channels, read_image, read_channel;                                  // number, strides
  int made_first[kMaxSpatial], made_step[kMaxSpatial], made_size[kMaxSpatial];  // of the places made
  Divide by_made_height, by_made_width;
  Strides made;
  bool made_whole;
  int segment, parts;  // slices in a segment; segments that have blocks of their own, or 1
  int64_t part;        // stride of the parts

  // The place made, of all.
  __device__ __forceinline__ int made_place(int place) const {
    int h = split(place, by_made_width);
    const int d = split(h, by_made_height);
    return ((made_first[0] + made_step[0] * d) * made_size[1] + made_first[1] + made_step[1] * h) * made_size[2] +
           made_first[2] + made_step[2] * place;
  }
};

// A row of the tile, in shared memory: what its place reads first of an image, and that image's offset, or -1 past the
// last place.
struct alignas(kChunkBytes) Row {
  Place32 start;
  int image;
};

template <typename T, int kTile>
struct PlaceLoader {
  using Loads = Share<T, kTile, true>;
  const Task& task;
  const Channels<T> channels;
  const Row* rows;
  int tap[Loads::kLoads], at[Loads::kLoads];  // the offset of what is read through a tap
  Chunk held[Loads::kLoads];

  __device__ __forceinline__ PlaceLoader(const Task& task_, const Channels<T>& channels_, const Row* rows_)
      : task(task_), channels(channels_), rows(rows_) {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i) tap[i] = -1;
  }
  __device__ __forceinline__ void fetch(int slice, Chunk* to) {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i) {
      const int line = Loads::line(i, channels.whole), chunk = Loads::chunk(i, channels.whole);
      int c = slice * kSlice<T> + chunk * kChunk<T>;
      const int now = split(c, task.by_read_channels);
      if (now != tap[i]) {
        tap[i] = now;
        const Row row = rows[line];
        at[i] = row.image >= 0 && now < task.taps ? task.lines.offset(row.start, task.lines.tap(now)) : -1;
        if (at[i] >= 0) at[i] += row.image;
      }
      channels.fetch(at[i], c, to + chunk_at<T, kTile, true>(line, chunk), held[i]);
    }
  }
  __device__ __forceinline__ void stash(Chunk* to) const {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i)
      channels.stash(to + chunk_at<T, kTile, true>(Loads::line(i, channels.whole), Loads::chunk(i, channels.whole)),
                     held[i]);
  }
};

template <typename T, int kTile>
struct WeightLoader {
  using Loads = Share<T, kTile, true>;
  const T* data;
  int reduced, at[Loads::kLoads];

  __device__ __forceinline__ WeightLoader(const Task& task, const T* weight, int group, int first)
      : data(weight + group * task.columns * task.reduced), reduced(task.reduced) {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i) {
      const int column = first + Loads::line(i, true);
      at[i] = column < task.columns ? column * reduced : -1;
    }
  }
  __device__ __forceinline__ void fetch(int slice, Chunk* to) const {
#pragma unroll
    for (int i = 0; i < Loads::kLoads; ++i) {
      const int line = Loads::line(i, true), chunk = Loads::chunk(i, true), r = slice * kSlice<T> + chunk * kChunk<T>;
      const bool inside = at[i] >= 0 && r < reduced;
      copy_async<kChunkBytes>(to + chunk_at<T, kTile, true>(line, chunk), data + (inside ? at[i] + r : 0), inside);
    }
  }
  __device__ __forceinline__ void stash(Chunk*) const {}
};

template <typename T, bool kTensor, int kTile, bool kSegments>
__global__ __launch_bounds__(kThreads,
                             kBlocks<kTile>) void places_kernel(const Task task, bool whole, const T* __restrict__ read,
                                                                const T* __restrict__ weight,
                                                                const T* __restrict__ bias, T* __restrict__ out,
                                                                float* __restrict__ parts) {
  CONVEXT_DYNAMIC_SHARED(Chunk, shared);
  Row* const rows = reinterpret_cast<Row*>(shared + kStagedBytes<kTile> / kChunkBytes);
  int* const made_at = reinterpret_cast<int*>(rows + kTile);

  const int column_tiles = (task.columns - 1) / kTile + 1, row_tiles = (task.images * task.places - 1) / kTile + 1;
  const int tile = blockIdx.x, first_column = tile % column_tiles * kTile;
  const int first_row = tile / column_tiles % row_tiles * kTile;
  const int group = tile / column_tiles / row_tiles % task.groups, part = tile / column_tiles / row_tiles / task.groups;
  if (int(threadIdx.x) < kTile) {
    const int row = first_row + int(threadIdx.x);
    const bool inside = row < task.images * task.places;
    int place = inside ? row : 0;
    const int image = split(place, task.by_places);
    rows[threadIdx.x] = {task.lines.start(place), inside ? image * task.read_image : -1};
    made_at[threadIdx.x] = inside ? image * task.made.image + task.made_place(place) * task.made.place : -1;
  }
  __syncthreads();

  const Channels<T> channels = {read + group * task.read_channels * task.read_channel, task.read_channels,
                                task.read_channel, whole};
  PlaceLoader<T, kTile> places(task, channels, rows);
  WeightLoader<T, kTile> weights(task, weight, group, first_column);
  const int slices = (task.reduced - 1) / kSlice<T> + 1, end = (part + 1) * task.segment;
  Product<T, kTensor, kTile, true, kSegments> product;
  multiply_slices<kTile>(product, places, weights, shared, part * task.segment,
                         task.parts > 1 && end < slices ? end : slices, task.segment);

  float* const part_out = parts == nullptr ? nullptr : parts + part * task.part;
  const auto offset = [&](int row, int column) {
    return made_at[row] < 0 || first_column + column >= task.columns
               ? -1
               : made_at[row] + (group * task.columns + first_column + column) * task.made.channel;
  };
  const auto result = [&](int column, float sum) {
    const int channel = group * task.columns + first_column + column;
    return from_accumulate<T>(bias == nullptr ? sum : sum + to_accumulate(bias[channel]));
  };
  hand_out<kTile, kChunk<T>>(
      product, shared, task.made.place == 1, task.made_whole,
      [&](int row, int column, float sum) {
        const int at = offset(row, column);
        if (at < 0) return;
        if (part_out != nullptr)
          part_out[at] = sum;
        else
          out[at] = result(column, sum);
      },
      [&](int row, int column, const float* sums) {
        const int at = offset(row, column);
        if (at < 0) return;
        if (part_out != nullptr) {
#pragma unroll
          for (int i = 0; i < kChunk<T>; i += 4)
            *reinterpret_cast<Four<float>*>(part_out + at + i) = *reinterpret_cast<const Four<float>*>(sums + i);
        } else {
          T numbers[kChunk<T>];
#pragma unroll
          for (int i = 0; i < kChunk<T>; ++i) numbers[i] = result(column + i, sums[i]);
          Chunk chunk;
          memcpy(&chunk, numbers, kChunkBytes);
          *reinterpret_cast<Chunk*>(out + at) = chunk;
        }
      });
}

// The taps of a launch and the strides of the weight, by whether rows of the result are its k or its c.
struct Order {
  int columns, channels, filled;  // filled: channels in whole chunks
  int tap_first[kMaxSpatial], tap_step[kMaxSpatial], kernel[kMaxSpatial];
  Divide by_filled, by_taps, by_columns, by_tap_height, by_tap_width;
  int group_stride, column_stride, channel_stride;
  bool flip;
};

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void order_weight_kernel(const Order order, const T* __restrict__ weight,
                                                                   int elements, T* __restrict__ out) {
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= elements) return;
  int c = int(element), j = split(c, order.by_filled), column = split(j, order.by_taps);
  const int group = split(column, order.by_columns);
  int r = split(j, order.by_tap_width);
  const int t = split(r, order.by_tap_height);
  const int tap =
      ((order.tap_first[0] + t * order.tap_step[0]) * order.kernel[1] + order.tap_first[1] + r * order.tap_step[1]) *
          order.kernel[2] +
      order.tap_first[2] + j * order.tap_step[2];
  const int taps = order.kernel[0] * order.kernel[1] * order.kernel[2], stored = order.flip ? taps - 1 - tap : tap;
  const int at = group * order.group_stride + column * order.column_stride + c * order.channel_stride + stored;
  out[element] = c < order.channels ? weight[at] : from_accumulate<T>(0);
}

// out = the parts of its sums, added in order (+ bias).
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void add_parts_kernel(const float* __restrict__ parts, int count,
                                                                int64_t part, int elements, Divide by_channels,
                                                                Divide by_places, bool contiguous,
                                                                const T* __restrict__ bias, T* __restrict__ out) {
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= elements) return;
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += parts[element + i * part];
  const int at = int(element);
  const int channel = by_channels.remainder(contiguous ? by_places.quotient(at) : at);
  out[element] = from_accumulate<T>(bias == nullptr ? sum : sum + to_accumulate(bias[channel]));
}

// dx = the gradient of the padded input (in parts, as above), summed over where each place is shown.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void fold_kernel(const Window window, const Strides made,
                                                           const Strides padded, const float* __restrict__ parts,
                                                           int count, int64_t part, int elements, Divide by_channels,
                                                           Divide by_places, T* __restrict__ dx) {
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= elements) return;
  int at = int(element), c, n;
  if (made.place == 1) {
    c = split(at, by_places), n = split(c, by_channels);
  } else {
    c = at, at = split(c, by_channels), n = split(at, by_places);
  }
  const Place32 in = window.input_place(at);
  const float* from = parts + n * padded.image + c * padded.channel;
  const int height = window.in[1] + window.before[1] + window.after[1];
  const int width = window.in[2] + window.before[2] + window.after[2];
  const int shown = window.shown(in);
  float sum = 0;
  for (int m = 0; m < shown; ++m) {
    const Place32 p = window.shown_at(in, m);
    const int place = ((p.d + window.before[0]) * height + p.h + window.before[1]) * width + p.w + window.before[2];
    float here = 0;
    for (int i = 0; i < count; ++i) here += from[i * part + place * padded.place];
    sum += here;
  }
  dx[element] = from_accumulate<T>(sum);
}

// Rounded to TF32, float32 goes through the tensor cores.
bool uses_tensor_cores(const ConvGeometry& g, DType dtype) { return dtype != DType::float32 || g.tf32; }

template <typename T>
void order_weight(const ConvArguments& args, const PlacesPlan& plan, const Phase& phase, bool backward, T* out) {
  const ConvGeometry& g = plan.geometry;
  const int64_t row = g.group_inputs() * g.taps(), elements = g.groups * plan.columns * phase.all_taps() * plan.filled;
  if (elements == 0) return;
  Order order{};
  order.columns = int(plan.columns), order.channels = int(plan.channels), order.filled = int(plan.filled);
  for (int i = 0; i < kMaxSpatial; ++i) {
    order.tap_first[i] = int(phase.tap_first[i]), order.tap_step[i] = int(phase.tap_step[i]);
    order.kernel[i] = int(g.kernel[i]);
  }
  order.by_filled = Divide(plan.filled), order.by_taps = Divide(phase.all_taps());
  order.by_columns = Divide(plan.columns);
  order.by_tap_height = phase.lines.by_tap_height, order.by_tap_width = phase.lines.by_tap_width;
  order.group_stride = int(g.group_outputs() * row);
  order.column_stride = int(backward ? g.taps() : row), order.channel_stride = int(backward ? row : g.taps());
  order.flip = g.flip_kernel;
  launch("conv_implicit_gemm_weight_order", order_weight_kernel<T>, grid_of(ceil_div(elements, kThreads)), kThreads, 0,
         args.stream, order, static_cast<const T*>(args.weight), int(elements), out);
}

template <typename T, bool kTensor>
void run(const char* name, const ConvArguments& args, Direction direction, const void* read_data) {
  const PlacesPlan plan(args.geometry, args.dtype, direction);
  const ConvGeometry& g = plan.geometry;
  const bool backward = direction == Direction::backward_input;
  const T* bias = backward ? nullptr : static_cast<const T*>(args.bias);
  T* const weight = static_cast<T*>(args.workspace);
  float* const parts =
      plan.part_bytes == 0 ? nullptr : reinterpret_cast<float*>(static_cast<char*>(args.workspace) + plan.weight_bytes);
  const Strides read = backward ? output_strides(g) : input_strides(g);
  const Strides made = backward ? input_strides(g) : output_strides(g);
  const int64_t made_channels = plan.columns * g.groups,
                image = made_channels * (backward ? args.geometry.input_places() : g.output_places());

  T* ordered = weight;
  for (const Phase& phase : plan.phases) {
    order_weight(args, plan, phase, backward, ordered);
    ordered += g.groups * plan.columns * phase.all_taps() * plan.filled;
  }
  for (int64_t n = 0; n < g.batch; n += plan.images) {
    const int64_t images = g.batch - n < plan.images ? g.batch - n : plan.images;
    const T* from = static_cast<const T*>(read_data) + n * read.image;
    T* const out = static_cast<T*>(args.output) + n * image;
    const T* phase_weight = weight;
    for (const Phase& phase : plan.phases) {
      Task task{phase.lines,
                int(images),
                int(g.groups),
                int(phase.places()),
                int(plan.columns),
                int(phase.all_taps()),
                int(phase.all_taps() * plan.filled),
                Divide(phase.places()),
                Divide(plan.filled),
                int(plan.channels),
                read.image,
                read.channel,
                {},
                {},
                {},
                phase.lines.by_height,
                phase.lines.by_width,
                made,
                copied_whole<T>(parts != nullptr ? nullptr : out, made.channel, plan.columns),
                int(plan.segment),
                int(plan.parts),
                plan.images * plan.image_elements};
      for (int i = 0; i < kMaxSpatial; ++i) {
        task.made_first[i] = int(phase.made_first[i]), task.made_step[i] = int(phase.made_step[i]);
        task.made_size[i] = int(backward ? g.input[i] : g.output[i]);
      }
      const bool large = plan.large(phase), segments = plan.segments > 1,
                 whole = copied_whole<T>(from, read.channel, plan.channels);
      const int tile = large ? kLargeTile : kSmallTile;
      const size_t bytes =
          (large ? kStagedBytes<kLargeTile> : kStagedBytes<kSmallTile>)+tile * (sizeof(Row) + sizeof(int));
      const int64_t blocks = tiles_of(images * phase.places(), plan.columns, g.groups, tile) * plan.parts;
      const auto kernel = !large     ? places_kernel<T, kTensor, kSmallTile, true>
                          : segments ? places_kernel<T, kTensor, kLargeTile, true>
                                     : places_kernel<T, kTensor, kLargeTile, false>;
      launch(name, kernel, grid_of(blocks), kThreads, bytes, args.stream, task, whole, from, phase_weight, bias, out,
             parts);
      phase_weight += g.groups * plan.columns * phase.all_taps() * plan.filled;
    }
    if (parts == nullptr) continue;
    const int64_t elements = images * image, places = image / made_channels, part = plan.images * plan.image_elements;
    const dim3 grid = grid_of(ceil_div(elements, kThreads));
    if (plan.fold)
      launch("conv_implicit_gemm_fold", fold_kernel<T>, grid, kThreads, 0, args.stream, Window(args.geometry),
             input_strides(args.geometry), made, parts, int(plan.parts), part, int(elements), Divide(made_channels),
             Divide(places), out);
    else
      launch("conv_implicit_gemm_add_parts", add_parts_kernel<T>, grid, kThreads, 0, args.stream, parts,
             int(plan.parts), part, int(elements), Divide(made_channels), Divide(places),
             g.layout == Layout::contiguous, bias, out);
  }
}

template <Direction direction>
void dispatch(const char* name, const ConvArguments& args, const void* read) {
  switch (args.dtype) {
    case DType::float16: return run<Half, true>(name, args, direction, read);
    case DType::bfloat16: return run<BFloat16, true>(name, args, direction, read);
    default:
      return uses_tensor_cores(args.geometry, args.dtype) ? run<float, true>(name, args, direction, read)
                                                          : run<float, false>(name, args, direction, read);
  }
}

// The variant for one architecture is asked first.
void forward(const ConvArguments& args) {
  if (implicit_gemm_hopper_suits(args, Direction::forward)) return implicit_gemm_hopper(args, Direction::forward);
  dispatch<Direction::forward>("conv_implicit_gemm_forward", args, args.input);
}
void backward_input(const ConvArguments& args) {
  if (implicit_gemm_hopper_suits(args, Direction::backward_input))
    return implicit_gemm_hopper(args, Direction::backward_input);
  dispatch<Direction::backward_input>("conv_implicit_gemm_backward_input", args, args.grad_output);
}
void backward_weight(const ConvArguments& args) {
  if (implicit_gemm_hopper_suits(args, Direction::backward_weight))
    return implicit_gemm_hopper(args, Direction::backward_weight);
  conv_implicit_gemm_backward_weight(args);
}

const char* unsupported(const ConvGeometry& g, DType dtype, Direction direction) {
  if (dtype == DType::float64) return "float64 is not multiplied by tensor cores";
  if (const char* reason = too_large(g)) return reason;
  const int64_t chunk = chunk_of(dtype);
  const int64_t inputs = direction == Direction::backward_input ? g.group_inputs() : round_up(g.group_inputs(), chunk);
  const int64_t outputs =
      direction == Direction::backward_input ? round_up(g.group_outputs(), chunk) : g.group_outputs();
  if (g.groups * inputs * outputs * g.taps() > kMaxElements)
    return "the weight, filled up to whole chunks of channels, has 2^31 elements or more";
  if (direction != Direction::backward_input) return nullptr;
  const ConvGeometry padded = padded_geometry(g);
  if (folds(g, direction) && g.in_channels * padded.input_places() > kMaxElements)
    return "a padded image has 2^31 elements or more";
  if (phase_count(folds(g, direction) ? padded : g) > kMostPhases)
    return "places have more than 64 remainders by the stride, and each is a launch";
  return nullptr;
}

int64_t portable_workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (direction == Direction::backward_weight) return conv_implicit_gemm_weight_workspace(g, dtype);
  const PlacesPlan plan(g, dtype, direction);
  return plan.weight_bytes + plan.part_bytes;
}

// Which of the two runs depends on the device and the pointers, which are not known here.
int64_t workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  const int64_t portable = portable_workspace_bytes(g, dtype, direction);
  const int64_t hopper = implicit_gemm_hopper_workspace_bytes(g, dtype, direction);
  return hopper > portable ? hopper : portable;
}

}  // namespace

const ConvAlgorithm conv_implicit_gemm = {
    "implicit_gemm", unsupported, workspace_bytes, forward, backward_input, backward_weight,
};

}  // namespace convext::cuda
