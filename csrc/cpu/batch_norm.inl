// See batch_norm.cpp. A plane is of one channel; places have all their channels side by side, and kPlacesAtOnce of
// them, a quarter of a block apart, share what is loaded of a channel. There is little to compute per number: memory is
// the bound, and comes at half its speed where the places are neighbours, for no stream is then long enough to foresee.
#include "activations.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kPlacesAtOnce = 4;

// dy activation'(z), as torch's: what lies on a bend of a clamp has no gradient.
template <Activation kActivation>
CONVEXT_INLINE Vec<float> before_activation(Vec<float> dy, Vec<float> z, float a, float b) {
  switch (kActivation) {
    case Activation::clamp: return z <= a ? Vec<float>{} : z >= b ? Vec<float>{} : dy;
    case Activation::leaky_relu: return z > 0.f ? dy : dy * a;
    case Activation::silu: {
      const Vec<float> s = sigmoid_of(z);
      return dy * (s * (1.f + z * (1.f - s)));
    }
    case Activation::hardswish: return z <= -3.f ? Vec<float>{} : z >= 3.f ? dy : dy * (z * (1.f / 3) + 0.5f);
    default: return dy;
  }
}

// The sum of a few, by halves.
template <int kCount>
CONVEXT_INLINE Vec<float> sum_of(const Vec<float>* terms) {
  if constexpr (kCount == 1)
    return terms[0];
  else
    return sum_of<kCount / 2>(terms) + sum_of<kCount - kCount / 2>(terms + kCount / 2);
}

// Planes --------------------------------------------------------------------------------------------------------------

// The sum of x - centre, or of its squares.
template <bool kSquares, typename T>
CONVEXT_INLINE float sum_of_plane(const T* x, int64_t count, float centre) {
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> sums[kPlacesAtOnce] = {};
  int64_t i = 0;
  for (; i + kPlacesAtOnce * lanes <= count; i += kPlacesAtOnce * lanes)
#pragma GCC unroll 4
    for (int line = 0; line < kPlacesAtOnce; ++line) {
      const Vec<float> v = load(x + i + line * lanes) - centre;
      sums[line] += kSquares ? v * v : v;
    }
  for (; i < count; i += lanes) {
    const int64_t some = least(count - i, lanes);
    const Vec<float> past = {}, v = lane_numbers<float>() < int(some) ? load_first(x + i, some) - centre : past;
    sums[0] += kSquares ? v * v : v;
  }
  return sum_lanes<float>(sum_of<kPlacesAtOnce>(sums));
}

// Twice through, the second time in cache: the sum, and that of (x - sum / count)^2.
template <typename T>
void statistics_of_plane(const T* x, int64_t count, float* sum, float* squares) {
  *sum = sum_of_plane<false>(x, count, 0);
  *squares = sum_of_plane<true>(x, count, *sum / float(count));
}

template <typename T, Activation kActivation>
void sums_of_plane(const T* x, const T* dy, int64_t count, float mean, float scale, float shift, float a, float b,
                   float* sum, float* product) {
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> sums[kPlacesAtOnce] = {}, products[kPlacesAtOnce] = {};
  int64_t i = 0;
  for (; i + kPlacesAtOnce * lanes <= count; i += kPlacesAtOnce * lanes)
#pragma GCC unroll 4
    for (int line = 0; line < kPlacesAtOnce; ++line) {
      const Vec<float> v = load(x + i + line * lanes);
      const Vec<float> g = before_activation<kActivation>(load(dy + i + line * lanes), v * scale + shift, a, b);
      sums[line] += g;
      products[line] += g * (v - mean);
    }
  for (; i < count; i += lanes) {  // what is beyond the end has dy = 0
    const int64_t some = least(count - i, lanes);
    const Vec<float> v = load_first(x + i, some);
    const Vec<float> g = before_activation<kActivation>(load_first(dy + i, some), v * scale + shift, a, b);
    sums[0] += g;
    products[0] += g * (v - mean);
  }
  *sum = sum_lanes<float>(sum_of<kPlacesAtOnce>(sums));
  *product = sum_lanes<float>(sum_of<kPlacesAtOnce>(products));
}

template <typename T, Activation kActivation>
void input_of_plane(const T* x, const T* dy, int64_t count, float mean, float scale, float shift, float slope,
                    float offset, float a, float b, T* dx) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t some = least(count - i, lanes);
    const Vec<float> v = load_first(x + i, some);
    const Vec<float> g = before_activation<kActivation>(load_first(dy + i, some), v * scale + shift, a, b);
    store_first(dx + i, g * scale + ((v - mean) * slope + offset), some);
  }
}

// Places --------------------------------------------------------------------------------------------------------------

