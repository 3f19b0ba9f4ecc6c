// Tiles of the direct convolution: the part of a source (input or output gradient) that a band of outputs sees, copied
// once into a small array on the stack as [channel][d plane and slot][w plane][h plane and slot][w slot]. The copy
// widens half types, writes the padding of every mode, sorts columns by stride phase and turns channels_last into
// channel planes; the kernels behind it know none of these. Output (row, column) j = row * pitch + column (pitch: slots
// of a w plane) sees element j + offset of the tap, so vectors run over row ends: the lanes between two rows are
// computed and dropped.
//
// Sizes: tile 24 KB, which stays in the first-level cache, sums 24 KB, weights 16 KB: with small tables, what a task
// has on its stack. Vectors may read and write up to one vector past the tile's end: it has that slack.

#include "finish_registers.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename A>
using LaneMask = decltype(Vec<A>{} > Vec<A>{});

// v where the mask holds, else zeros.
template <typename A>
CONVEXT_INLINE Vec<A> where(const LaneMask<A>& mask, Vec<A> v) {
  return reinterpret_cast<Vec<A>>(reinterpret_cast<LaneMask<A>>(v) & mask);
}

template <typename A>
constexpr int64_t kTileSize = 24 * 1024 / int64_t(sizeof(A));
template <typename A>
constexpr int64_t kSumsSize = 24 * 1024 / int64_t(sizeof(A));
template <typename A>
constexpr int64_t kWeightsSize = 16 * 1024 / int64_t(sizeof(A));
constexpr int64_t kMaxTaps = 128;           // of a tile
constexpr int64_t kFarSource = 256 * 1024;  // bytes of an image that do not stay in second-level cache

int64_t greatest_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

CONVEXT_INLINE int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }
CONVEXT_INLINE int64_t clamp(int64_t a, int64_t low, int64_t high) { return a < low ? low : a > high ? high : a; }

CONVEXT_INLINE int64_t take(int64_t& task, int64_t count) {
  const int64_t index = task % count;
  task /= count;
  return index;
}

// How many places of one axis `outs` neighbouring outputs see through `taps` neighbouring taps (all of them), from the
// first to the last.
int64_t seen(const ConvGeometry& g, int axis, int64_t outs, int64_t taps) {
  return (outs - 1) * g.stride[axis] + (taps - 1) * g.dilation[axis] + 1;
}
int64_t seen(const ConvGeometry& g, int axis, int64_t outs) { return seen(g, axis, outs, g.kernel[axis]); }

// One axis of a correlation: output j sees place origin + j step + i dilation of the source through tap i.
struct AxisView {
  int64_t step, dilation, origin;
  int64_t size, before, after;
  PaddingMode mode;

  int64_t source(int64_t place) const {
    return place < -before || place >= size + after ? -1 : padded_source(place, size, mode);
  }
};

AxisView forward_view(const ConvGeometry& g, int axis) {
  return {g.stride[axis],     g.dilation[axis],  -g.pad_before[axis], g.input[axis],
          g.pad_before[axis], g.pad_after[axis], g.padding_mode};
}

// The smaller of the two ways to store an axis.
AxisLayout axis_layout(int64_t step, int64_t dilation, int64_t outs, int64_t taps) {
  const int64_t divisor = greatest_divisor(step, dilation), period = step / divisor, shift = dilation / divisor;
  const int64_t planes = least(period, taps), length = outs + (taps - 1) / period * shift;
  if (planes * length <= taps * outs) return {period, shift, planes, length};
  return {taps, 0, taps, outs};
}

int64_t tile_plane(const AxisLayout* axis) {
  return axis[0].planes * axis[0].length * axis[1].planes * axis[1].length * axis[2].planes * axis[2].length;
}

// Outputs [out, out + outs) and taps [tap, tap + taps) of each axis.
struct Band {
  int64_t out[kMaxSpatial], outs[kMaxSpatial], tap[kMaxSpatial], taps[kMaxSpatial];
};

// The taps of one axis in order: plane after plane, then on by the shift.
struct AxisWalk {
  int64_t index = 0, plane_offset = 0, slot_offset = 0;

