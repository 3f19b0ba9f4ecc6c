// Twin of csrc/cuda/tensor_core.cuh: matrix fragments, by the layouts that the PTX manual documents (ldmatrix; mma
// m16n8k16 and m16n8k8). With group = lane / 4 and member = lane % 4, a register of 32 bits holds w elements (two of 16
// bits or one of 32), and for registers i:
//   a (16 x 8w)   row group + 8 (i % 2),  columns w (member + 4 (i / 2)) ...
//   b (8w x 8)    rows w (member + 4 i) ...,  column group
//   c (16 x 8)    row group + 8 (i / 2),  column 2 member + i % 2
#pragma once
#include "../../csrc/cpu/dtype.h"
#include "warp.h"

namespace emulator {

// Rows of 16 bytes, whose addresses lanes 8 j to 8 j + 7 give for matrix j. Each lane gets, of every matrix, the 32
// bits at row group, word member; transposed: the two halves at rows 2 member, 2 member + 1, column group.
inline void load_matrices(unsigned* registers, const void* row, int count, bool transposed) {
  struct Data {
    unsigned* registers;
    const char* row;
  } mine = {registers, static_cast<const char*>(row)};
  block.current->file = __FILE__, block.current->line = __LINE__;
  if (lane_of(block.current->thread) < 8u * unsigned(count) &&
      (reinterpret_cast<uintptr_t>(row) % 16 != 0 || !in_shared(row, 16)))
    fail("ldmatrix of what is no row of shared memory", block.current);
  meet(
      "ldmatrix", kAllLanes, mine,
      [&](Data** data, unsigned there) {
        if (there != kAllLanes) fail("ldmatrix without a whole warp", block.current);
        for (int j = 0; j < count; ++j)
          for (int lane = 0; lane < int(kLanes); ++lane) {
            const int group = lane / 4, member = lane % 4;
            char* to = reinterpret_cast<char*>(&data[lane]->registers[j]);
            if (transposed)
              for (int half = 0; half < 2; ++half)
                std::memcpy(to + 2 * half, data[8 * j + 2 * member + half]->row + 2 * group, 2);
            else
              std::memcpy(to, data[8 * j + group]->row + 4 * member, 4);
          }
      },
      __FILE__, __LINE__);
}

// c += a b. number(register, i): the i-th of the kWidth elements of a register.
template <int kWidth, typename Number>
void multiply_matrices(const char* step, float* c, const unsigned* a, const unsigned* b, const Number& number) {
  struct Data {
    float* c;
    const unsigned *a, *b;
  } mine = {c, a, b};
  meet(
      step, kAllLanes, mine,
      [&](Data** data, unsigned there) {
        if (there != kAllLanes) fail("mma without a whole warp", block.current);
        constexpr int kDepth = 8 * kWidth;
        float left[16][kDepth], right[8][kDepth];
        for (int lane = 0; lane < int(kLanes); ++lane) {
          const int group = lane / 4, member = lane % 4;
          for (int w = 0; w < kWidth; ++w) {
            for (int i = 0; i < 4; ++i)
              left[group + 8 * (i % 2)][kWidth * (member + 4 * (i / 2)) + w] = number(data[lane]->a[i], w);
            for (int i = 0; i < 2; ++i) right[group][kWidth * (member + 4 * i) + w] = number(data[lane]->b[i], w);
          }
        }
        for (int lane = 0; lane < int(kLanes); ++lane)
          for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            float sum = data[lane]->c[i];
            for (int k = 0; k < kDepth; ++k) sum += left[row][k] * right[column][k];
            data[lane]->c[i] = sum;
          }
      },
      __FILE__, __LINE__);
}

inline void multiply_float16(float* c, const unsigned* a, const unsigned* b) {
  multiply_matrices<2>("mma float16", c, a, b, [](unsigned bits, int i) {
    return convext::cpu::to_float(convext::cpu::Half{uint16_t(bits >> 16 * i)});
  });
}
inline void multiply_bfloat16(float* c, const unsigned* a, const unsigned* b) {
  multiply_matrices<2>("mma bfloat16", c, a, b, [](unsigned bits, int i) {
    return convext::cpu::to_float(convext::cpu::BFloat16{uint16_t(bits >> 16 * i)});
  });
}

// A float32 with a mantissa of ten bits: round to nearest, ties away from zero.
inline unsigned to_tf32(float x) {
  const unsigned bits = __float_as_uint(x);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}
inline void multiply_tf32(float* c, const unsigned* a, const unsigned* b) {
  multiply_matrices<1>("mma tf32", c, a, b, [](unsigned bits, int) {
    const float number = __uint_as_float(bits);
    if (number == number && (bits & 0x1fff) != 0) fail("mma of what is not rounded to tf32", block.current);
    return number;
  });
}

}  // namespace emulator
