// Averages over the columns of single rows, in AVX-512 and float: see pool_direct_boxes.cpp. Windows of up to 16
// columns are added up in quads where they lie, and sixteen of them joined by shuffles, two a quad of windows; rows
// need not be turned. All windows of a row have as many whole quads, and up to one more column or three: the last quad
// is masked.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kQuadWindow = 16;  // columns of a window, at most

// How many quads the windows of a row take; none where that differs, or where they are made otherwise.
template <typename T>
CONVEXT_INLINE int64_t quads_of(const PoolGeometry& g, const Range* columns) {
  if (CONVEXT_ISA_LEVEL < 3 || !std::is_same_v<T, float>) return 0;
  if (g.kernel[0] * g.kernel[1] != 1 || g.kernel[2] > kQuadWindow || g.output[2] < 16) return 0;
  if (!g.adaptive && !inside_input(g)) return 0;
  int64_t widest = 0, narrowest = kQuadWindow;
  for (int64_t q = 0; q < g.output[2]; ++q) {
    const int64_t width = columns[q].last - columns[q].first;
    widest = greatest(widest, width), narrowest = least(narrowest, width);
  }
  const int64_t quads = ceil_div(widest, 4);
  return narrowest >= 4 * (quads - 1) ? quads : 0;
}

#if CONVEXT_ISA_LEVEL == 3
typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));

// The sums of sixteen windows; `mask` has the lanes of the last quad of each.
template <int kQuads>
CONVEXT_INLINE Vec<float> add_sixteen(const float* row, const Range* columns, const uint8_t* mask) {
  Vec<float> of[4];  // windows k, k + 4, k + 8 and k + 12
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    Quad sum[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      const float* at = row + columns[4 * m + k].first;
      sum[m] = reinterpret_cast<Quad>(_mm_maskz_loadu_ps(mask[4 * m + k], at + 4 * (kQuads - 1)));
#pragma GCC unroll 3
      for (int i = 0; i + 1 < kQuads; ++i) sum[m] += *reinterpret_cast<const Quad*>(at + 4 * i);
    }
    const auto low = __builtin_shufflevector(sum[0], sum[1], 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(sum[2], sum[3], 0, 1, 2, 3, 4, 5, 6, 7);
    of[k] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  // a0 b0 a1 b1 of every quad and a2 b2 a3 b3, a0 a1 b0 b1 and a2 a3 b2 b3
  const IndexVec<float> quad = lane_numbers<float>() & ~3, in = lane_numbers<float>() & 3;
  const IndexVec<float> pairs = quad + in / 2 + (in & 1) * 16, halves = quad + (in & 1) + in / 2 * 16;
  const Vec<float> first = __builtin_shuffle(of[0], of[1], pairs) + __builtin_shuffle(of[0], of[1], pairs + 2);
  const Vec<float> second = __builtin_shuffle(of[2], of[3], pairs) + __builtin_shuffle(of[2], of[3], pairs + 2);
  return __builtin_shuffle(first, second, halves) + __builtin_shuffle(first, second, halves + 2);
}

template <int kQuads>
void add_windows_of(const PoolGeometry& g, const Boxes& boxes, const float* x, int64_t planes, Range rows, float* y) {
  uint8_t mask[kPoolColumns];
  float count[kPoolColumns];
  int64_t end = 0;
  for (int64_t q = 0; q < g.output[2]; q = end) {
    end = least(q + kPoolColumns, g.output[2]);
    const int64_t outs = greatest(end - q, int64_t(16)), first = end - outs;
    const Range* columns = boxes.spans[2] + first;
    for (int64_t j = 0; j < outs; ++j) {
      mask[j] = uint8_t((1 << (columns[j].last - columns[j].first - 4 * (kQuads - 1))) - 1);
      count[j] = float(boxes.counts[2][first + j]);
    }
    BoxRows<float> left = {g, boxes, rows, x, y, 1};
    for (int64_t i = planes * (rows.last - rows.first); i > 0; --i) {
      BoxRow<float> of;
      left.template next<Sums<float>>(&of);
      const float* row = of.x + (of.ds.first * g.input[1] + of.hs.first) * g.input[2];
      float* to = of.y + of.row * g.output[2] + first;
      for (int64_t j = 0; j < outs; j += 16) {
        const int64_t at = least(j, outs - 16);
        store(to + at,
              add_sixteen<kQuads>(row, columns + at, mask + at) / (splat<float>(of.factor) * load(count + at)));
      }
    }
  }
}
#endif
template <typename T>
CONVEXT_INLINE void add_windows(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows, T* y,
                                int64_t quads) {
#if CONVEXT_ISA_LEVEL == 3
  if constexpr (std::is_same_v<T, float>) {
    const auto run = quads == 1   ? add_windows_of<1>
                     : quads == 2 ? add_windows_of<2>
                     : quads == 3 ? add_windows_of<3>
                                  : add_windows_of<4>;
    run(g, boxes, x, planes, rows, y);
  }
#endif
}

template <typename T>
void avg_forward_boxes(const PoolGeometry& g, const Boxes& boxes, const T* x, int64_t planes, Range rows, T* y) {
  const int64_t quads = turned_whole<Accumulate<T>>(g) ? 0 : quads_of<T>(g, boxes.spans[2]);
  if (quads > 0)
    add_windows(g, boxes, x, planes, rows, y, quads);
  else
    reduce_boxes<Sums<Accumulate<T>>>(g, boxes, x, planes, rows, y);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
