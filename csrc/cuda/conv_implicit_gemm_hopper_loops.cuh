// What the threads of implicit_gemm's Hopper kernels do, but for the instructions themselves: those are the engine's,
// which on the device is below, and in the tests on the CPU what the PTX ISA says of them
// (tests/emulator/check_hopper.cpp).
//
// A block is nine warps. Two warpgroups multiply, 64 rows at a time, sums in registers: 64 or 128 of them a thread, and
// so few other numbers that no registers need to be moved between warps. One thread of the ninth warp asks for copies.
#pragma once
#include <cstring>

#include "conv_implicit_gemm_hopper.cuh"
#include "launch.cuh"

namespace convext::cuda {

template <typename Tiles, typename Engine>
__device__ __forceinline__ void copy_pixel_tiles(const Engine& engine, const PixelPlan& plan) {
  Ring<Tiles::kStages> ring;
  for (int i = int(blockIdx.x); i < plan.tiles; i += int(gridDim.x)) {
    const PixelTile tile = plan.tile(i);
    const Place4 corner = plan.corners.corner(tile.pixel);
    for (int s = 0; s < plan.steps; ++s, ring.advance()) {
      const ChunkOfTap at = plan.step(s);
      engine.acquire(ring);
      engine.copy_im2col(ring.stage, 0, plan.corners.rank, tile.group * plan.channels + at.chunk * kChunk, corner,
                         plan.corners.offset(at.tap));
      engine.copy_tile(ring.stage, Tiles::kInputBytes, at.chunk * kChunk, at.tap, tile.output, tile.group);
    }
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float a, float b) {
  const T pair[2] = {from_accumulate<T>(a), from_accumulate<T>(b)};
  uint32_t word;
  memcpy(&word, pair, sizeof(word));
  return word;
}

// Stores 64 pixels: of four blocks of 8 output channels at a time, each lane of four ends with one.
template <typename T, int kSums, typename Engine>
__device__ __forceinline__ void store_pixels(const Engine& engine, const PixelPlan& plan, const PixelTile& tile,
                                             int first, const T* bias, T* y, const float (&sums)[kSums]) {
  const int warp = int(threadIdx.x) % kWarpgroup / 32, lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < kSums / 4; j += 4) {
    float start[4][2] = {};
    if (bias != nullptr) {
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const int output = tile.output + (j + u) * 8 + fragment_column(lane);
        if (output >= plan.outputs) continue;
        start[u][0] = to_accumulate(bias[tile.group * plan.outputs + output]);
        start[u][1] = to_accumulate(bias[tile.group * plan.outputs + output + 1]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Four<uint32_t> word;
      uint32_t sent[2];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const float* sum = &sums[(j + u) * 4 + half * 2];
        word.v[u] = pack<T>(start[u][0] + sum[0], start[u][1] + sum[1]);
      }
      quad_send<1>(word.v, lane, sent);
      for (uint32_t& i : sent) i = engine.exchange(i, 1);
      quad_take<1>(word.v, lane, sent);
      quad_send<2>(word.v, lane, sent);
      for (uint32_t& i : sent) i = engine.exchange(i, 2);
      quad_take<2>(word.v, lane, sent);
      const int64_t at = plan.position(tile, first + fragment_row(warp, lane, half), j + lane % 4);
      if (at >= 0) *reinterpret_cast<Four<uint32_t>*>(y + at) = word;
    }
  }
}

template <typename T, typename Tiles, typename Engine>
__device__ __forceinline__ void multiply_pixel_tiles(const Engine& engine, int consumer, const PixelPlan& plan,
                                                     const T* bias, T* y) {
  float sums[Tiles::kRowBlocks][Tiles::kOutputs / 2];
  Ring<Tiles::kStages> ring;
  for (int i = int(blockIdx.x); i < plan.tiles; i += int(gridDim.x)) {
    int last = 0;
    for (int s = 0; s < plan.steps; ++s, ring.advance()) {
      const uint32_t stage = engine.wait(ring);
      engine.begin();
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int block = 0; block < Tiles::kRowBlocks; ++block)
          engine.template multiply<T, false, false>(sums[block], Tiles::input_descriptor(stage, consumer, block, k),
                                                    Tiles::weight_descriptor(stage, k), s > 0 || k > 0);
      engine.template finish<1>();
      if (s > 0) engine.release(last);
      last = ring.stage;
    }
    engine.template wait_for_products<0>();
    engine.release(last);
    const PixelTile tile = plan.tile(i);
#pragma unroll
    for (int block = 0; block < Tiles::kRowBlocks; ++block)
      store_pixels<T>(engine, plan, tile, Tiles::first_pixel(consumer, block), bias, y, sums[block]);
  }
}

