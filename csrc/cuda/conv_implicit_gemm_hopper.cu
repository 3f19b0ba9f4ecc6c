// implicit_gemm on Hopper: tensor cores by wgmma, fed by the bulk copy engine, whose im2col mode is the column matrix
// that im2col writes out: it never exists, not even in registers. float16 and bfloat16, channels_last, zero padding,
// one to three dimensions, strides up to 8.
//
//   forward         y[pixel, k] = sum over tap, c of x[corner(pixel) + offset(tap), c] * w[k, tap, c]
//   backward_input  the same of dy, with the weight's channels exchanged and its taps reversed; stride 1
//   backward_weight conv_implicit_gemm_hopper_weight.cu
//
// A small kernel brings the weight into the order k, tap, c in the workspace (1x1 kernels have it already). Then
// blocks, as many as run at once, take one tile after the other: 128 or 256 pixels, across rows and images, times 64 or
// 128 output channels. Of a block's nine warps, one asks for copies, 64 channels of a tap at a time, into a ring of
// stages; the others, two warpgroups, multiply 64 pixels at a time, a stage's products under way while the last stage
// is given back. With 128 pixels two blocks share a multiprocessor, one storing while the other multiplies; with 256,
// where there are enough, a row of weights is read for twice as many pixels. Traffic: x from the level 2 cache once for
// each tap and tile of output channels, the weight once for each tile of pixels, y written once, 16 bytes a lane.
//
// Every sum is over tap, then c, whatever the tile: its bits do not depend on the batch. Channels that are no multiple
// of 64 are filled up with zeros by the engine; where a row would reach into the next group's, the call is not taken.
// What the instructions demand is in hopper.cuh and tensor_map.cuh, index arithmetic in conv_implicit_gemm_hopper.cuh,
// what threads do in conv_implicit_gemm_hopper_loops.cuh.
#include <atomic>
#include <stdexcept>

#include "conv_implicit_gemm_hopper_loops.cuh"

