// F(2x2,3x3) in one kernel: the transformed input and the products never leave the multiprocessor.
//
//   for every chunk of kChunk rows (tap along depth and channel):
//     v[row][e][tile]    = B^T d B   a thread takes a patch of one tile and row from memory to shared memory
//     u[row][e][channel]             copied from the workspace, where fused_weight_kernel has put G w G^T
//     m[e][channel][tile] += u v     in registers
//   y = A^T m A + bias               points change threads by way of shared memory, 16 channels at a time
//
// A block makes kTiles tiles of 32 or 64 output channels. Each of its 8 warps has two of the 16 points, and a lane of
// it 8 tiles x 4 (8) channels of either: 3 (4) loads of 16 bytes from shared memory for 32 (64) multiplications. While
// a chunk is multiplied, the next one's patches and weights come from memory into registers. Shared memory: 50 kB, so
// that one block of 64 channels or two of 32 run at once. Traffic: the input once per 32 (64) output channels, 4 times
// its size in loads (tiles overlap) that the caches serve; the weight, 16 / 9 of its size, once per 32 tiles.
//
// Every sum is of one thread, in the order of the rows. float only: sums in double would not fit the registers.
#include "conv_winograd.cuh"

namespace convext::cuda {
namespace {

using F = Minimal<2, 3>;

constexpr int kPoints = 16, kChunk = 8, kTiles = 32;
constexpr int kRoundChannels = 16;          // that change threads at a time
constexpr int kRow = kPoints * kTiles + 4;  // of v in shared memory: a little apart, for the stores of channels_last
constexpr int kProduct = kTiles + 4;        // of m in shared memory
static_assert(kThreads == kChunk * kTiles, "a thread transforms a patch of every chunk");
static_assert(kThreads / 32 * 2 == kPoints, "a warp has two points");

template <int kFours>
constexpr int kChannels = 32 * kFours;
template <int kFours>
constexpr int kShared = kChunk * kPoints * kChannels<kFours> + kChunk * kRow;

// Output channels stand permuted, so that a lane, which reads four neighbours at a time, holds two of every 16: these
// are what the threads exchange together.
__device__ __forceinline__ int position(int channel) {
  const int round = channel / kRoundChannels, lane = channel % kRoundChannels / 2, i = 2 * round + channel % 2;
  return lane * 4 + i % 4 + i / 4 * 32;
}

// u[group][block of channels][row][e][channel], zeros past the last row and channel.
template <int kFours>
__global__ __launch_bounds__(kThreads, 1) void fused_weight_kernel(const Filters filters, int rows, Divide by_block,
                                                                   Divide by_row, Divide by_channels,
                                                                   const float* __restrict__ w, float* __restrict__ u) {
  const int at = int(blockIdx.x) * kThreads + int(threadIdx.x);
  int row = at / kChannels<kFours>, k = at % kChannels<kFours>;
  int block = split(row, by_row);
  float* to = u + (block * rows + row) * kPoints * kChannels<kFours> + position(k);
  const int group = split(block, by_block);
  if (group >= filters.groups) return;
  k += block * kChannels<kFours>;
  int c = row;
  const int t = split(c, by_channels);
  const bool exists = k < filters.made && row < filters.rows;
  const auto load = [&](int r, int s) { return exists ? w[filters.offset(group, k, c, t, r * 3 + s, 9)] : 0.f; };
  transform<float, WeightToPoints<F>, WeightToPoints<F>>(
      load, [&](int r, int s, float value) { to[(r * 4 + s) * kChannels<kFours>] = value; });
}

template <int kFours>
__global__ __launch_bounds__(kThreads, kFours == 1 ? 2 : 1) void fused_kernel(
    const Patches patches, const Results results, Divide by_blocks, Divide by_tiles, Divide by_channels,
    const float* __restrict__ x, const float* __restrict__ u, const float* __restrict__ bias, float* __restrict__ y) {
  constexpr int kWeights = kChunk * kPoints * kChannels<kFours>, kLoads = kWeights / 4 / kThreads;
  CONVEXT_DYNAMIC_SHARED(float, shared);
  float *const u_chunk = shared, *const v_chunk = shared + kWeights;

  const Window& window = patches.window;
  const int tid = int(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const bool channels_last = patches.image.channel == 1;
  int group = int(blockIdx.x);
  const int block = group - by_blocks.quotient(group) * by_blocks.divisor;
  group = by_blocks.quotient(group);
  const int first = (group - by_tiles.quotient(group) * by_tiles.divisor) * kTiles;
  group = by_tiles.quotient(group);
  const int chunks = (patches.rows + kChunk - 1) / kChunk;

  // Where the places of the block's tiles lie: offsets of 4 rows and of 4 columns, or -1; of the image; the output
  // depth.
  __shared__ int down[4][kTiles], along[4][kTiles], image_at[kTiles], depth[kTiles];
  if (tid < kTiles) {
    const bool exists = first + tid < patches.columns;
    const TileGrid::Tile tile = patches.tiles.tile(exists ? first + tid : 0);
    for (int i = 0; i < 4; ++i) {
      const int h = exists ? shown_place(window, 1, tile.i * 2 + i - window.before[1]) : -1;
      const int w = shown_place(window, 2, tile.j * 2 + i - window.before[2]);
      down[i][tid] = h < 0 ? -1 : h * window.in[2] * patches.image.place;
      along[i][tid] = w < 0 ? -1 : w * patches.image.place;
    }
    image_at[tid] = tile.n * patches.image.image;
    depth[tid] = tile.o * window.stride[0] - window.before[0];
  }
  __syncthreads();

  // The patch that this thread transforms: its row of each chunk, and its tile.
  const int my_row = channels_last ? tid % kChunk : warp, my_tile = channels_last ? tid / kChunk : lane;
  x += group * patches.channels * patches.image.channel;
  const float* weights = u + (group * by_blocks.divisor + block) * chunks * kWeights;

  float patch[4][4];
  Four<float> weight[kLoads];
  const auto load = [&](int chunk) {
    int c = chunk * kChunk + my_row;
    const bool row_exists = c < patches.rows;
    const int t = split(c, by_channels), d = window.source(0, depth[my_tile] + t);
    const float* plane =
        x + image_at[my_tile] + c * patches.image.channel + d * window.in[1] * window.in[2] * patches.image.place;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = down[i][my_tile], column = along[j][my_tile];
        patch[i][j] = row_exists && d >= 0 && row >= 0 && column >= 0 ? plane[row + column] : 0.f;
      }
    const Four<float>* from = reinterpret_cast<const Four<float>*>(weights + chunk * kWeights);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) weight[i] = from[tid + i * kThreads];
  };
  const auto store = [&] {
    float* to = v_chunk + my_row * kRow + my_tile;
    transform<float, InputToPoints<F>, InputToPoints<F>>(
        [&](int r, int s) { return patch[r][s]; },
        [&](int r, int s, float value) { to[(r * 4 + s) * kTiles] = value; });
#pragma unroll
    for (int i = 0; i < kLoads; ++i) reinterpret_cast<Four<float>*>(u_chunk)[tid + i * kThreads] = weight[i];
  };

