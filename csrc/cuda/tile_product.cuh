// A block's part of a matrix product, c[m, n] = sum over r of a[m, r] * b[n, r], for operands that their loaders bring
// to shared memory piece by piece: the inside of implicit_gemm.
//
// A block of 256 threads makes a square tile, 64 or 128 a side, from slices of 64 bytes along r (32 numbers of 16 bits,
// 16 of float32). kStages slices are in shared memory: while one is multiplied, the next ones are on their way
// (async_copy.cuh), and there is one barrier a slice. Tensor cores: 8 warps stand 2 x 4 and make 64 x 32 (32 x 16)
// each, in 4 x 4 (2 x 2) fragments of 16 x 8. Without them (float32 that may not be rounded to TF32; bfloat16 before
// sm_80): threads stand 16 x 16 and multiply and add 8 x 8 (4 x 4) sums each. Either way every sum runs in the order of
// r, whatever the tile.
//
// Shared memory is counted in chunks of 16 bytes, and where chunk c of line l lies is turned by l, so that no two of
// the eight chunks that a phase of an access touches share banks (banks repeat after 8 chunks):
//   along    a line is a row, 4 chunks along r. Fragments take one chunk of 8 rows: 4 l + (c ^ l / 2 % 4) runs through
//            all 8 positions, as rows 2 i and 2 i + 1 differ in their half and the four pairs in c ^ i.
//   across   a line is one r, its chunks run along rows (loads of images whose channels are rows). Fragments of 16 bits
//            take one chunk of 8 lines (transposed on the way): c ^ l % 8. Those of 32 bits take 8 rows, two chunks, of
//            4 lines: c ^ 2 (l % 4).
// At the end the tile passes through shared memory, 64 rows at a time, to be stored along the contiguous index.
#pragma once
#include "async_copy.cuh"
#include "launch.cuh"
#include "tensor_core.cuh"

namespace convext::cuda {

constexpr int kChunkBytes = 16, kSliceBytes = 64, kSliceChunks = kSliceBytes / kChunkBytes;
constexpr int kStages = 3;
constexpr int kSmallTile = 64, kLargeTile = 128;
constexpr int kStoredRows = 64;  // pass through shared memory together
template <int kTile>
constexpr int kBlocks = kTile == kSmallTile ? 2 : 1;  // a multiprocessor, as far as registers go
template <typename T>
constexpr int kChunk = kChunkBytes / sizeof(T);  // elements
template <typename T>
constexpr int kSlice = kSliceBytes / sizeof(T);

struct alignas(kChunkBytes) Chunk {
  uint32_t words[4];
};

// Where a chunk lies within an operand's slice.
template <typename T, int kTile, bool kAlong>
__device__ __forceinline__ int chunk_at(int line, int chunk) {
  if (kAlong) return line * kSliceChunks + (chunk ^ (line >> 1 & 3));
  return line * (kTile / kChunk<T>)+(chunk ^ (sizeof(T) == 2 ? line & 7 : (line & 3) << 1));
}

// The lines and chunks that a thread brings to shared memory, load i of kLoads: neighbouring threads take neighbouring
// chunks of a line (whole, where channels are contiguous) or neighbouring lines (element by element, where places are).
template <typename T, int kTile, bool kAlong>
struct Share {
  static constexpr int kLoads = kTile * kSliceChunks / kThreads;
  static constexpr int kLines = kAlong ? kTile : kSlice<T>, kLineChunks = kTile * kSliceChunks / kLines;
  static_assert(kLoads * kThreads == kLines * kLineChunks && kThreads % kLines == 0 && kThreads % kLineChunks == 0,
                "every thread loads as much");

  static __device__ __forceinline__ int line(int i, bool whole) {
    const int thread = int(threadIdx.x);
    return whole ? thread / kLineChunks + i * (kThreads / kLineChunks) : thread % kLines;
  }
  static __device__ __forceinline__ int chunk(int i, bool whole) {
    const int thread = int(threadIdx.x);
    return whole ? thread % kLineChunks : thread / kLines + i * (kThreads / kLines);
  }
};

// Neighbouring channels of one place of a tensor: a chunk, copied whole where it is aligned and complete, else
// collected element by element, on the way in registers.
template <typename T>
struct Channels {
  const T* data;  // of the group
  int count, stride;
  bool whole;

  // `at`: the place's offset, or -1 for zeros.
  __device__ __forceinline__ void fetch(int at, int c, Chunk* to, Chunk& held) const {
    if (whole) {
      const bool inside = at >= 0 && c < count;
      copy_async<kChunkBytes>(to, data + (inside ? at + c : 0), inside);
      return;
    }
    T numbers[kChunk<T>];
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i)
      numbers[i] = at >= 0 && c + i < count ? data[at + (c + i) * stride] : from_accumulate<T>(0);
    memcpy(&held, numbers, kChunkBytes);
  }
  __device__ __forceinline__ void stash(Chunk* to, const Chunk& held) const {
    if (!whole) *to = held;
  }
};

