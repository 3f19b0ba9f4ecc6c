// Hopper's own instructions, one function each, and the formats they demand: barriers that count bytes, bulk tensor
// copies, matrix products of four warps (wgmma). Names in quotes are sections of the PTX ISA, 9.0.
//
// A ring of stages in shared memory joins the two sides of a kernel: one thread issues copies into a stage, whose
// "full" barrier completes when all bytes have arrived; eight warps multiply from it and arrive at its "empty" barrier.
// Copies and products go through the asynchronous proxy alone, so no proxy fence is needed between them; the barriers'
// initialisation, which is an ordinary store, needs one.
//
// Machine code for sm_90a alone holds any of it. Nothing but the formats compiles without nvcc.
#pragma once
#include "dtype.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

// Defined where the instructions are: in the pass for sm_90a. Kernels are traps elsewhere.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CONVEXT_SM90A
#endif

namespace convext::cuda {

constexpr int kWarpgroup = 128;
constexpr int kRowBytes = 128;  // a row of a tile in shared memory: the reach of the 128-byte swizzle
constexpr int kAtomRows = 8;    // rows after which the swizzle repeats
constexpr int kAtomBytes = kAtomRows * kRowBytes;  // what tiles must be aligned to for their base offset to be 0
constexpr int kStepDepth = 16;                     // of one wgmma of 16-bit types

// "Matrix-Descriptor Format" of wgmma: bits 0-13 the address, 16-29 the leading and 32-45 the stride byte offset, each
// without its lowest four bits; 49-51 the base offset, 0 as tiles start at multiples of kAtomBytes; 62-63 the swizzle,
// 1 for 128 bytes.
CONVEXT_HD uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t((leading_bytes & 0x3ffff) >> 4) << 16 |
         uint64_t((stride_bytes & 0x3ffff) >> 4) << 32 | uint64_t(1) << 62;
}

// "Canonical Layouts". A tile whose rows are m (n) and hold 64 values of k: K-major. Its 8-row atoms follow each other,
// which is the stride; the leading offset is not used. The next 16 values of k are 32 bytes on.
CONVEXT_HD uint64_t k_major_descriptor(uint32_t tile, int k) {
  return matrix_descriptor(tile + k * kStepDepth * 2, 16, kAtomBytes);
}
// A tile whose rows are k and hold 64 values of m (n): MN-major. The atoms of 8 values of k follow each other, again
// the stride; the next 64 values of m (n) lie in the next tile, the leading offset. The next 16 values of k are two
// atoms on.
CONVEXT_HD uint64_t mn_major_descriptor(uint32_t tile, int k, uint32_t tile_bytes) {
  return matrix_descriptor(tile + k * (kStepDepth / kAtomRows) * kAtomBytes, tile_bytes, kAtomBytes);
}

// "Register Fragments" of wgmma's m64nNk16 result: number 4 j + 2 half + i of a thread is in this row and in column
// 8 j + fragment_column(lane) + i.
CONVEXT_HD int fragment_row(int warp, int lane, int half) { return warp * 16 + lane / 4 + half * 8; }
CONVEXT_HD int fragment_column(int lane) { return lane % 4 * 2; }

// Four neighbouring lanes hold four words each, lane t the words t of four groups; afterwards lane t holds the words of
// group t. Twice, each lane sends two words to lane ^ bit and takes two.
template <int kBit>
CONVEXT_HD void quad_send(const uint32_t (&word)[4], int lane, uint32_t (&sent)[2]) {
  const bool high = lane & kBit;
  sent[0] = high ? word[0] : word[kBit];
  sent[1] = high ? word[kBit == 1 ? 2 : 1] : word[3];
}
template <int kBit>
CONVEXT_HD void quad_take(uint32_t (&word)[4], int lane, const uint32_t (&taken)[2]) {
  const bool high = lane & kBit;
  word[0] = high ? taken[0] : word[0];
  word[kBit == 1 ? 2 : 1] = high ? taken[1] : word[kBit == 1 ? 2 : 1];
  word[kBit] = high ? word[kBit] : taken[0];
  word[3] = high ? word[3] : taken[1];
}

