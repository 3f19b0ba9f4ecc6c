// Rows of contiguous planes copied with their padding into a tile, columns of stride 2 sorted by parity, so that the
// columns that neighbouring outputs see through one tap lie side by side: for conv_direct_rows.inl and
// conv_direct_planes.inl.

namespace convext::cpu::CONVEXT_ISA {
namespace {

// The columns of a tile's row: slot j of parity i (of one or two) shows column first + 2 j + i (first + j).
struct RowSlots {
  int64_t stride, slots;  // slots per parity

  int64_t of(int64_t column) const { return stride == 1 ? column : (column & 1) * slots + column / 2; }
};

template <typename A>
RowSlots row_slots(const ConvGeometry& g, int64_t columns) {
  const int64_t reach = round_up(columns, kLanes<A>) + g.dilation[2] * (g.kernel[2] - 1) / g.stride[2] + 1;
  return {g.stride[2], round_up(reach, kLanes<A>) + kLanes<A>};
}

// A row of the tile: columns first, first + 1, ... of the input's row (null: zeros). Whole vectors, left to right.
// kPadding: whether zeros around the row are written too, or are there already.
template <typename T, bool kPadding>
CONVEXT_INLINE void fill_padded_row(Accumulate<T>* to, const RowSlots& slots, const T* row, const AxisView& view,
                                    int64_t first, int64_t columns) {
  using A = Accumulate<T>;
  constexpr int64_t kCount = kLanes<A>;
  const int64_t begin = clamp(-first, 0, columns);  // columns [begin, end) of the row are inside
  const int64_t end = row == nullptr ? begin : clamp(view.size - first, begin, columns);
  const int64_t last = slots.slots - kCount;  // slots that are looked at lie before
  const T* from = row + first;
  if (slots.stride == 1) {
    if (kPadding) store_zeros(to, 0, begin);
    int64_t j = begin;
    for (; j + kCount <= end; j += kCount) store(to + j, load(from + j));
    if (j < end) {
      store(to + j, load_some(from + j, 0, end - j));
      j += kCount;
    }
    if (kPadding) store_zeros(to, j, last);
  } else {
    A *even = to + (begin & 1) * slots.slots, *odd = to + (~begin & 1) * slots.slots;
    int64_t at_even = begin / 2, at_odd = (begin + 1) / 2, j = begin;
    if (kPadding) {
      store_zeros(even, 0, at_even);
      store_zeros(odd, 0, at_odd);
    }
    for (; j + 2 * kCount <= end; j += 2 * kCount, at_even += kCount, at_odd += kCount) {
      const Vec<A> a = load(from + j), b = load(from + j + kCount);
      store(even + at_even, even_lanes<A>(a, b, LaneSequence<A>()));
      store(odd + at_odd, odd_lanes<A>(a, b, LaneSequence<A>()));
    }
    if (j < end) {
      const int64_t left = end - j;
      const Vec<A> a = left >= kCount ? load(from + j) : load_some(from + j, 0, left);
      const Vec<A> b = left > kCount ? load_some(from + j + kCount, 0, left - kCount) : Vec<A>{};
      store(even + at_even, even_lanes<A>(a, b, LaneSequence<A>()));
      store(odd + at_odd, odd_lanes<A>(a, b, LaneSequence<A>()));
      at_even += kCount;
      at_odd += kCount;
    }
    if (kPadding) {
      store_zeros(even, at_even, last);
      store_zeros(odd, at_odd, last);
    }
  }
  if (view.mode == PaddingMode::zeros || row == nullptr) return;
  for (int64_t i = 0; i < columns; ++i) {
    if (i == begin) i = end;
    if (i >= columns) break;
    const int64_t source = view.source(first + i);
    if (source >= 0) to[slots.of(i)] = to_accumulate(row[source]);
  }
}

// The tile of a plane x: `rows` rows from row h on (negative: padding before).
template <typename T, bool kPadding>
void fill_padded_rows(Accumulate<T>* tile, int64_t pitch, const RowSlots& slots, const T* x, const AxisView& view_h,
                      int64_t h, int64_t rows, const AxisView& view_w, int64_t first, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, tile += pitch) {
    const int64_t at = h + i >= 0 && h + i < view_h.size ? h + i : view_h.source(h + i);
    if (at >= 0)
      fill_padded_row<T, kPadding>(tile, slots, x + at * view_w.size, view_w, first, columns);
    else if (kPadding)
      store_zeros(tile, 0, pitch - kLanes<Accumulate<T>>);
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
