// Maximum over windows of unequal sizes, and its gradient: see pool_direct_adaptive.inl. Of a column the first greatest
// and the last NaN take the lead, with the number of their row; of the columns of a window the same, in row-major
// order.

#include "pool_direct_adaptive.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// value[i], number[i] (where places are wanted): the greatest of column + i over the rows of a box, and which of them
// it is in.
template <bool kPlaces, int kVectors, typename T>
CONVEXT_INLINE void max_box_columns(const BoxRows<T>& rows, int64_t column, int64_t n, Accumulate<T>* value,
                                    Index<Accumulate<T>>* number) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  Vec<A> best[kVectors];
  IndexVec<A> winner[kVectors], at = {};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) best[v] = splat<A>(lowest<A>()), winner[v] = at;
  for (int64_t t = 0; t < rows.depths; ++t) {
    const T* row = rows.start + t * rows.depth_step + column;
    for (int64_t r = 0; r < rows.heights; ++r, row += rows.height_step, at = at + 1)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec<A> next = v + 1 < kVectors ? load(row + v * kL) : load_first(row + v * kL, n);
        const auto lead = takes_lead<A>(next, best[v]);
        best[v] = choose(lead, next, best[v]);
        if (kPlaces) winner[v] = choose(lead, at, winner[v]);
      }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store(value + v * kL, best[v]);
    if (kPlaces) store_index<A>(number + v * kL, winner[v]);
  }
}

// A part of a contiguous plane.
template <typename T, typename P, bool kPlaces>
void max_forward_boxes(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 4 * kL;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  P* places = advance<kPlaces>(static_cast<P*>(args.places_out), plane * g.output_places());
  A value[kPoolRow + kPoolSlack], best[kPoolColumns];
  Index<A> number[kPoolRow + kPoolSlack], best_row[kPoolColumns];
  int64_t best_column[kPoolColumns];
  Cuts cuts;
  for (int64_t chunk = 0; chunk < g.output[2]; chunk += cuts.count) {
    set_cuts(g, chunk, &cuts);
    const int64_t begin = cuts.columns[0].first, end = cuts.columns[cuts.count - 1].last;
    for (int64_t o = part.os.first; o < part.os.last; ++o)
      for (int64_t p = part.ps.first; p < part.ps.last; ++p) {
        const BoxRows<T> rows = box_rows(g, x, window_of(g, 0, o), window_of(g, 1, p), false);
        for (int64_t j = 0; j < cuts.count; ++j) best_column[j] = -1;
        for (int64_t w = begin, from = 0; w < end; w += kPoolRow) {
          const int64_t columns = least(kPoolRow, end - w);
          int64_t i = 0;
          for (; i + kBlock <= columns; i += kBlock)
            max_box_columns<kPlaces, 4>(rows, w + i, kL, value + i, number + i);
          for (; i < columns; i += kL) max_box_columns<kPlaces, 1>(rows, w + i, columns - i, value + i, number + i);
          for (int64_t j = from; j < cuts.count && cuts.columns[j].first < w + columns; ++j) {
            const Range seen = common(cuts.columns[j], {w, w + columns});
            int64_t column = best_column[j];
            A top = column < 0 ? lowest<A>() : best[j];
            Index<A> row = column < 0 || !kPlaces ? 0 : best_row[j];
            for (int64_t k = seen.first; k < seen.last; ++k) {
              const A next = value[k - w];
              const Index<A> in_row = kPlaces ? number[k - w] : 0;
              const bool nan = next != next, led_by_nan = top != top;
              const bool leads =
                  nan ? !led_by_nan || in_row >= row : !led_by_nan && (next > top || (next == top && in_row < row));
              if (leads || column < 0) top = next, row = in_row, column = k;
            }
            best[j] = top, best_column[j] = column;
            if (kPlaces) best_row[j] = row;
            if (cuts.columns[j].last <= w + columns) from = j + 1;
          }
        }
        const int64_t at = (o * g.output[1] + p) * g.output[2] + chunk;
        for (int64_t j = 0; j < cuts.count; ++j) {
          y[at + j] = from_accumulate<T>(best[j]);
          if (!kPlaces) continue;
          const int64_t t = best_row[j] / rows.heights, r = best_row[j] % rows.heights;
          places[at + j] = P((t * g.kernel[1] + r) * g.kernel[2] + best_column[j] - cuts.columns[j].first);
        }
      }
  }
}