// Which stage of the ring is next, and the parity of its barriers' phase.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  CONVEXT_HD void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// "mbarrier". -------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to copies; __syncthreads() then makes them known to the block.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {  // and arrive
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has completed; at once for parity 1 of a new barrier.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0)
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
}

// "cp.async.bulk.tensor". ---------------------------------------------------------------------------------------------
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap& map, uint32_t barrier, int i, int j, int k) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(&map), "r"(barrier), "r"(i), "r"(j), "r"(k)
      : "memory");
}
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap& map, uint32_t barrier, int i, int j, int k,
                                          int l) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(i), "r"(j), "r"(k), "r"(l)
      : "memory");
}
// Coordinates c w h d n and offsets of the tap w h d, as many of them as the map's rank says.
__device__ __forceinline__ void copy_im2col(uint32_t to, const CUtensorMap& map, int rank, uint32_t barrier, int c,
                                            int w, int h, int d, int n, int by_w, int by_h, int by_d) {
  const uint16_t s = static_cast<uint16_t>(by_w), r = static_cast<uint16_t>(by_h), t = static_cast<uint16_t>(by_d);
  if (rank == 3)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2], {%6};" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(c), "r"(w), "r"(n), "h"(s)
        : "memory");
  else if (rank == 4)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2], {%7, %8};" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(s), "h"(r)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6, %7}], [%2], {%8, %9, %10};" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(d), "r"(n), "h"(s), "h"(r), "h"(t)
        : "memory");
}

// "wgmma". ------------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kOutstanding>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOutstanding) : "memory");
}

#define CONVEXT_SUMS_8(d, i)                                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define CONVEXT_SUMS_32(d, i) \
  CONVEXT_SUMS_8(d, i), CONVEXT_SUMS_8(d, i + 8), CONVEXT_SUMS_8(d, i + 16), CONVEXT_SUMS_8(d, i + 24)
#define CONVEXT_NAMES_32                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CONVEXT_NAMES_64                                                                              \
  CONVEXT_NAMES_32                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CONVEXT_WGMMA_64(type)                                                          \
  asm volatile(                                                                         \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"                                  \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" CONVEXT_NAMES_32 \
      "}, %32, %33, add, 1, 1, %35, %36;\n}"                                            \
      : CONVEXT_SUMS_32(sums, 0)                                                        \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kMajorA ? 1 : 0), "n"(kMajorB ? 1 : 0))
#define CONVEXT_WGMMA_128(type)                                                          \
  asm volatile(                                                                          \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                   \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" CONVEXT_NAMES_64 \
      "}, %64, %65, add, 1, 1, %67, %68;\n}"                                             \
      : CONVEXT_SUMS_32(sums, 0), CONVEXT_SUMS_32(sums, 32)                              \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kMajorA ? 1 : 0), "n"(kMajorB ? 1 : 0))

// sums (+)= a b for 64 rows, kColumns columns and 16 values between. kMajorA, kMajorB: MN-major operands.
template <typename T, bool kMajorA, bool kMajorB>
__device__ __forceinline__ void wgmma(float (&sums)[32], uint64_t a, uint64_t b, bool add) {
  static_assert(sizeof(T) == 2, "16-bit types");
  if constexpr (std::is_same_v<T, Half>)
    CONVEXT_WGMMA_64("f16");
  else
    CONVEXT_WGMMA_64("bf16");
}
template <typename T, bool kMajorA, bool kMajorB>
__device__ __forceinline__ void wgmma(float (&sums)[64], uint64_t a, uint64_t b, bool add) {
  static_assert(sizeof(T) == 2, "16-bit types");
  if constexpr (std::is_same_v<T, Half>)
    CONVEXT_WGMMA_128("f16");
  else
    CONVEXT_WGMMA_128("bf16");
}

#endif

}  // namespace convext::cuda