template <typename Tiles, typename Engine>
__device__ __forceinline__ void copy_weight_tile(const Engine& engine, const WeightPlan& plan) {
  const WeightTile tile = plan.tile(int(blockIdx.x));
  Ring<Tiles::kStages> ring;
  for (int s = tile.first; s < tile.last; ++s, ring.advance()) {
    const Place4 corner = plan.corners.corner(s * kChunk);
    engine.acquire(ring);
    for (int i = 0; i < Tiles::kRows; ++i)
      engine.copy_tile(ring.stage, i * Tiles::kTileBytes, tile.output + i * kChunk, tile.group, s * kChunk);
    for (int i = 0; i < Tiles::kBoxes; ++i) {
      const ChunkOfTap at = plan.box(tile.box + i);
      engine.copy_im2col(ring.stage, (Tiles::kRows + i) * Tiles::kTileBytes, plan.corners.rank,
                         tile.group * plan.channels + at.chunk * kChunk, corner, plan.corners.offset(at.tap));
    }
  }
}

template <typename T, typename Tiles, typename Engine>
__device__ __forceinline__ void multiply_weight_tile(const Engine& engine, int consumer, const WeightPlan& plan,
                                                     float* parts) {
  struct alignas(8) Two {
    float v[2];
  };
  const WeightTile tile = plan.tile(int(blockIdx.x));
  float sums[Tiles::kProducts][Tiles::kColumns / 2];
  Ring<Tiles::kStages> ring;
  int last = 0;
  for (int s = tile.first; s < tile.last; ++s, ring.advance()) {
    const uint32_t stage = engine.wait(ring);
    engine.begin();
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int product = 0; product < Tiles::kProducts; ++product)
        engine.template multiply<T, true, true>(sums[product], Tiles::gradient_descriptor(stage, consumer, k),
                                                Tiles::input_descriptor(stage, consumer, product, k),
                                                s > tile.first || k > 0);
    engine.template finish<1>();
    if (s > tile.first) engine.release(last);
    last = ring.stage;
  }
  engine.template wait_for_products<0>();

  const int warp = int(threadIdx.x) % kWarpgroup / 32, lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int product = 0; product < Tiles::kProducts; ++product)
#pragma unroll
    for (int j = 0; j < Tiles::kColumns / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Tiles::row_block(consumer) * 64 + fragment_row(warp, lane, half);
        const int64_t at =
            plan.position(tile, row, Tiles::first_box(consumer, product) + j / 8, j % 8 * 8 + fragment_column(lane));
        const float* sum = &sums[product][j * 4 + half * 2];
        if (at >= 0) *reinterpret_cast<Two*>(parts + at) = Two{{sum[0], sum[1]}};
      }
}

// to[row, tap, d] = the weight, in another order. A thread takes all taps of a row and d.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void reorder_weight_kernel(const T* __restrict__ weight,
                                                                     const WeightOrder order, Divide by_depth,
                                                                     T* __restrict__ to) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= int64_t(order.rows) * order.depth) return;
  int d = int(i);
  const int row = split(d, by_depth), base = order.base(row, d);
  for (int tap = 0; tap < order.taps; ++tap)
    to[(int64_t(row) * order.taps + tap) * order.depth + d] = weight[base + order.tap_offset(tap)];
}

// dw[k, c, tap] = the parts [k, tap, c] of its sum, added in order.
template <typename T>
__global__ __launch_bounds__(kThreads, 1) void join_weight_parts_kernel(const float* __restrict__ part, int elements,
                                                                        int parts, const WeightOrder order,
                                                                        Divide by_depth, Divide by_taps,
                                                                        T* __restrict__ dw) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  float sum = part[i];
  for (int p = 1; p < parts; ++p) sum += part[i + p * int64_t(elements)];
  int c = int(i), tap = split(c, by_depth);
  const int k = split(tap, by_taps);
  dw[order.base(k, c) + order.tap_offset(tap)] = from_accumulate<T>(sum);
}