// Some planes, or channels, of an image. `sum` has an element per place and channel of these; it is dx itself where
// `sum` is null, T being what is computed in.
template <typename T, typename P>
void max_backward_boxes_of(const PoolArguments& args, int64_t image, Range channels, Accumulate<T>* sum) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const bool last = g.layout == Layout::channels_last;
  const int64_t places_in = g.input_places(), lanes = channels.last - channels.first;
  // From one place to the next; a contiguous part is one plane.
  const int64_t step = last ? g.channels : 1, plane = image * g.channels;
  const int64_t in = last ? plane * places_in + channels.first : (plane + channels.first) * places_in;
  const int64_t out = last ? plane * g.output_places() + channels.first : (plane + channels.first) * g.output_places();
  const T* dy = static_cast<const T*>(args.grad_output) + out;
  const P* places = static_cast<const P*>(args.places) + out;
  T* dx = static_cast<T*>(args.output) + in;
  const bool apart = sum != nullptr;
  if (!apart) sum = reinterpret_cast<A*>(dx);
  const int64_t pitch = apart ? lanes : step;
  if (pitch == lanes) {
    for (int64_t i = 0; i < places_in * lanes; i += kL) store_first(sum + i, Vec<A>{}, places_in * lanes - i);
  } else {
    for (int64_t at = 0; at < places_in; ++at)
      for (int64_t l = 0; l < lanes; l += kL) store_first(sum + at * pitch + l, Vec<A>{}, lanes - l);
  }
  int32_t offset[kPoolOffsets];  // of a tap from the window's first place
  const int64_t taps = g.window(), known = least(taps, kPoolOffsets), width = g.kernel[2], area = width * g.kernel[1];
  for (int64_t tap = 0; tap < known; ++tap)
    offset[tap] = int32_t((tap / area * g.input[1] + tap / width % g.kernel[1]) * g.input[2] + tap % width);
  Cuts cuts;
  for (int64_t chunk = 0; chunk < g.output[2]; chunk += cuts.count) {
    set_cuts(g, chunk, &cuts);
    for (int64_t o = 0; o < g.output[0]; ++o)
      for (int64_t p = 0; p < g.output[1]; ++p) {
        const int64_t row = (g.place(0, o, 0) * g.input[1] + g.place(1, p, 0)) * g.input[2];
        int64_t at = ((o * g.output[1] + p) * g.output[2] + chunk) * step;
        for (int64_t j = 0; j < cuts.count; ++j, at += step)
          for (int64_t l = 0; l < lanes; ++l) {
            const int64_t tap = places[at + l];
            int64_t place = row + cuts.columns[j].first;
            if (uint64_t(tap) < uint64_t(known))
              place += offset[tap];
            else
              place += (tap / area * g.input[1] + tap / width % g.kernel[1]) * g.input[2] + tap % width;
            if (uint64_t(place) < uint64_t(places_in)) sum[place * pitch + l] += to_accumulate(dy[at + l]);
          }
      }
  }
  for (int64_t at = 0; apart && at < places_in; ++at)
    for (int64_t l = 0; l < lanes; l += kL)
      store_first(dx + at * step + l, load_first(sum + at * lanes + l, lanes - l), lanes - l);
}
template <typename T>
void max_backward_boxes(const PoolArguments& args, int64_t image, Range channels, Accumulate<T>* sum) {
  if (args.geometry.byte_places())
    max_backward_boxes_of<T, uint8_t>(args, image, channels, sum);
  else
    max_backward_boxes_of<T, int32_t>(args, image, channels, sum);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
