// The kernels of im2col's gradient of a pointwise weight, see conv_im2col_pointwise_weight.cpp.
#include "conv_im2col_weight_lanes.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kPanelsAtOnce =
    16;  // written side by side: their lines stay in the first-level cache, pages in its TLB

// kVectors hold a panel's rows.
template <typename T, int kVectors>
void pack_whole_rows(const T* from, int64_t step, int64_t places, int64_t panels, int64_t width, Accumulate<T>* to,
                     int64_t stride) {
  using A = Accumulate<T>;
  for (; panels > 0; panels -= kPanelsAtOnce, from += kPanelsAtOnce * width, to += kPanelsAtOnce * stride) {
    const int64_t some = least(panels, kPanelsAtOnce);
    const int64_t ahead = ceil_div(kAheadElements, step) * step;
    const T* row = from;
    A* place = to;
    for (int64_t m = 0; m < places; ++m, row += step, place += width) {
      for (int64_t r = 0; r < some * width; r += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + ahead + r);
      const T* at = row;
      A* panel = place;
#pragma GCC unroll 4
      for (int64_t i = 0; i < some; ++i, at += width, panel += stride)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store(panel + v * kLanes<A>, load(at + v * kLanes<A>));
    }
  }
}

template <typename T>
void pack_rows(const T* from, int64_t step, int64_t readable, int64_t places, int64_t panels, int64_t width,
               Accumulate<T>* to, int64_t stride) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t vectors = ceil_div(width, kCount),
                whole = clamp((readable - vectors * kCount + width) / width, 0, panels);
  switch (vectors) {
    case 1: pack_whole_rows<T, 1>(from, step, places, whole, width, to, stride); break;
    case 2: pack_whole_rows<T, 2>(from, step, places, whole, width, to, stride); break;
    default: pack_whole_rows<T, 3>(from, step, places, whole, width, to, stride);
  }
  for (int64_t i = whole; i < panels; ++i)
    for (int64_t m = 0; m < places; ++m) {
      const T* at = from + m * step + i * width;
      for (int64_t r = 0; r < width; r += kCount)
        store(to + i * stride + m * width + r, load_some(at + r, 0, least(width - r, kCount)));
    }
}

template <typename T>
void copy_rows(const T* from, int64_t step, int64_t stride, int64_t rows, int64_t places, Accumulate<T>* to,
               int64_t pitch) {
  const AxisView view = {stride, 1, 0, (places - 1) * stride + 1, 0, 0, PaddingMode::zeros};
  for (int64_t i = 0; i < rows; ++i, from += step, to += pitch) fill_row(to, from, view, 0, places);
}

// A few panels at a time, as above.
template <typename T>
void pack_some_lanes(const T* from, bool channels_last, int64_t step, int64_t lanes, int64_t places, Accumulate<T>* to,
                     int64_t width, int64_t stride) {
  for (int64_t k = 0; k < lanes; k += kPanelsAtOnce * width)
    pack_lanes(from + k * (channels_last ? 1 : step), channels_last, step, least(lanes - k, kPanelsAtOnce * width),
               places, to + k / width * stride, width, stride);
}

template <typename A>
void add_parts(A* sums, int64_t count, int64_t parts, int64_t apart) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const int64_t some = least<int64_t>(count - i, kLanes<A>);
    Vec<A> sum = load_first(sums + i, some);
    for (int64_t part = 1; part < parts; ++part) sum += load_first(sums + part * apart + i, some);
    store_first(sums + i, sum, some);
  }
}

template <typename T>
void write_sums(const Accumulate<T>* sums, int64_t sums_step, int64_t rows, int64_t lanes, bool turned, T* to,
                int64_t step) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  if (turned) return store_turned(sums, sums_step, rows, lanes, to, step);
  for (int64_t i = 0; i < rows; ++i, sums += sums_step, to += step) {
    int64_t j = 0;
    for (; j + kCount <= lanes; j += kCount) store(to + j, load(sums + j));
    if (j < lanes) store_some(to + j, load(sums + j), lanes - j, 1);
  }
}

template <typename T>
constexpr im2col::PointwiseKernels<T> kPointwiseKernels = {pack_rows<T>, copy_rows<T>, pack_some_lanes<T>,
                                                           add_parts<Accumulate<T>>, write_sums<T>};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
