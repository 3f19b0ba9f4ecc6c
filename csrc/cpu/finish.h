// The epilogue of a convolution (../epilogue.h) on the CPU, in one of two places:
//   * in registers, where a kernel stores its sums: residual, clamp and leaky ReLU, two or three instructions a vector
//     (Finish, finish_registers.inl's Ends). Kernels that can say so by taking a Finish;
//   * on a block of the output that a task has just made and that is still in first- or second-level cache: everything
//     else, and everything of kernels that cannot (finish_block).
// Which of them does not change the bits of piecewise linear epilogues.
#pragma once
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../algorithms.h"
#include "dtype.h"

namespace convext::cpu {

// y = min(max(v, slope v), low .. high) of v = sum + residual; `residual`: bytes from an element of the output to its
// own of the residual, 0: there is none.
template <typename A>
struct Finish {
  intptr_t residual = 0;
  A slope = 1, low = -std::numeric_limits<A>::infinity(), high = std::numeric_limits<A>::infinity();
};

// Whether the kernels that can are to finish in registers; false leaves all of it to finish_block.
template <typename T>
bool finish_in_registers(const ConvArguments& args, Finish<Accumulate<T>>* finish) {
  const Epilogue& e = args.epilogue;
  if (e.empty() || !e.piecewise_linear() || !std::is_same_v<T, Accumulate<T>>) return false;
  if (e.residual != nullptr)
    finish->residual = reinterpret_cast<intptr_t>(e.residual) - reinterpret_cast<intptr_t>(args.output);
  if (e.activation == Activation::leaky_relu) finish->slope = Accumulate<T>(e.a);
  if (e.activation == Activation::clamp) {
    finish->low = Accumulate<T>(e.a);
    finish->high = Accumulate<T>(e.b);
  }
  return true;
}

// Part of the output: channels (of all groups) from `channel` on, `rows` rows of `places` places each, the first from
// place `place` on.
struct OutputBlock {
  int64_t n, channel, channels, place, places, rows = 1;
};
// Applies the whole epilogue, if there is one, to a block that holds sums. Once for each element.
void finish_block(const ConvArguments& args, const OutputBlock& block);
// The same for all of the output, for algorithms that know nothing of epilogues.
void finish_output(const ConvArguments& args);

}  // namespace convext::cpu
