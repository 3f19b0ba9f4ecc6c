// Powers, roots and their slopes, element by element: see power.cpp. The power is 2, 3 or 4.

#include "pool_direct.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <int kPower, typename V>
CONVEXT_INLINE V power_of(V x) {
  if (kPower == 1) return x;
  const V square = x * x;
  return kPower == 2 ? square : kPower == 3 ? square * x : square * square;
}

CONVEXT_INLINE Vec<float> square_root(Vec<float> v) {
#if CONVEXT_ISA_LEVEL == 3
  return reinterpret_cast<Vec<float>>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
#elif CONVEXT_ISA_LEVEL == 2
  return reinterpret_cast<Vec<float>>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
CONVEXT_INLINE Vec<double> square_root(Vec<double> v) {
#if CONVEXT_ISA_LEVEL == 3
  return reinterpret_cast<Vec<double>>(_mm512_sqrt_pd(reinterpret_cast<__m512d>(v)));
#elif CONVEXT_ISA_LEVEL == 2
  return reinterpret_cast<Vec<double>>(_mm256_sqrt_pd(reinterpret_cast<__m256d>(v)));
#else
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// The bits of a number divided by three, moved: its cube root to 4 %.
CONVEXT_INLINE Vec<float> near_cube_root(Vec<float> v) {
  const IndexVec<float> bits = reinterpret_cast<IndexVec<float>>(v);
  const Vec<float> third = __builtin_convertvector(bits, Vec<float>) * (1.0f / 3.0f);
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(third, IndexVec<float>) + 0x2a5137a0);
}
CONVEXT_INLINE Vec<double> near_cube_root(Vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) {
    int64_t bits;
    const double lane = v[i];
    __builtin_memcpy(&bits, &lane, sizeof bits);
    bits = bits / 3 + 0x2a9f7893782da1ce;
    double root;
    __builtin_memcpy(&root, &bits, sizeof root);
    v[i] = root;
  }
  return v;
}
// By Halley's iteration, each step of which triples the digits, in a form that does not overflow: y (y + 2 r) / (2 y +
// r) with r = s / y^2. Numbers so small that they have lost digits are scaled first. NaN of what is negative.
template <typename A>
CONVEXT_INLINE Vec<A> cube_root(Vec<A> s) {
  constexpr A kSmall = sizeof(A) == 4 ? A(0x1p-100) : A(0x1p-960), kScale = sizeof(A) == 4 ? A(0x1p60) : A(0x1p120);
  constexpr A kScaled = sizeof(A) == 4 ? A(0x1p-20) : A(0x1p-40);
  const Vec<A> zero = {}, infinity = splat<A>(A(__builtin_inf()));
  const auto small = greater(splat<A>(kSmall), s);
  const Vec<A> v = choose(small, s * kScale, s);
  Vec<A> y = near_cube_root(v);
#pragma GCC unroll 3
  for (int i = 0; i < (sizeof(A) == 4 ? 2 : 3); ++i) {
    const Vec<A> r = v / (y * y);
    y = y * ((y + r * A(2)) / (y * A(2) + r));
  }
  y = choose(small, y * kScaled, y);
  y = choose(greater(infinity, s), y, s);  // infinity and NaN are their own
  y = choose(greater(s, zero), y, s - s);
  y = choose(greater(zero, s), splat<A>(A(__builtin_nan(""))), y);
  return choose(greater(s, -infinity) | is_nan(s), y, infinity);  // as pow(-infinity, 1 / 3) is
}

template <int kPower, typename A>
CONVEXT_INLINE Vec<A> root_of(Vec<A> s) {
  if (kPower == 3) return cube_root<A>(s);
  const Vec<A> root = square_root(s);
  return kPower == 2 ? root : square_root(root);
}

template <int kPower, typename T>
CONVEXT_INLINE void raise_by(const T* x, int64_t count, T* to) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  for (int64_t i = 0; i < count; i += kL) {
    const int64_t n = count - i;
    store_first(to + i, power_of<kPower>(load_first(x + i, n)), n);
  }
}
// x^power
template <typename T>
void raise_all(int power, const T* x, int64_t count, T* to) {
  if (power == 2) return raise_by<2>(x, count, to);
  return power == 3 ? raise_by<3>(x, count, to) : raise_by<4>(x, count, to);
}

template <int kPower, typename T>
CONVEXT_INLINE void roots_by(int64_t places, int64_t count, T* y) {
  using A = Accumulate<T>;
  const Vec<A> factor = splat<A>(A(places));
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const int64_t n = count - i;
    store_first(y + i, root_of<kPower, A>(load_first(y + i, n) * factor), n);
  }
}
// (places y)^(1 / power), in place
template <typename T>
void roots(int power, int64_t places, int64_t count, T* y) {
  if (power == 2) return roots_by<2>(places, count, y);
  return power == 3 ? roots_by<3>(places, count, y) : roots_by<4>(places, count, y);
}

template <int kPower, typename T>
CONVEXT_INLINE void root_shares_by(int64_t places, const T* dy, const T* y, int64_t count, T* to) {
  using A = Accumulate<T>;
  const Vec<A> factor = splat<A>(A(places)), zero = {};
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const int64_t n = count - i;
    const Vec<A> root = load_first(y + i, n), share = load_first(dy + i, n) * (factor / power_of<kPower - 1>(root));
    store_first(to + i, choose(greater(root, zero) | is_nan(root), share, zero), n);
  }
}
// dy places / y^(power - 1), zero where y is
template <typename T>
void root_shares(int power, int64_t places, const T* dy, const T* y, int64_t count, T* to) {
  if (power == 2) return root_shares_by<2>(places, dy, y, count, to);
  return power == 3 ? root_shares_by<3>(places, dy, y, count, to) : root_shares_by<4>(places, dy, y, count, to);
}

template <int kPower, typename T>
CONVEXT_INLINE void power_slopes_by(const T* x, int64_t count, T* dx) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
  for (int64_t i = 0; i < count; i += kL) {
    const int64_t n = count - i;
    store_first(dx + i, load_first(dx + i, n) * power_of<kPower - 1>(load_first(x + i, n)), n);
  }
}
// dx x^(power - 1), in place
template <typename T>
void power_slopes(int power, const T* x, int64_t count, T* dx) {
  if (power == 2) return power_slopes_by<2>(x, count, dx);
  return power == 3 ? power_slopes_by<3>(x, count, dx) : power_slopes_by<4>(x, count, dx);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