#if defined(__CUDACC__)

void hopper_backward_weight(const ConvArguments& args);  // conv_implicit_gemm_hopper_weight.cu

// The instructions, on a block's barriers (full, then empty) and ring of stages.
template <typename Tiles>
struct HopperEngine {
  using Stages = Ring<Tiles::kStages>;
  static constexpr size_t kSharedBytes = Tiles::kStages * Tiles::kStageBytes + kAtomBytes;  // dynamic

  uint32_t barriers, stages;
  const CUtensorMap &im2col, &tiles;

  // By all threads. Arrivals at an empty barrier are one of each warp that multiplies.
  __device__ __forceinline__ HopperEngine(uint64_t* barrier, unsigned char* dynamic, const CUtensorMap& x,
                                          const CUtensorMap& other)
      : barriers(shared_address(barrier)),
        stages((shared_address(dynamic) + kAtomBytes - 1) / kAtomBytes * kAtomBytes),
        im2col(x),
        tiles(other) {
    if (threadIdx.x == 0) {
      prefetch_map(im2col);
      prefetch_map(tiles);
      for (int i = 0; i < Tiles::kStages; ++i) {
        barrier_init(full(i), 1);
        barrier_init(empty(i), kConsumers * kWarpgroup / 32);
      }
      barrier_init_done();
    }
    __syncthreads();
  }
  __device__ __forceinline__ uint32_t full(int i) const { return barriers + i * 8; }
  __device__ __forceinline__ uint32_t empty(int i) const { return barriers + (Tiles::kStages + i) * 8; }
  __device__ __forceinline__ uint32_t stage(int i) const { return stages + i * Tiles::kStageBytes; }

  // The thread that copies: waits until a stage is free and announces the bytes to come.
  __device__ __forceinline__ void acquire(const Stages& ring) const {
    barrier_wait(empty(ring.stage), ring.phase ^ 1);
    barrier_expect(full(ring.stage), Tiles::kStageBytes);
  }
  __device__ __forceinline__ void copy_im2col(int i, int offset, int rank, int channel, const Place4& at,
                                              const Place4& by) const {
    cuda::copy_im2col(stage(i) + offset, im2col, rank, full(i), channel, at.w, at.h, at.d, at.n, by.w, by.h, by.d);
  }
  template <typename... Coordinates>
  __device__ __forceinline__ void copy_tile(int i, int offset, Coordinates... at) const {
    cuda::copy_tile(stage(i) + offset, tiles, full(i), at...);
  }

  // Warps that multiply.
  __device__ __forceinline__ uint32_t wait(const Stages& ring) const {
    barrier_wait(full(ring.stage), ring.phase);
    return stage(ring.stage);
  }
  __device__ __forceinline__ void begin() const { wgmma_fence(); }
  template <typename T, bool kMajorA, bool kMajorB, int kSums>
  __device__ __forceinline__ void multiply(float (&sums)[kSums], uint64_t a, uint64_t b, bool add) const {
    wgmma<T, kMajorA, kMajorB>(sums, a, b, add);
  }
  template <int kOutstanding>
  __device__ __forceinline__ void wait_for_products() const {
    wgmma_wait<kOutstanding>();
  }
  template <int kOutstanding>
  __device__ __forceinline__ void finish() const {
    wgmma_commit();
    wgmma_wait<kOutstanding>();
  }
  __device__ __forceinline__ void release(int i) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty(i));
  }
  __device__ __forceinline__ uint32_t exchange(uint32_t word, int bit) const {
    return __shfl_xor_sync(0xffffffff, word, bit);
  }
};

// Which consumer a warp belongs to; kConsumers of the one that copies. The same in all lanes, and known to be.
__device__ __forceinline__ int consumer_index() { return __shfl_sync(0xffffffff, int(threadIdx.x) / kWarpgroup, 0); }

#endif

}  // namespace convext::cuda