  int64_t offset() const { return plane_offset + slot_offset; }
  void next(const AxisLayout& axis, int64_t unit, int64_t plane) {
    plane_offset += plane;
    if (++index < axis.period) return;
    index = plane_offset = 0;
    slot_offset += axis.shift * unit;
  }
};

// Element offsets in a channel's plane of the tile of the band's taps, row-major, for output (0, 0); returns their
// number.
int64_t tap_offsets(const AxisLayout* axis, const Band& band, int64_t* offset) {
  const int64_t pitch = axis[2].length, plane_w = axis[1].planes * axis[1].length * pitch;
  const int64_t unit[kMaxSpatial] = {axis[2].planes * plane_w, pitch, 1};  // from slot to slot of an axis
  const int64_t plane[kMaxSpatial] = {axis[0].length * unit[0], axis[1].length * unit[1], plane_w};
  int64_t count = 0;
  AxisWalk d;
  for (int64_t t = 0; t < band.taps[0]; ++t, d.next(axis[0], unit[0], plane[0])) {
    AxisWalk h;
    for (int64_t r = 0; r < band.taps[1]; ++r, h.next(axis[1], unit[1], plane[1])) {
      AxisWalk w;
      for (int64_t s = 0; s < band.taps[2]; ++s, w.next(axis[2], unit[2], plane[2]))
        offset[count++] = d.offset() + h.offset() + w.offset();
    }
  }
  return count;
}

template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_some(const T* p, int64_t first, int64_t last) {
  if constexpr (sizeof(T) == 2 && CONVEXT_ISA_LEVEL < 2) {  // bring the lanes together
    T lane[kLanes<Accumulate<T>>] = {};
    for (int64_t i = first; i < last; ++i) lane[i] = p[i];
    return load(lane);
  } else {
    return load_part(p, int(first), int(last));
  }
}

// Lanes [0, count) to p, p + stride, ...
template <typename T>
CONVEXT_INLINE void store_some(T* p, Vec<Accumulate<T>> v, int64_t count, int64_t stride) {
  if constexpr (sizeof(T) != 2 || CONVEXT_ISA_LEVEL >= 2) {
    if (stride == 1) return store_part(p, v, 0, int(count));
  }
  T lane[kLanes<Accumulate<T>>];
  store(lane, v);
  for (int64_t i = 0; i < count; ++i) p[i * stride] = lane[i];
}

// Lanes [0, count), where few vectors end a row: out of the way of the loops it ends.
template <typename T>
__attribute__((noinline, cold)) void store_rest(T* p, Vec<Accumulate<T>> v, int64_t count) {
  store_some(p, v, count, 1);
}

template <typename A, int... kLane>
CONVEXT_INLINE Vec<A> even_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane)...);
}
template <typename A, int... kLane>
CONVEXT_INLINE Vec<A> odd_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane + 1)...);
}

// Transposes a square of kLanes vectors by exchanging ever larger off-diagonal blocks.
template <typename A, int kBlock, int... kLane>
CONVEXT_INLINE void transpose_blocks(Vec<A>* v, std::integer_sequence<int, kLane...> lanes) {
  constexpr int kCount = kLanes<A>;
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    if ((i & kBlock) != 0) continue;
    const Vec<A> a = v[i], b = v[i + kBlock];
    v[i] = __builtin_shufflevector(a, b, (kLane & kBlock ? kLane - kBlock + kCount : kLane)...);
    v[i + kBlock] = __builtin_shufflevector(a, b, (kLane & kBlock ? kLane + kCount : kLane + kBlock)...);
  }
  if constexpr (kBlock * 2 < kCount) transpose_blocks<A, kBlock * 2>(v, lanes);
}

template <typename A>
CONVEXT_INLINE void transpose_lanes(Vec<A>* v) {
  transpose_blocks<A, 1>(v, LaneSequence<A>());
}

// to[j * to_step + i] = from[i * step + j], for one vector each way.
template <typename T>
CONVEXT_INLINE void turn_square(const T* from, int64_t step, Accumulate<T>* to, int64_t to_step) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  Vec<A> v[kCount];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kCount; ++i) v[i] = load(from + i * step);
  transpose_lanes<A>(v);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kCount; ++i) store(to + i * to_step, v[i]);
}