  // m of points 2 warp and 2 warp + 1, channels at positions 4 lane_k + i % 4 + 32 (i / 4), tiles 4 lane_t + j % 4 +
  // 16 (j / 4).
  const int lane_k = lane % 8, lane_t = lane / 8;
  float sum[2][4 * kFours][8] = {};
  load(0);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    store();
    __syncthreads();
    if (chunk + 1 < chunks) load(chunk + 1);
    const float *from_u = u_chunk + 2 * warp * kChannels<kFours> + 4 * lane_k,
                *from_v = v_chunk + 2 * warp * kTiles + 4 * lane_t;
#pragma unroll 1
    for (int row = 0; row < kChunk; ++row, from_u += kPoints * kChannels<kFours>, from_v += kRow)
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const Four<float>* at_u = reinterpret_cast<const Four<float>*>(from_u + p * kChannels<kFours>);
        const Four<float>* at_v = reinterpret_cast<const Four<float>*>(from_v + p * kTiles);
        Four<float> k[kFours], t[2] = {at_v[0], at_v[4]};
#pragma unroll
        for (int i = 0; i < kFours; ++i) k[i] = at_u[8 * i];
#pragma unroll
        for (int i = 0; i < 4 * kFours; ++i)
#pragma unroll
          for (int j = 0; j < 8; ++j) sum[p][i][j] += k[i / 4].v[i % 4] * t[j / 4].v[j % 4];
      }
    __syncthreads();
  }

  // Back, 16 channels at a time: m[e][channel][tile] in shared memory, then a thread per channel and tile.
