// Winograd's minimal filtering F(m, r): m outputs of a filter of r taps from n = m + r - 1 inputs with n products
// instead of m r, in every dimension:
//
//   y = A^T [(G g) * (B^T d)]        d: n inputs, g: r taps, y: m outputs, *: product element by element
//
// It is polynomial multiplication by evaluation and interpolation (Toom and Cook), turned round: a filter is the
// transpose of a product. Filter and outputs are polynomials evaluated at n - 1 points and at infinity. The points here
// are 0 and P pairs +a, -a, so that the rows of a pair share their even and their odd part. With y = x^2,
//
//   Q_p(y) = product over the other pairs q of (y - a_q^2)        F(y) = product over all pairs of (y - a_q^2)
//
// the rows are, points ordered 0, +a_1, -a_1, ..., +a_P, -a_P, infinity (their number n = 2 P + 2):
//
//          B^T d                                             G g                            A^T: output i takes
//   0      sum_j F_j d_(2j)                                  g_0 / F_0                      1 if i = 0
//   +-a_p  sum_j Q_pj d_(2j+2) +- a_p sum_j Q_pj d_(2j+1)    sum_i (+-a_p)^i g_i / N_p      (+-a_p)^i
//   inf    sum_j F_j d_(2j+1)                                g_(r-1)                        1 if i = m - 1
//
// with N_p = 2 a_p^2 Q_p(a_p^2). F(4,3) and F(2,5) have the same n, hence the same B^T. Where n is odd, as for F(4,2),
// zero is no point: its row is gone, and the others are
//
//   +-a_p  a_p sum_j Q_pj d_(2j) +- sum_j Q_pj d_(2j+1)      sum_i (+-a_p)^i g_i / N_p      (+-a_p)^i
//   inf    sum_j F_j d_(2j)                                  g_(r-1)                        1 if i = m - 1
//
// with N_p = 2 a_p Q_p(a_p^2).
//
// The three sums over g, d and y are one trilinear form, so the gradients are its other contractions, with the same
// matrices: that of g is G^T [(A y) * (B^T d)], where y acts as a filter of m taps on d.
//
// The points decide the error: the products are as exact as any, but A^T and B^T cancel. Of small fractions, searched,
// these give the least norm-wise error, in multiples of that of the plain sum: F(2,3) 1.7, F(4,3) 4.9 (+-1, +-2: 10.9),
// F(2,5) 3.2, F(4,2) 1.4, F(2,4) 1.8, F(4,4) 6. See also tests/test_winograd.py, which holds the identity to exact
// fractions.
#pragma once
#include "geometry.h"

namespace convext::winograd {

// The positive points of n = 4, 5, 6, 7, 8.
constexpr double kPoints[][3] = {
    {1}, {3. / 8, 5. / 4}, {5. / 8, 3. / 2}, {1. / 4, 7. / 8, 7. / 4}, {1. / 2, 1, 3. / 2}};

template <int M, int R>
struct Minimal {
  static constexpr int m = M, r = R, n = M + R - 1, pairs = (n - 1) / 2;
  static constexpr bool zero = n % 2 == 0;  // is a point
  static_assert(n >= 4 && n <= 8, "points are known for these");

  struct Numbers {
    double power[pairs][n];  // a_p^i
    double q[pairs][pairs];  // Q_pj
    double f[pairs + 1];     // F_j
    double divisor[pairs];   // N_p
  };
  static constexpr Numbers compute() {
    Numbers numbers = {};
    const double* points = kPoints[n - 4];
    for (int p = 0; p < pairs; ++p) {
      numbers.power[p][0] = 1;
      for (int i = 1; i < n; ++i) numbers.power[p][i] = numbers.power[p][i - 1] * points[p];
    }
    for (int p = 0; p <= pairs; ++p) {  // the product over all pairs but p; over all for p = pairs
      double c[pairs + 1] = {1};
      int degree = 0;
      for (int other = 0; other < pairs; ++other) {
        if (other == p) continue;
        ++degree;
        for (int i = degree; i >= 0; --i)
          c[i] = (i > 0 ? c[i - 1] : 0) - (i < degree ? numbers.power[other][2] * c[i] : 0);
      }
      for (int j = 0; j <= degree; ++j) (p < pairs ? numbers.q[p][j] : numbers.f[j]) = c[j];
    }
    for (int p = 0; p < pairs; ++p) {
      double value = 0;
      for (int j = pairs - 1; j >= 0; --j) value = value * numbers.power[p][2] + numbers.q[p][j];
      numbers.divisor[p] = 2 * numbers.power[p][zero ? 2 : 1] * value;
    }
    return numbers;
  }
  static constexpr Numbers k = compute();
};

// One place, one tap: a dimension that is not transformed.
struct Plain {
  static constexpr int m = 1, r = 1, n = 1, pairs = 0;
  static constexpr bool zero = true;
};

}  // namespace convext::winograd

namespace convext {

// The tiles there are.
enum class WinogradTile {
  f2x2_3x3,
  f4x4_3x3,
  f2x2_5x5,
  f4x4_5x5,
  f2_3,
  f4_3,
  f2_5,
  f4_5,
  f4x4_2x2,
  f2x4_5x5,
  f2x2_4x4,
  f4x4_4x4
};

// The tile for a kernel. Larger 5x5 tiles are for mode fast; for 3x3 the cheaper of two, cost(m) being that of m x m
// outputs.
template <typename Cost>
WinogradTile choose_winograd_tile(const ConvGeometry& g, const Cost& cost) {
  const bool five = g.kernel[2] == 5;
  if (g.kernel[1] == 1) return five ? WinogradTile::f2_5 : WinogradTile::f4_3;
  if (five) return g.winograd == WinogradMode::fast ? WinogradTile::f4x4_5x5 : WinogradTile::f2x2_5x5;
  return cost(2) < cost(4) ? WinogradTile::f2x2_3x3 : WinogradTile::f4x4_3x3;
}

// Tiles of m_h x m_w outputs of one depth of the output.
inline int64_t winograd_tiles(const ConvGeometry& g, int m_h, int m_w) {
  return ceil_div(g.output[1], m_h) * ceil_div(g.output[2], m_w);
}

// What no device's winograd can do, or nullptr.
inline const char* winograd_refusal(const ConvGeometry& g, Direction direction) {
  if (g.stride[1] != 1 || g.stride[2] != 1) return "the stride must be 1";
  if (g.dilation[0] != 1 || g.dilation[1] != 1 || g.dilation[2] != 1) return "the dilation must be 1";
  const bool square = g.kernel[1] == g.kernel[2] || g.kernel[1] == 1;
  if (!square || (g.kernel[2] != 3 && g.kernel[2] != 5)) return "the kernel must be 3x3, 5x5, 3 or 5 (with any depth)";
  if (direction == Direction::backward_input && g.stride[0] != 1)
    return "the gradient of the input needs stride 1 along depth too";
  return nullptr;
}

}  // namespace convext
