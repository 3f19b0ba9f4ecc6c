// Products of bfloat16 where the processor has them (AVX512-BF16, instruction set avx512_bf16): vdpbf16ps adds to each
// float the products of two pairs of bfloat16,
//
//   c += a.odd * b.odd,  then  c += a.even * b.even      both rounded to nearest; subnormal numbers count as zero
//
// twice the products of a fused multiply-add of floats, from operands of half the bytes. gemm<BFloat16Pair>() is
// gemm.inl with that for a step. A step's pair are channels 2 p and 2 p + 1 of the group, seen through one tap: what
// im2col unfolds is a convolution of half the channels, whose elements are pairs. Of an odd number of channels the last
// one has a zero beside it.
//
//   channels_last   pairs lie in memory: nothing is unfolded (channels even), gemm gathers them
//   contiguous      two planes are woven into one: where floats would be widened (unfold_lines.inl)
//
// Each element of the output is one chain of steps, as with floats: its bits do not depend on how tiles are cut.
#pragma once
#include "gemm.h"
#include "isa.h"
#include "unfold.h"

namespace convext::cpu {

// Whether products of bfloat16 are to be of pairs: then gemm<BFloat16Pair>() and bfloat16_pairs() are there.
inline bool pairs_bfloat16() { return active_isa() == Isa::avx512_bf16; }
constexpr double kPairRate = 2;  // products of pairs in the time of one of floats: counted, not timed

// The convolution over pairs: half the channels, rounded up.
inline ConvGeometry pair_geometry(const ConvGeometry& g) {
  ConvGeometry pairs = g;
  pairs.in_channels = g.groups * ceil_div(g.group_inputs(), 2);
  return pairs;
}

struct BFloat16Pairs {
  // As Unfold::unfold_pixels, of a pair_geometry, whose rows are pairs; channels: of the group.
  void (*unfold_pixels)(const ConvGeometry& pairs, int64_t channels, const BFloat16* x, const BFloat16* x_end,
                        Span pixels, Span rows, BFloat16Pair* to, int64_t width, void* scratch);
  // to[i] = (even[i], odd[i]), numbers widened; odd null: zeros.
  void (*join)(const float* even, const float* odd, int64_t count, BFloat16Pair* to);
};
const BFloat16Pairs& bfloat16_pairs();

}  // namespace convext::cpu
