// The matrix product of the im2col algorithm:
//
//   c[m, n] = sum over r of  a[m, r] * b[n, r]   (+ bias[m])
//
// for every group at once, where each operand says by two Spans where its elements lie, so that weights are read
// flipped or reordered, and images in either layout, without a copy.
//
// A block computes a tile of c, 64 x 64 or, where there are enough of them to fill the GPU, 128 x 128; its 256 threads
// stand 16 x 16 and keep 4 x 4 or 8 x 8 sums each in registers. Slices of 16 (8) values of r pass through shared
// memory, two buffers of them, so that one is filled (by way of registers) while the other is used: one barrier a
// slice. Lanes load along whichever index of an operand is contiguous, and store along that of c. Traffic: a is read
// once per tile column, b once per tile row; in shared memory, 16 bytes a load, 2 (4) loads for 16 (64)
// multiplications.
//
// Every c[m, n] is summed by one thread in the order of r, whatever the tile. A sum may be cut into `splits` parts,
// each a result of its own. Offsets are 32 bits wide: an operand has fewer than 2^31 elements.
#pragma once
#include "dtype.cuh"
#include "launch.cuh"
#include "window.cuh"

namespace convext::cuda {

constexpr int kSide = 16;            // threads along a side of the tile
constexpr int kOutside = INT32_MIN;  // no offset
static_assert(kSide * kSide == kThreads, "a block is a square of threads");

// Tiles of 128 x 128 are worth their while if there are this many: two for each of an H200's 132 multiprocessors.
#if !defined(CONVEXT_GEMM_ENOUGH_TILES)
#define CONVEXT_GEMM_ENOUGH_TILES 264
#endif

// Where index i lies: at (i + first) / per * outer + (i + first) % per * inner.
struct Span {
  Divide per;
  int outer, inner, first = 0;