// The same for `high` rows, zeros past them, and `wide` columns.
template <typename T>
__attribute__((noinline)) void turn_rest(const T* from, int64_t step, int64_t high, int64_t wide, Accumulate<T>* to,
                                         int64_t to_step) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  A square[kCount * kCount] = {}, turned[kCount * kCount];
  for (int64_t i = 0; i < high; ++i) store(square + i * kCount, load_some(from + i * step, 0, wide));
  turn_square<A>(square, kCount, turned, kCount);
  for (int64_t j = 0; j < wide; ++j) store(to + j * to_step, load(turned + j * kCount));
}

// Zeros to slots [from, end), in whole vectors.
template <typename A>
CONVEXT_INLINE void store_zeros(A* to, int64_t from, int64_t end) {
  for (; from < end; from += kLanes<A>) {
    store(to + from, Vec<A>{});
    asm volatile("");  // keeps the compiler from calling memset, which is dear for one or two vectors
  }
}

// Slots j of one row: place + j step, 0 <= j < n. Writes whole vectors: what follows the row must be written later.
template <typename T>
void fill_row(Accumulate<T>* to, const T* row, const AxisView& view, int64_t place, int64_t n) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t step = view.step, size = view.size;
  const int64_t first = place >= 0 ? 0 : least(n, step == 1 ? -place : ceil_div(-place, step));
  const int64_t last =
      place >= size ? first : greatest(first, least(n, step == 1 ? size - place : ceil_div(size - place, step)));
  const T* from = row + place;
  store_zeros(to, 0, first);
  int64_t j = first;
  if (step == 1) {
    for (; j + kCount <= last; j += kCount) store(to + j, load(from + j));
    if (j < last) {
      store(to + j, load_some(from + j, 0, last - j));
      j += kCount;
    }
  } else if (step == 2) {
    for (; j + kCount <= last && place + 2 * (j + kCount) <= size; j += kCount)
      store(to + j, even_lanes<A>(load(from + 2 * j), load(from + 2 * j + kCount), LaneSequence<A>()));
    for (; j < last; j += kCount) {
      const int64_t left = size - place - 2 * j;  // elements
      const Vec<A> a = load_some(from + 2 * j, 0, least(left, kCount));
      const Vec<A> b = left > kCount ? load_some(from + 2 * j + kCount, 0, least(left - kCount, kCount)) : Vec<A>{};
      store(to + j, even_lanes<A>(a, b, LaneSequence<A>()));
    }
  } else {
    for (; j < last; j += kCount) {
      T lane[kCount] = {};
      for (int64_t i = 0; i < least(last - j, kCount); ++i) lane[i] = from[(j + i) * step];
      store(to + j, load(lane));
    }
  }
  store_zeros(to, j, n);
  if (view.mode == PaddingMode::zeros) return;
  for (j = 0; j < n; ++j) {
    if (j == first) j = last;
    if (j >= n) break;
    const int64_t source = view.source(place + j * step);
    if (source >= 0) to[j] = to_accumulate(row[source]);
  }
}

