// The transform of winograd's weight: u = G w G^T, for a vector of outputs at a time.
//
// Filters lie in memory output by output, vectors want them tap by tap. Those of neighbouring input channels, or of one
// where channels are far apart, are turned a run of kTurnedFilters columns at a time: a column is what all lanes have
// at one distance from where their filters begin. Where the taps of a filter are far apart (channels_last), those of
// some channels are turned tap by tap; where outputs lie side by side, they are loaded.
// Traffic: w once, n^2 / r^2 times as much of u, at as many places at once as there are points.

#include "conv_winograd_points.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kTurnedFilters = 160;  // columns at once: 10 kB of whole vectors
constexpr int64_t kFilterSpan = 64;      // columns that the filters of one input channel take, at most

// One vector of outputs, from its taps; those from `present` on are zero, `some` are wanted.
template <class H, class W, typename A>
CONVEXT_INLINE void transform_filters(const A* const* tap, int present, A* u, int64_t points, int some) {
  Vec<A> half[W::n][H::r];
#pragma GCC unroll 8
  for (int r = 0; r < H::r; ++r) {
    Vec<A> g[W::r], out[W::n];
#pragma GCC unroll 8
    for (int s = 0; s < W::r; ++s) {
      const A* from = tap[r * W::r + s];
      g[s] = present == kLanes<A> ? load(from) : load_part(from, 0, present);
    }
    weight_to_points<W, A>(g, out);
#pragma GCC unroll 8
    for (int s = 0; s < W::n; ++s) half[s][r] = out[s];
  }
  for (int s = 0; s < W::n; ++s) {
    Vec<A> out[H::n];
    weight_to_points<H, A>(half[s], out);
    A* to = u + s * points;
#pragma GCC unroll 8
    for (int r = 0; r < H::n; ++r, to += W::n * points)
      if (some == kLanes<A>)
        store(to, out[r]);
      else
        store_part(to, out[r], 0, some);
  }
}

// The filters of a vector of outputs and some input channels, turned: where tap i of channel c is.
template <int kTaps, typename A>
struct TurnedFilters {
  static constexpr int64_t kColumns = kTurnedFilters + kFilterSpan;
  A column[kColumns * kLanes<A>];
  int64_t channel, tap[kTaps];  // columns to the next channel, and where a tap is; -1: it is zero

  CONVEXT_INLINE void taps_of(int64_t c, const A* zeros, const A** taps) const {
    for (int i = 0; i < kTaps; ++i) taps[i] = tap[i] < 0 ? zeros : column + (c * channel + tap[i]) * kLanes<A>;
  }
};

// How filters are turned: `low` is the first tap, `span` how many columns the filters of one channel take, `channels`
// how many of them are turned at once: as far apart, whole vectors of them.
struct FilterRuns {
  int64_t low, span, channels;
  bool by_tap;
};
template <int kTaps, typename A>
CONVEXT_INLINE FilterRuns filter_runs(const int64_t* at, int64_t outputs, int64_t inputs) {
  int64_t low = INT64_MAX, high = 0;
  for (int i = 0; i < kTaps; ++i)
    if (at[i] >= 0) low = least(low, at[i]), high = greatest(high, at[i]);
  low = least(low, high);
  const int64_t span = high - low + 1, some = kTurnedFilters / kTaps / kLanes<A> * kLanes<A>;
  if (outputs == 1) return {low, 1, 1, true};
  if (span > kFilterSpan) return {low, 1, inputs == 1 ? greatest(some, int64_t(1)) : 1, true};
  return {low, span, inputs <= 2 * span ? 1 + (kTurnedFilters - 1) / inputs : 1, false};
}

// Asks for what turn_row is to read: of `lanes` rows, `apart` from each other, `columns` columns.
template <typename T>
CONVEXT_INLINE void prefetch_columns(const T* from, int64_t apart, int64_t columns, int lanes) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  if (apart < 2 * columns) columns += (lanes - 1) * apart, lanes = 1;
  for (int l = 0; l < lanes; ++l, from += apart)
    for (int64_t i = 0; i < columns; i += line) __builtin_prefetch(from + i);
}

template <class H, class W, typename T>
void transform_weight(const T* w, int64_t outputs, int64_t inputs, const int64_t* at, int64_t slices, int64_t channels,
                      int64_t count, int64_t lanes, Accumulate<T>* u, int64_t points) {
  using A = Accumulate<T>;
  constexpr int64_t side = kLanes<A>;
  constexpr int kTaps = H::r * W::r;
  constexpr A zeros[side] = {};
  TurnedFilters<kTaps, A> turned;
  for (int64_t slice = 0; slice < slices; ++slice, at += kTaps, u += channels * lanes) {
    const FilterRuns runs = filter_runs<kTaps, A>(at, outputs, inputs);
    turned.channel = runs.by_tap ? 1 : inputs;
    for (int i = 0; i < kTaps; ++i) turned.tap[i] = at[i] < 0 ? -1 : runs.by_tap ? i * runs.channels : at[i] - runs.low;
    for (int64_t c0 = 0; c0 < channels; c0 += runs.channels) {
      const int64_t together = least(channels - c0, runs.channels);
      for (int64_t l0 = 0; l0 < lanes; l0 += side) {
        const int present = int(bounded(count - l0, int64_t(0), side)), some = int(least(lanes - l0, side));
        const T* from = w + l0 * outputs + c0 * inputs;
        if (present > 0 && !runs.by_tap) {
          const int64_t columns = (together - 1) * inputs + runs.span;
          prefetch_columns(from + runs.low + runs.channels * inputs, outputs, columns, present);
          turn_row(from + runs.low, outputs, columns, present, turned.column);
        }
        for (int i = 0; present > 0 && runs.by_tap && i < kTaps; ++i) {
          if (at[i] < 0) continue;
          A* to = turned.column + turned.tap[i] * side;
          prefetch_columns(from + at[i] + runs.channels * inputs, outputs, together, present);
          if (outputs == 1)
            store(to, load_part(from + at[i], 0, present));
          else
            turn_row(from + at[i], outputs, together, present, to);
        }
        for (int64_t c = 0; c < together; ++c) {
          const A* taps[kTaps];
          turned.taps_of(c, zeros, taps);
          transform_filters<H, W, A>(taps, present, u + (c0 + c) * lanes + l0, points, some);
        }
      }
    }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