  __device__ __forceinline__ int offset(int i) const {
    int rest = i + first;
    const int whole = split(rest, per);
    return whole * outer + rest * inner;
  }
};

inline Span span(int64_t per, int64_t outer, int64_t inner, int64_t first = 0) {
  return {Divide(per), int(outer), int(inner), int(first)};
}
inline Span plain_span(int64_t stride) { return span(kMaxElements, 0, stride); }

template <typename T>
struct Operand {  // a[m, r] or b[n, r]
  const T* data;
  int group;  // stride
  Span row, reduced;
};

template <typename T>
struct Result {
  T* data;
  int64_t part;  // stride of the parts of a cut sum
  int group;
  Span m, n;
  bool accumulate;  // add to what is there
};

struct GemmSize {
  int m, n, reduced, groups = 1, splits = 1;
};

// Two blocks a multiprocessor, where the registers allow: what one waits for, the other computes through.
template <typename T, int kMicro>
constexpr int kGemmBlocks = sizeof(T) == 4 || (sizeof(T) == 2 && kMicro == 4) ? 2 : 1;

template <typename T, typename Out, int kMicro>
__global__ __launch_bounds__(kThreads,
                             (kGemmBlocks<T, kMicro>)) void gemm_kernel(const Operand<T> a, const Operand<T> b,
                                                                        const Result<Out> c, const T* __restrict__ bias,
                                                                        const GemmSize size) {
  using A = Accumulate<T>;
  constexpr int kSlice = 64 / kMicro, kLoads = 4;
  constexpr int kTile = kSide * kMicro, kFours = kMicro / 4;
  static_assert(kTile * kSlice == kLoads * kThreads, "every thread loads as much");
  __shared__ Four<A> a_tile[2][kSlice][kTile / 4 + 1], b_tile[2][kSlice][kTile / 4 + 1];

  const int n_tiles = (size.n + kTile - 1) / kTile, m_tiles = (size.m + kTile - 1) / kTile;
  const int tile = blockIdx.x, n_first = tile % n_tiles * kTile, m_first = tile / n_tiles % m_tiles * kTile;
  const int group = tile / n_tiles / m_tiles % size.groups, part = tile / n_tiles / m_tiles / size.groups;
  const int length = (size.reduced + size.splits - 1) / size.splits, r_first = part * length;
  const int r_end = r_first + length < size.reduced ? r_first + length : size.reduced;
  const int tid = threadIdx.x;

  // This thread's part in loading an operand: kLoads places of a slice, each a row of the operand and a value of r.
  struct Loads {
    const T* data;
    int row[kLoads], at[kLoads];  // in the tile; in memory, or kOutside past the last
    bool along_r;

    __device__ __forceinline__ int slice_row(int load, int thread) const {
      return along_r ? thread % kSlice : thread / kTile + load * (kThreads / kTile);
    }
    __device__ __forceinline__ Loads(const Operand<T>& operand, int group_, int first, int rows, int thread)
        : data(operand.data + int64_t(group_) * operand.group),
          along_r(operand.reduced.inner == 1 || operand.reduced.inner == -1) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        row[i] = along_r ? thread / kSlice + i * (kThreads / kSlice) : thread % kTile;
        at[i] = first + row[i] < rows ? operand.row.offset(first + row[i]) : kOutside;
      }
    }
  };
  const Loads a_loads(a, group, m_first, size.m, tid), b_loads(b, group, n_first, size.n, tid);
  T a_next[kLoads], b_next[kLoads];

  const auto load = [&](const Loads& loads, const Span& reduced, int r0, T* next) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int r = r0 + loads.slice_row(i, tid);
      const bool inside = r < r_end && loads.at[i] != kOutside;
      next[i] = inside ? loads.data[loads.at[i] + reduced.offset(r)] : from_accumulate<T>(A(0));
    }
  };
  const auto store = [&](const Loads& loads, const T* next, Four<A>(*tile_of)[kTile / 4 + 1]) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      tile_of[loads.slice_row(i, tid)][loads.row[i] / 4].v[loads.row[i] % 4] = to_accumulate(next[i]);
  };

  // Neighbouring threads hold neighbours along the contiguous index of c.
  const bool m_fast = c.m.inner == 1 && c.n.inner != 1;
  const int tm = m_fast ? tid % kSide : tid / kSide, tn = m_fast ? tid / kSide : tid % kSide;
  A sum[kMicro][kMicro] = {};

  load(a_loads, a.reduced, r_first, a_next);
  load(b_loads, b.reduced, r_first, b_next);
  store(a_loads, a_next, a_tile[0]);
  store(b_loads, b_next, b_tile[0]);
  __syncthreads();
  for (int r0 = r_first, buffer = 0; r0 < r_end; r0 += kSlice, buffer ^= 1) {
    const bool more = r0 + kSlice < r_end;
    if (more) {
      load(a_loads, a.reduced, r0 + kSlice, a_next);
      load(b_loads, b.reduced, r0 + kSlice, b_next);
    }
#pragma unroll
    for (int r = 0; r < kSlice; ++r) {
      Four<A> x[kFours], y[kFours];
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        x[i] = a_tile[buffer][r][tm + i * kSide];
        y[i] = b_tile[buffer][r][tn + i * kSide];
      }
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) sum[i][j] += x[i / 4].v[i % 4] * y[j / 4].v[j % 4];
    }
    if (more) {
      store(a_loads, a_next, a_tile[buffer ^ 1]);
      store(b_loads, b_next, b_tile[buffer ^ 1]);
    }
    __syncthreads();
  }

  Out* out = c.data + part * c.part + int64_t(group) * c.group;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    const int m = m_first + (tm + i / 4 * kSide) * 4 + i % 4;
    if (m >= size.m) continue;
    const int m_offset = c.m.offset(m);
    const A start = bias != nullptr ? to_accumulate(bias[group * size.m + m]) : A(0);
#pragma unroll
    for (int j = 0; j < kMicro; ++j) {
      const int n = n_first + (tn + j / 4 * kSide) * 4 + j % 4;
      if (n >= size.n) continue;
      Out* to = out + m_offset + c.n.offset(n);
      *to = from_accumulate<Out>((c.accumulate ? to_accumulate(*to) : start) + sum[i][j]);
    }
  }
}

inline int64_t tiles_of(const GemmSize& size, int64_t tile) {
  return ceil_div(size.m, tile) * ceil_div(size.n, tile) * size.groups * size.splits;
}

template <typename T, typename Out>
void gemm(const char* name, const Operand<T>& a, const Operand<T>& b, const Result<Out>& c, const T* bias,
          const GemmSize& size, void* stream) {
  constexpr int kSmall = 4, kLarge = sizeof(Accumulate<T>) == 4 ? 8 : 4;  // 8 x 8 doubles would not fit the registers
  const bool large =
      size.m > kSide * kSmall && size.n > kSide * kSmall && tiles_of(size, kSide * kLarge) >= CONVEXT_GEMM_ENOUGH_TILES;
  const int64_t tiles = tiles_of(size, kSide * (large ? kLarge : kSmall));
  launch(name, large ? gemm_kernel<T, Out, kLarge> : gemm_kernel<T, Out, kSmall>, grid_of(tiles), kThreads, 0, stream,
         a, b, c, bias, size);
}

}  // namespace convext::cuda
