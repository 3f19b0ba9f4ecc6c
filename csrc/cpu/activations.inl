// Activations of vectors of floats. exp, to 1.5 units in the last place:
//   x = n ln 2 + r,  |r| <= ln 2 / 2,  e^r - 1 = r + r^2/2! + ... + r^7/7!  (what follows is below 2^-27)
//   e^x = 2^n e^r
// from which tanh = (e^2x - 1) / (e^2x + 1) and erf (Abramowitz and Stegun 7.1.26, error below 1.5e-7) follow. Sigmoid
// and SiLU need nothing near e^0 - 1 and take the shorter
//   e^-x = 2^n 2^f,  f = -x log2 e - n,  |f| <= 1/2,  2^f = 1 + f q(f),  q of degree 5 (minimax: 1.6e-8 of 2^f)
// whose f, off by |x| 1.9e-8 since log2 e is rounded, matters where the sigmoid is steep: x small. SiLU is a pass over
// what a convolution has just made, and as long as that: it divides by a reciprocal estimated to 2^-12 and one step of
// Newton's, to 1.3e-7, where there is such an instruction.
namespace convext::cpu::CONVEXT_ISA {
namespace {

typedef typename IndexType<float>::type I32Vec;

// e^x = s (1 + p): s and p.
CONVEXT_INLINE void exp_parts(Vec<float> x, Vec<float>* s, Vec<float>* p) {
  constexpr float kMost = 87, kRound = 12582912;                      // 1.5 * 2^23: adding it rounds to an integer
  x = smaller(splat<float>(kMost), larger(splat<float>(-kMost), x));  // a NaN stays, here and below
  const Vec<float> shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec<float> sum = splat<float>(1.f / 5040);
  sum = sum * r + 1.f / 720;
  sum = sum * r + 1.f / 120;
  sum = sum * r + 1.f / 24;
  sum = sum * r + 1.f / 6;
  sum = sum * r + 0.5f;
  *p = sum * (r * r) + r;
  const I32Vec bits = (reinterpret_cast<I32Vec>(shifted) + 127) << 23;  // n stands in the lowest bits of shifted
  *s = reinterpret_cast<Vec<float>>(bits);
}

// 1 + e^-x.
CONVEXT_INLINE Vec<float> one_and_exp(Vec<float> x) {
  constexpr float kMost = 87, kRound = 12582912;                      // as above
  x = smaller(splat<float>(kMost), larger(splat<float>(-kMost), x));  // a NaN stays
  const Vec<float> shifted = x * -1.44269504f + kRound, n = shifted - kRound;
  const Vec<float> f = x * -1.44269504f - n;
  Vec<float> sum = splat<float>(1.53533621e-4f);
  sum = sum * f + 1.33988746e-3f;
  sum = sum * f + 9.61843736e-3f;
  sum = sum * f + 5.55033247e-2f;
  sum = sum * f + 2.40226479e-1f;
  sum = sum * f + 6.93147203e-1f;
  sum = sum * f + 1.f;
  const I32Vec bits = (reinterpret_cast<I32Vec>(shifted) << 23) + (127 << 23);
  return sum * reinterpret_cast<Vec<float>>(bits) + 1.f;
}

CONVEXT_INLINE Vec<float> sigmoid_of(Vec<float> x) { return 1.f / one_and_exp(x); }

// x / d, d >= 1.
CONVEXT_INLINE Vec<float> divided(Vec<float> x, Vec<float> d) {
#if CONVEXT_ISA_LEVEL == 2
  const Vec<float> near = reinterpret_cast<Vec<float>>(_mm256_rcp_ps(reinterpret_cast<__m256>(d)));
  return x * (near * (2.f - d * near));
#else
  return x / d;
#endif
}

CONVEXT_INLINE Vec<float> tanh_of(Vec<float> x) {
  Vec<float> s, p;
  const Vec<float> most = smaller(splat<float>(20), larger(splat<float>(-20), x));
  exp_parts(most + most, &s, &p);
  const Vec<float> less_one = s * p + (s - 1.f);
  return less_one / (less_one + 2.f);
}

CONVEXT_INLINE Vec<float> erf_of(Vec<float> x) {
  const Vec<float> size = x < 0.f ? -x : x, t = 1.f / (1.f + 0.3275911f * size);
  Vec<float> s, p, sum = splat<float>(1.061405429f);
  exp_parts(-size * size, &s, &p);
  sum = sum * t - 1.453152027f;
  sum = sum * t + 1.421413741f;
  sum = sum * t - 0.284496736f;
  sum = sum * t + 0.254829592f;
  const Vec<float> y = 1.f - sum * t * (s * p + s);
  return x < 0.f ? -y : y;
}

template <Activation kActivation>
CONVEXT_INLINE Vec<float> activated(Vec<float> x, float a, float b) {
  switch (kActivation) {
    case Activation::none: return x;
    case Activation::clamp: return smaller(splat<float>(b), larger(splat<float>(a), x));
    case Activation::leaky_relu: return x > 0.f ? x : x * a;
    case Activation::sigmoid: return sigmoid_of(x);
    case Activation::silu: return divided(x, one_and_exp(x));
    case Activation::tanh: return tanh_of(x);
    case Activation::gelu: return 0.5f * x * (1.f + erf_of(x * 0.707106781f));
    case Activation::gelu_tanh: return 0.5f * x * (1.f + tanh_of(0.797884561f * (x + 0.044715f * x * x * x)));
    default: {
      const Vec<float> six = smaller(splat<float>(6), larger(Vec<float>{}, x + 3.f));
      return kActivation == Activation::hardswish ? x * six * (1.f / 6) : six * (1.f / 6);
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