namespace convext::cuda {

#if defined(__CUDACC__)
namespace {

template <typename T, typename Tiles>
__global__ __launch_bounds__(kHopperThreads,
                             Tiles::kBlocks) void pixels_kernel(const __grid_constant__ CUtensorMap x,
                                                                const __grid_constant__ CUtensorMap weight,
                                                                const PixelPlan plan, const T* __restrict__ bias,
                                                                T* __restrict__ y) {
#if defined(CONVEXT_SM90A)
  __shared__ uint64_t barriers[2 * Tiles::kStages];
  CONVEXT_DYNAMIC_SHARED(unsigned char, dynamic);
  const HopperEngine<Tiles> engine(barriers, dynamic, x, weight);
  const int consumer = consumer_index();
  if (consumer < kConsumers)
    multiply_pixel_tiles<T, Tiles>(engine, consumer, plan, bias, y);
  else if (threadIdx.x % 32 == 0)
    copy_pixel_tiles<Tiles>(engine, plan);
#else
  __trap();
#endif
}

// Tiles of 256 pixels are worth their while if they are two rounds.
constexpr int kEnoughLargeTiles = 2 * kMultiprocessors;

int multiprocessors() {
  int device = 0, count = kMultiprocessors;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <typename T, typename Tiles>
void run_tiles(const char* name, const ConvArguments& args, const ConvGeometry& f, int64_t images, const T* x,
               const T* weight, const T* bias, T* y) {
  const PixelPlan plan(f, images, Tiles::kPixels, Tiles::kOutputs);
  const CUtensorMap x_map = encode(im2col_map(f, images, kChunk, Tiles::kPixels), args.dtype, x);
  const CUtensorMap weight_map =
      encode(tiled_map({f.group_inputs(), f.taps(), f.group_outputs(), f.groups}, {kChunk, 1, Tiles::kOutputs, 1}),
             args.dtype, weight);
  const int blocks = multiprocessors() * Tiles::kBlocks;
  launch(name, pixels_kernel<T, Tiles>, grid_of(blocks < plan.tiles ? blocks : plan.tiles), kHopperThreads,
         HopperEngine<Tiles>::kSharedBytes, args.stream, x_map, weight_map, plan, bias, y);
}

// The convolution f of x, whose weight is `order` of the call's.
template <typename T>
void run_pixels(const char* name, const ConvArguments& args, const ConvGeometry& f, const WeightOrder& order,
                const void* input, const void* bias, bool reorder) {
  const T* weight = static_cast<const T*>(args.weight);
  if (reorder) {
    T* reordered = static_cast<T*>(args.workspace);
    launch("conv_implicit_gemm_reorder", reorder_weight_kernel<T>,
           grid_of(ceil_div(int64_t(order.rows) * order.depth, kThreads)), kThreads, 0, args.stream, weight, order,
           Divide(order.depth), reordered);
    weight = reordered;
  }
  const int64_t at_once = images_at_once(f.batch, f.output_places());
  for (int64_t n = 0; n < f.batch; n += at_once) {
    const int64_t images = f.batch - n < at_once ? f.batch - n : at_once;
    const T *x = static_cast<const T*>(input) + n * f.in_channels * f.input_places(), *b = static_cast<const T*>(bias);
    T* y = static_cast<T*>(args.output) + n * f.out_channels * f.output_places();
    const int64_t large = ceil_div(images * f.output_places(), 256) * ceil_div(f.group_outputs(), 128) * f.groups;
    if (f.group_outputs() <= 64)
      run_tiles<T, PixelTiles<128, 64>>(name, args, f, images, x, weight, b, y);
    else if (large < kEnoughLargeTiles)
      run_tiles<T, PixelTiles<128, 128>>(name, args, f, images, x, weight, b, y);
    else
      run_tiles<T, PixelTiles<256, 128>>(name, args, f, images, x, weight, b, y);
  }
}

// Of the current device: whether it is a Hopper, and what was loaded is machine code for sm_90a. Bodies alone have
// barriers in shared memory; traps have none.
bool device_suits() {
  constexpr int kDevices = 64;
  static std::atomic<signed char> known[kDevices];  // 0: not yet, 1: yes, -1: no
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  if (known[device] == 0) {
    int major = 0, minor = 0;
    cudaFuncAttributes attributes = {};
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    const bool suits = major == 9 && minor == 0 &&
                       cudaFuncGetAttributes(&attributes, pixels_kernel<Half, PixelTiles<128, 64>>) == cudaSuccess &&
                       attributes.sharedSizeBytes > 0;
    cudaGetLastError();  // forgets a refusal
    known[device] = suits ? 1 : -1;
  }
  return known[device] > 0;
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace
#endif

namespace {
// 1x1 kernels' weights are in order already.
bool reorders(const ConvGeometry& g, Direction direction) {
  return direction == Direction::backward_input || g.taps() > 1;
}
}  // namespace

int64_t implicit_gemm_hopper_workspace_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  if (!hopper_fits(g, dtype, direction)) return 0;
  if (direction == Direction::backward_weight)
    return WeightPlan(g, weight_tile_rows(g), weight_tile_boxes(g)).parts * g.weight_elements() * 4;
  return reorders(g, direction) ? g.weight_elements() * 2 : 0;
}

#if defined(__CUDACC__)

bool implicit_gemm_hopper_suits(const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  if (!hopper_fits(g, args.dtype, direction) || !device_suits()) return false;
  switch (direction) {
    case Direction::forward:
      return aligned(args.input) && aligned(args.output) && (reorders(g, direction) || aligned(args.weight));
    case Direction::backward_input: return aligned(args.grad_output) && aligned(args.output);
    default: return aligned(args.grad_output) && aligned(args.input);
  }
}

void implicit_gemm_hopper(const ConvArguments& args, Direction direction) {
  if (direction == Direction::backward_weight) return hopper_backward_weight(args);
  const ConvGeometry& g = args.geometry;
  const WeightOrder order(g, direction);
  const auto run = [&](auto type) {
    using T = typename decltype(type)::type;
    if (direction == Direction::forward)
      run_pixels<T>("conv_implicit_gemm_hopper_forward", args, g, order, args.input, args.bias, reorders(g, direction));
    else
      run_pixels<T>("conv_implicit_gemm_hopper_backward_input", args, input_gradient_as_forward(g), order,
                    args.grad_output, nullptr, reorders(g, direction));
  };
  args.dtype == DType::float16 ? run(Type<Half>()) : run(Type<BFloat16>());
}

#else

bool implicit_gemm_hopper_suits(const ConvArguments&, Direction) { return false; }
void implicit_gemm_hopper(const ConvArguments&, Direction) { throw std::logic_error("not compiled by nvcc"); }

#endif

}  // namespace convext::cuda
