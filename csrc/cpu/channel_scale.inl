// See ../channel_scale.h. Each value is read once and written once: memory is the bound.
#include "activations.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// Of one channel.
template <typename T, Activation kActivation>
void scale_plane(const T* x, int64_t count, float scale, float shift, float a, float b, T* y) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t some = least(count - i, lanes);
    store_first(y + i, activated<kActivation>(load_first(x + i, some) * scale + shift, a, b), some);
  }
}

// Of successive channels of one place.
template <typename T, Activation kActivation>
void scale_place(const T* x, int64_t count, const float* scale, const float* shift, float a, float b, T* y) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t some = least(count - i, lanes);
    const Vec<float> line = load_first(x + i, some) * load_first(scale + i, some) + load_first(shift + i, some);
    store_first(y + i, activated<kActivation>(line, a, b), some);
  }
}

// In the order of Activation.
template <typename T>
constexpr void (*kScalePlane[])(const T*, int64_t, float, float, float, float, T*) = {
    scale_plane<T, Activation::none>,        scale_plane<T, Activation::clamp>,
    scale_plane<T, Activation::leaky_relu>,  scale_plane<T, Activation::sigmoid>,
    scale_plane<T, Activation::silu>,        scale_plane<T, Activation::tanh>,
    scale_plane<T, Activation::gelu>,        scale_plane<T, Activation::gelu_tanh>,
    scale_plane<T, Activation::hardsigmoid>, scale_plane<T, Activation::hardswish>,
};
template <typename T>
constexpr void (*kScalePlace[])(const T*, int64_t, const float*, const float*, float, float, T*) = {
    scale_place<T, Activation::none>,        scale_place<T, Activation::clamp>,
    scale_place<T, Activation::leaky_relu>,  scale_place<T, Activation::sigmoid>,
    scale_place<T, Activation::silu>,        scale_place<T, Activation::tanh>,
    scale_place<T, Activation::gelu>,        scale_place<T, Activation::gelu_tanh>,
    scale_place<T, Activation::hardsigmoid>, scale_place<T, Activation::hardswish>,
};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