template <typename T>
bool copied_whole(const void* data, int64_t channel_stride, int64_t channels) {
  return channel_stride == 1 && channels % kChunk<T> == 0 && reinterpret_cast<uintptr_t>(data) % kChunkBytes == 0;
}

// The sums of one thread. kAlong: of both operands.
template <typename T, bool kTensor, int kTile, bool kAlong, bool kSegments>
struct Product {
  static constexpr bool kFragments = kTensor && kTensorCores<T>;
  static constexpr int kSums = kTile * kTile / kThreads, kMicro = kTile / 16;
  static constexpr int kWarpRows = kTile / 2, kWarpColumns = kTile / 4, kRowFragments = kWarpRows / 16,
                       kColumnFragments = kWarpColumns / 8;
  static_assert(kColumnFragments % 2 == 0, "fragments of b are loaded in pairs");
  float sum[kSums / 4][4] = {};
  float total[kSegments ? kSums / 4 : 1][4] = {};  // of the segments before

  __device__ __forceinline__ void close_segment() {
    if constexpr (kSegments) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i / 4][i % 4] += sum[i / 4][i % 4], sum[i / 4][i % 4] = 0;
    }
  }
  __device__ __forceinline__ float result(int i) const { return kSegments ? total[i / 4][i % 4] : sum[i / 4][i % 4]; }
  // The place of sum i in the tile.
  static __device__ __forceinline__ int row(int i) {
    const int thread = int(threadIdx.x), lane = thread % 32;
    if (kFragments) return thread / 128 * kWarpRows + i / 4 / kColumnFragments * 16 + lane / 4 + i % 4 / 2 * 8;
    return micro(thread / 16, i / kMicro);
  }
  static __device__ __forceinline__ int column(int i) {
    const int thread = int(threadIdx.x), lane = thread % 32;
    if (kFragments) return thread / 32 % 4 * kWarpColumns + i / 4 % kColumnFragments * 8 + lane % 4 * 2 + i % 2;
    return micro(thread % 16, i % kMicro);
  }

  __device__ __forceinline__ void add(const Chunk* a, const Chunk* b) {
    if constexpr (kFragments)
      add_fragments(a, b);
    else if constexpr (kAlong)
      add_along(a, b);
    else
      add_across(a, b);
  }

 private:
  static __device__ __forceinline__ int micro(int thread, int i) {
    return kAlong ? thread + i * 16 : (thread + i / 4 * 16) * 4 + i % 4;
  }

  // Four matrices of 8 rows by one chunk along r, at rows first + 0 or 8 and chunks 2 step + 0 or 1: for an operand a,
  // j % 2 says which rows and j / 2 which chunk; for b the other way round.
  template <bool kIsA>
  static __device__ __forceinline__ void load(uint32_t (&to)[4], const Chunk* tile, int first, int step) {
    const int lane = int(threadIdx.x) % 32, matrix = lane / 8;
    const int rows = (kIsA ? matrix % 2 : matrix / 2) * 8, chunk = 2 * step + (kIsA ? matrix / 2 : matrix % 2);
    if constexpr (kAlong) {
      load_matrices<false>(to, tile + chunk_at<T, kTile, true>(first + rows + lane % 8, chunk));
    } else if constexpr (sizeof(T) == 2) {
      load_matrices<true>(to, tile + chunk_at<T, kTile, false>(chunk * 8 + lane % 8, (first + rows) / 8));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int m = first + (kIsA ? j % 2 : j / 2) * 8 + lane / 4,
                  r = (2 * step + (kIsA ? j / 2 : j % 2)) * 4 + lane % 4;
        to[j] = tile[chunk_at<T, kTile, false>(r, m / 4)].words[m % 4];
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = to_tf32(to[j]);
    }
  }

  __device__ __forceinline__ void add_fragments(const Chunk* a, const Chunk* b) {
    const int warp = int(threadIdx.x) / 32, first_row = warp / 4 * kWarpRows, first_column = warp % 4 * kWarpColumns;
#pragma unroll
    for (int step = 0; step < kSliceChunks / 2; ++step) {
      uint32_t x[kRowFragments][4], y[kColumnFragments / 2][4];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) load<true>(x[i], a, first_row + i * 16, step);
#pragma unroll
      for (int j = 0; j < kColumnFragments / 2; ++j) load<false>(y[j], b, first_column + j * 16, step);
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i)
#pragma unroll
        for (int j = 0; j < kColumnFragments; ++j)
          multiply_matrices<T>(sum[i * kColumnFragments + j], x[i], y[j / 2] + j % 2 * 2);
    }
  }

  // Four numbers from number `first` of a chunk on.
  static __device__ __forceinline__ Four<float> four(const Chunk& chunk, int first) {
    Four<float> numbers;
    const T* from = reinterpret_cast<const T*>(&chunk) + first;
#pragma unroll
    for (int i = 0; i < 4; ++i) numbers.v[i] = to_accumulate(from[i]);
    return numbers;
  }

  __device__ __forceinline__ void add_along(const Chunk* a, const Chunk* b) {
    const int tm = int(threadIdx.x) / 16, tn = int(threadIdx.x) % 16;
#pragma unroll 1
    for (int r = 0; r < kSlice<T>; r += 4) {
      const int chunk = r / kChunk<T>, first = r % kChunk<T>;
      Four<float> y[kMicro];
#pragma unroll
      for (int j = 0; j < kMicro; ++j) y[j] = four(b[chunk_at<T, kTile, true>(micro(tn, j), chunk)], first);
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
        const Four<float> x = four(a[chunk_at<T, kTile, true>(micro(tm, i), chunk)], first);
#pragma unroll
        for (int j = 0; j < kMicro; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[(i * kMicro + j) / 4][(i * kMicro + j) % 4] += x.v[e] * y[j].v[e];
      }
    }
  }

  __device__ __forceinline__ void add_across(const Chunk* a, const Chunk* b) {
    const int tm = int(threadIdx.x) / 16, tn = int(threadIdx.x) % 16;
    const auto load_fours = [](const Chunk* tile, int r, int thread, Four<float>(&to)[kMicro / 4]) {
#pragma unroll
      for (int i = 0; i < kMicro / 4; ++i) {
        const int first = (thread + i * 16) * 4;
        to[i] = four(tile[chunk_at<T, kTile, false>(r, first / kChunk<T>)], first % kChunk<T>);
      }
    };
#pragma unroll 4
    for (int r = 0; r < kSlice<T>; ++r) {
      Four<float> x[kMicro / 4], y[kMicro / 4];
      load_fours(a, r, tm, x);
      load_fours(b, r, tn, y);
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j)
          sum[(i * kMicro + j) / 4][(i * kMicro + j) % 4] += x[i / 4].v[i % 4] * y[j / 4].v[j % 4];
    }
  }
};