// The same for `channels` planes of channels_last data, `stride` elements from place to place.
template <typename T>
void fill_row_channels_last(Accumulate<T>* to, int64_t plane, const T* row, int64_t stride, const AxisView& view,
                            int64_t place, int64_t n, int64_t channels) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  for (int64_t j = 0; j < n; j += kCount) {
    int64_t at[kCount];
    for (int64_t i = 0; i < kCount; ++i)
      at[i] = j + i < n && row != nullptr ? view.source(place + (j + i) * view.step) : -1;
    int64_t c = 0;
    if (at[0] >= 0 && at[kCount - 1] == at[0] + (kCount - 1) * view.step) {  // all inside, side by side
      const T* from = row + at[0] * stride;
      for (; c + kCount <= channels; c += kCount) {
        Vec<A> x[kCount];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kCount; ++i) x[i] = load(from + i * view.step * stride + c);
        transpose_lanes<A>(x);
        A* corner = to + c * plane + j;
#pragma GCC unroll 16
        for (int64_t i = 0; i < kCount; ++i) store(corner + i * plane, x[i]);
      }
    }
    for (; c < channels; c += kCount) {
      const int64_t some = least(channels - c, kCount);
      Vec<A> x[kCount];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kCount; ++i)
        x[i] = at[i] < 0        ? Vec<A>{}
               : some == kCount ? load(row + at[i] * stride + c)
                                : load_some(row + at[i] * stride + c, 0, some);
      transpose_lanes<A>(x);
      A* corner = to + c * plane + j;
      if (some == kCount && j + kCount <= n) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kCount; ++i) store(corner + i * plane, x[i]);
      } else {
        for (int64_t i = 0; i < some; ++i) store_part(corner + i * plane, x[i], 0, int(least(n - j, kCount)));
      }
    }
  }
}

// Fills the tile with `channels` planes of the source, which starts at the image's first place and first channel
// wanted. channel_stride and place_stride: elements from channel to channel, from place to place.
template <typename T>
void fill_tile(Accumulate<T>* tile, int64_t plane, const T* source, int64_t channel_stride, int64_t place_stride,
               int64_t channels, const AxisView* view, const AxisLayout* axis, const Band& band) {
  int64_t planes[kMaxSpatial], length[kMaxSpatial], place[kMaxSpatial];
  for (int a = 0; a < kMaxSpatial; ++a) {
    planes[a] = least(axis[a].period, band.taps[a]);
    length[a] = band.outs[a] + (band.taps[a] - 1) / axis[a].period * axis[a].shift;
    place[a] = view[a].origin + band.out[a] * view[a].step + band.tap[a] * view[a].dilation;
  }
  const bool channels_last = channel_stride == 1 && place_stride != 1;
  const int64_t rows = axis[1].planes * axis[1].length, pitch = axis[2].length;
  for (int64_t c = 0; c < (channels_last ? 1 : channels); ++c)
    for (int64_t dp = 0; dp < planes[0]; ++dp)
      for (int64_t d = 0; d < length[0]; ++d) {
        const int64_t at_d = view[0].source(place[0] + dp * view[0].dilation + d * view[0].step);
        for (int64_t wp = 0; wp < planes[2]; ++wp)
          for (int64_t hp = 0; hp < planes[1]; ++hp)
            for (int64_t h = 0; h < length[1]; ++h) {
              const int64_t at_h = view[1].source(place[1] + hp * view[1].dilation + h * view[1].step);
              const int64_t slot =
                  (((dp * axis[0].length + d) * axis[2].planes + wp) * rows + hp * axis[1].length + h) * pitch;
              const bool inside = at_d >= 0 && at_h >= 0;
              const T* row = source + (inside ? (at_d * view[1].size + at_h) * view[2].size : 0) * place_stride;
              const int64_t place_w = place[2] + wp * view[2].dilation;
              if (channels_last) {
                fill_row_channels_last(tile + slot, plane, inside ? row : nullptr, place_stride, view[2], place_w,
                                       length[2], channels);
              } else if (inside) {
                fill_row(tile + c * plane + slot, row + c * channel_stride, view[2], place_w, length[2]);
              } else {
                for (int64_t j = 0; j < length[2]; j += kLanes<Accumulate<T>>)
                  store(tile + c * plane + slot + j, Vec<Accumulate<T>>{});
              }
            }
      }
}

// The taps a filled tile may hold, the most first along columns.
void plan_taps(DirectPlan& plan, const int64_t* taps, int64_t most) {
  plan.taps[2] = least(taps[2], most);
  plan.taps[1] = plan.taps[2] == taps[2] ? least(taps[1], most / taps[2]) : 1;
  plan.taps[0] = plan.taps[1] == taps[1] && plan.taps[2] == taps[2] ? least(taps[0], most / (taps[1] * taps[2])) : 1;
  for (int a = 0; a < kMaxSpatial; ++a) plan.tap_blocks[a] = ceil_div(taps[a], plan.taps[a]);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