// x, or (x - total share)^2, of kCount places that are `apart`.
template <int kCount, bool kSquares, typename T>
CONVEXT_INLINE void add_places(const T* x, int64_t apart, int64_t channels, const float* total, float share,
                               float* sum) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t some = least(channels - c, lanes);
    const Vec<float> from = kSquares ? load_first(total + c, some) * share : Vec<float>{};
    Vec<float> terms[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const Vec<float> v = load_first(x + i * apart + c, some) - from;
      terms[i] = kSquares ? v * v : v;
    }
    store_first(sum + c, load_first(sum + c, some) + sum_of<kCount>(terms), some);
  }
}

template <bool kSquares, typename T>
CONVEXT_INLINE void sum_of_places(const T* x, int64_t places, int64_t channels, const float* total, float share,
                                  float* sum) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = 0;
  const int64_t streams = places / kPlacesAtOnce, apart = streams * channels;
  for (int64_t i = 0; i < streams; ++i, x += channels)
    add_places<kPlacesAtOnce, kSquares>(x, apart, channels, total, share, sum);
  x += (kPlacesAtOnce - 1) * apart;
  for (int64_t i = streams * kPlacesAtOnce; i < places; ++i, x += channels)
    add_places<1, kSquares>(x, apart, channels, total, share, sum);
}

// As statistics_of_plane.
template <typename T>
void statistics_of_places(const T* x, int64_t places, int64_t channels, float* sum, float* squares) {
  sum_of_places<false>(x, places, channels, sum, 1, sum);
  sum_of_places<true>(x, places, channels, sum, 1 / float(places), squares);
}

template <int kCount, Activation kActivation, typename T>
CONVEXT_INLINE void add_products(const T* x, const T* dy, int64_t apart, int64_t channels, const BatchNormScales& of,
                                 float a, float b, float* sum, float* product) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t some = least(channels - c, lanes);
    const Vec<float> mean = load_first(of.mean + c, some), scale = load_first(of.scale + c, some),
                     shift = load_first(of.shift + c, some);
    Vec<float> terms[kCount], products[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const Vec<float> v = load_first(x + i * apart + c, some);
      terms[i] = before_activation<kActivation>(load_first(dy + i * apart + c, some), v * scale + shift, a, b);
      products[i] = terms[i] * (v - mean);
    }
    store_first(sum + c, load_first(sum + c, some) + sum_of<kCount>(terms), some);
    store_first(product + c, load_first(product + c, some) + sum_of<kCount>(products), some);
  }
}

template <typename T, Activation kActivation>
void sums_of_places(const T* x, const T* dy, int64_t places, int64_t channels, const BatchNormScales& of, float a,
                    float b, float* sum, float* product) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = product[c] = 0;
  const int64_t streams = places / kPlacesAtOnce, apart = streams * channels;
  for (int64_t i = 0; i < streams; ++i, x += channels, dy += channels)
    add_products<kPlacesAtOnce, kActivation>(x, dy, apart, channels, of, a, b, sum, product);
  x += (kPlacesAtOnce - 1) * apart, dy += (kPlacesAtOnce - 1) * apart;
  for (int64_t i = streams * kPlacesAtOnce; i < places; ++i, x += channels, dy += channels)
    add_products<1, kActivation>(x, dy, apart, channels, of, a, b, sum, product);
}

template <typename T, Activation kActivation>
void input_of_places(const T* x, const T* dy, int64_t places, int64_t channels, const BatchNormScales& of,
                     const float* slope, const float* offset, float a, float b, T* dx) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t i = 0; i < places; ++i, x += channels, dy += channels, dx += channels)
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t some = least(channels - c, lanes);
      const Vec<float> v = load_first(x + c, some), scale = load_first(of.scale + c, some);
      const Vec<float> z = v * scale + load_first(of.shift + c, some);
      const Vec<float> g = before_activation<kActivation>(load_first(dy + c, some), z, a, b);
      const Vec<float> centred = v - load_first(of.mean + c, some);
      store_first(dx + c, g * scale + (centred * load_first(slope + c, some) + load_first(offset + c, some)), some);
    }
}

template <typename T, Activation kActivation>
constexpr BatchNormKernels<T> kBatchNorm = {sums_of_plane<T, kActivation>, input_of_plane<T, kActivation>,
                                            sums_of_places<T, kActivation>, input_of_places<T, kActivation>};

// Of an activation that trains().
template <typename T>
const BatchNormKernels<T>& batch_norm_kernels(Activation activation) {
  switch (activation) {
    case Activation::clamp: return kBatchNorm<T, Activation::clamp>;
    case Activation::leaky_relu: return kBatchNorm<T, Activation::leaky_relu>;
    case Activation::silu: return kBatchNorm<T, Activation::silu>;
    case Activation::hardswish: return kBatchNorm<T, Activation::hardswish>;
    default: return kBatchNorm<T, Activation::none>;
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