template <int kTile>
constexpr int kOperandChunks = kTile * kSliceChunks;  // of a slice
template <int kTile>
constexpr size_t kStagedBytes = size_t(kStages) * 2 * kOperandChunks<kTile> * kChunkBytes;

// Adds slices [first, end) to the product, and closes its segments, every `segment` slices from slice 0 on.
// Loaders: fetch(slice, chunks) starts bringing a slice, stash(chunks) ends it; a barrier and the wait come after.
template <int kTile, typename Product, typename A, typename B>
__device__ __forceinline__ void multiply_slices(Product& product, A& a, B& b, Chunk* shared, int first, int end,
                                                int segment) {
  constexpr int kOperand = kOperandChunks<kTile>;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    Chunk* stage = shared + i * 2 * kOperand;
    if (first + i < end) {
      a.fetch(first + i, stage), b.fetch(first + i, stage + kOperand);
      a.stash(stage), b.stash(stage + kOperand);
    }
    commit_async();
  }
  int stage = 0, left = segment - first % segment;
  for (int slice = first; slice < end; ++slice) {
    wait_async<kStages - 2>();
    __syncthreads();  // the slice is there, and the one before, whose place comes next, is done with
    const bool more = slice + kStages - 1 < end;
    Chunk* next = shared + (stage == 0 ? kStages - 1 : stage - 1) * 2 * kOperand;
    if (more) a.fetch(slice + kStages - 1, next), b.fetch(slice + kStages - 1, next + kOperand);
    commit_async();
    product.add(shared + stage * 2 * kOperand, shared + (stage * 2 + 1) * kOperand);
    if (more) a.stash(next), b.stash(next + kOperand);
    if (--left == 0) product.close_segment(), left = segment;
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  product.close_segment();
}

// Hands out the tile, to neighbouring threads along rows (place(row, column, value)) or along columns, there kWide at a
// time where `wide` (place_wide(row, column, values)).
template <int kTile, int kWide, typename Product, typename Place, typename PlaceWide>
__device__ __forceinline__ void hand_out(const Product& product, Chunk* shared, bool along_rows, bool wide,
                                         const Place& place, const PlaceWide& place_wide) {
  constexpr int kPadded = kTile + 8;
  static_assert(kStoredRows * kPadded * sizeof(float) <= kStagedBytes<kTile>, "it fits where the slices were");
  float* values = reinterpret_cast<float*>(shared);
  const int line = along_rows ? kTile + 1 : kPadded, thread = int(threadIdx.x);  // along rows: an odd number of banks
#pragma unroll 1
  for (int first = 0; first < kTile; first += kStoredRows) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Product::kSums; ++i) {
      const int row = Product::row(i) - first;
      if (row >= 0 && row < kStoredRows) values[row * line + Product::column(i)] = product.result(i);
    }
    __syncthreads();
    if (along_rows) {
      for (int i = thread; i < kStoredRows * kTile; i += kThreads)
        place(first + i % kStoredRows, i / kStoredRows, values[i % kStoredRows * line + i / kStoredRows]);
    } else if (wide) {
      for (int i = thread * kWide; i < kStoredRows * kTile; i += kThreads * kWide)
        place_wide(first + i / kTile, i % kTile, values + i / kTile * line + i % kTile);
    } else {
      for (int i = thread; i < kStoredRows * kTile; i += kThreads)
        place(first + i / kTile, i % kTile, values[i / kTile * line + i % kTile]);
    }
  }
}

}  // namespace convext::cuda