#pragma unroll
  for (int round = 0; round < 2 * kFours; ++round) {
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Four<float> four;
#pragma unroll
          for (int l = 0; l < 4; ++l) four.v[l] = sum[p][2 * round + i][4 * j + l];
          float* to = shared + ((2 * warp + p) * kRoundChannels + 2 * lane_k + i) * kProduct + 4 * lane_t + 16 * j;
          *reinterpret_cast<Four<float>*>(to) = four;
        }
    __syncthreads();
    for (int i = tid; i < kRoundChannels * kTiles; i += kThreads) {
      const int at = channels_last ? i / kRoundChannels : i % kTiles;
      const int channel = channels_last ? i % kRoundChannels : i / kTiles;
      const int k = block * kChannels<kFours> + round * kRoundChannels + channel;
      if (k >= results.made || first + at >= results.columns) continue;
      const TileGrid::Tile out = results.tiles.tile(first + at);
      const int h0 = out.i * 2, w0 = out.j * 2;
      const float start = bias != nullptr ? bias[group * results.made + k] : 0.f;
      const float* from = shared + channel * kProduct + at;
      float* to = y + out.n * results.image.image + (group * results.made + k) * results.image.channel +
                  ((out.o * results.height + h0) * results.width + w0) * results.image.place;
      transform<float, PointsToOutput<F>, PointsToOutput<F>>(
          [&](int r, int s) { return from[(r * 4 + s) * kRoundChannels * kProduct]; },
          [&](int r, int s, float value) {
            if (h0 + r < results.height && w0 + s < results.width)
              to[(r * results.width + s) * results.image.place] = start + value;
          });
    }
    __syncthreads();
  }
}

// 64 channels a block, where that wastes none and there are as many.
bool wide(int made) { return made > 32 && (made % 64 == 0 || made % 64 > 32); }

template <int kFours>
void run(const Patches& patches, const Filters& filters, const Results& results, const float* x, const float* w,
         const float* bias, float* u, float* y, void* stream) {
  const int blocks = int(ceil_div(filters.made, kChannels<kFours>)), chunks = int(ceil_div(filters.rows, kChunk));
  const int64_t tiles = ceil_div(patches.columns, kTiles), rows = chunks * kChunk;
  launch("conv_winograd_fused_weight", fused_weight_kernel<kFours>,
         grid_of(ceil_div(filters.groups * blocks * rows * kChannels<kFours>, kThreads)), kThreads, 0, stream, filters,
         int(rows), Divide(blocks), Divide(rows), Divide(filters.channels), w, u);
  constexpr int kProducts = kPoints * kRoundChannels * kProduct;
  const size_t bytes = sizeof(float) * (kShared<kFours> > kProducts ? kShared<kFours> : kProducts);
  launch("conv_winograd_fused", fused_kernel<kFours>, grid_of(filters.groups * tiles * blocks), kThreads, bytes, stream,
         patches, results, Divide(blocks), Divide(tiles), Divide(filters.channels), x, static_cast<const float*>(u),
         bias, y);
}

}  // namespace

int64_t fused_weight_elements(int groups, int made, int rows) {
  const int64_t channels = wide(made) ? kChannels<2> : kChannels<1>;
  return groups * ceil_div(made, channels) * channels * ceil_div(rows, kChunk) * kChunk * kPoints;
}

void winograd_fused(const Patches& patches, const Filters& filters, const Results& results, const float* x,
                    const float* w, const float* bias, float* u, float* y, void* stream) {
  wide(filters.made) ? run<2>(patches, filters, results, x, w, bias, u, y, stream)
                     : run<1>(patches, filters, results, x, w, bias, u, y, stream);
}

}  // namespace convext::cuda
