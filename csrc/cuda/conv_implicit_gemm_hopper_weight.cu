// The gradient of the weight of implicit_gemm on Hopper (conv_implicit_gemm_hopper.cu):
//
//   dw[k, tap c] = sum over pixel of dy[pixel, k] * x[corner(pixel) + offset(tap), c]
//
// Both operands lie with what is summed over, the pixels, as rows: wgmma takes them so, MN-major. A tile is 64 or 128
// output channels times two or four boxes, a box being 64 channels of a tap: 128 x 256 where there is enough of both. A
// step brings 64 pixels, a copy of dy for 64 output channels and an im2col copy of x for a box. Blocks are as in the
// other directions, but each has one tile of one part of the pixels, and as many parts are made as fill the
// multiprocessors best. A second kernel adds the parts in order and brings them into the weight's own order. Traffic:
// dy once per tile of boxes, x once per tap and tile of output channels, parts written and read once in 32 bits.
#include "conv_implicit_gemm_hopper_loops.cuh"

#if defined(__CUDACC__)

namespace convext::cuda {
namespace {

template <typename T, typename Tiles>
__global__ __launch_bounds__(kHopperThreads, 1) void weight_kernel(const __grid_constant__ CUtensorMap dy,
                                                                   const __grid_constant__ CUtensorMap x,
                                                                   const WeightPlan plan, float* __restrict__ parts) {
#if defined(CONVEXT_SM90A)
  __shared__ uint64_t barriers[2 * Tiles::kStages];
  CONVEXT_DYNAMIC_SHARED(unsigned char, dynamic);
  const HopperEngine<Tiles> engine(barriers, dynamic, x, dy);
  const int consumer = consumer_index();
  if (consumer < kConsumers)
    multiply_weight_tile<T, Tiles>(engine, consumer, plan, parts);
  else if (threadIdx.x % 32 == 0)
    copy_weight_tile<Tiles>(engine, plan);
#else
  __trap();
#endif
}

template <typename T, typename Tiles>
void run_tiles(const ConvArguments& args, const WeightPlan& plan) {
  const ConvGeometry& g = args.geometry;
  const CUtensorMap dy =
      encode(tiled_map({g.group_outputs(), g.groups, g.batch * g.output_places()}, {kChunk, 1, kChunk}), args.dtype,
             args.grad_output);
  const CUtensorMap x = encode(im2col_map(g, g.batch, kChunk, kChunk), args.dtype, args.input);
  launch("conv_implicit_gemm_hopper_backward_weight", weight_kernel<T, Tiles>,
         grid_of(int64_t(plan.tiles()) * plan.parts), kHopperThreads, HopperEngine<Tiles>::kSharedBytes, args.stream,
         dy, x, plan, static_cast<float*>(args.workspace));
}

template <typename T>
void run(const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const WeightPlan plan(g, weight_tile_rows(g), weight_tile_boxes(g));
  if (plan.tile_rows == 1)
    plan.tile_boxes == 2 ? run_tiles<T, WeightTiles<1, 2>>(args, plan) : run_tiles<T, WeightTiles<1, 4>>(args, plan);
  else
    plan.tile_boxes == 2 ? run_tiles<T, WeightTiles<2, 2>>(args, plan) : run_tiles<T, WeightTiles<2, 4>>(args, plan);
  const WeightOrder order(g, Direction::forward);
  launch("conv_implicit_gemm_hopper_add_parts", join_weight_parts_kernel<T>, grid_of(ceil_div(plan.elements, kThreads)),
         kThreads, 0, args.stream, static_cast<const float*>(args.workspace), plan.elements, plan.parts, order,
         Divide(order.depth), Divide(order.taps), static_cast<T*>(args.output));
}

}  // namespace

void hopper_backward_weight(const ConvArguments& args) {
  if (args.dtype == DType::float16)
    run<Half>(args);
  else
    run<BFloat16>(args);
}

}  // namespace convext::cuda

#endif
