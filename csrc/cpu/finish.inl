// Epilogues on runs of the output, see finish.h.
#include "activations.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename T, Activation kActivation>
void finish_run(T* y, const T* residual, int64_t count, bool last, float a, float b) {
  constexpr int64_t lanes = kLanes<float>;
  const bool before = residual != nullptr && !last, after = residual != nullptr && last;
  int64_t i = 0;
  if (residual == nullptr) {
    for (; i + 2 * lanes <= count; i += 2 * lanes) {  // two chains of operations side by side
      const Vec<float> v = activated<kActivation>(load(y + i), a, b);
      const Vec<float> w = activated<kActivation>(load(y + i + lanes), a, b);
      store(y + i, v);
      store(y + i + lanes, w);
    }
  }
  for (; i < count; i += lanes) {
    const int64_t some = least(count - i, lanes);
    Vec<float> v = load_first(y + i, some);
    if (before) v += load_first(residual + i, some);
    v = activated<kActivation>(v, a, b);
    if (after) v += load_first(residual + i, some);
    store_first(y + i, v, some);
  }
}

// In the order of Activation.
template <typename T>
constexpr void (*kFinishRuns[])(T*, const T*, int64_t, bool, float, float) = {
    finish_run<T, Activation::none>,      finish_run<T, Activation::clamp>,     finish_run<T, Activation::leaky_relu>,
    finish_run<T, Activation::sigmoid>,   finish_run<T, Activation::silu>,      finish_run<T, Activation::tanh>,
    finish_run<T, Activation::gelu>,      finish_run<T, Activation::gelu_tanh>, finish_run<T, Activation::hardsigmoid>,
    finish_run<T, Activation::hardswish>,
};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
