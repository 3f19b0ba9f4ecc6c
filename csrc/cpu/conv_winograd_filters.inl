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

// Asks for the elements of a vector of outputs, to be written: those are more streams than the processor foresees, and
// lines that several cores have read are otherwise waited for one by one.
template <class H, class W, typename A>
CONVEXT_INLINE void ask_for_elements(const A* u, int64_t points) {
#pragma GCC unroll 8
  for (int e = 0; e < H::n * W::n; ++e) __builtin_prefetch(u + e * points, 1);
}

// Asks for what turn_row is to read: of `lanes` rows, `apart` from each other, `columns` columns.
template <typename T>
CONVEXT_INLINE void prefetch_columns(const T* from, int64_t apart, int64_t columns, int lanes) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  if (apart < 2 * columns) columns += (lanes - 1) * apart, lanes = 1;
  for (int l = 0; l < lanes; ++l, from += apart)
    for (int64_t i = 0; i < columns; i += line) __builtin_prefetch(from + i);
}

// Turned columns, those that come after are asked for.
template <typename T>
CONVEXT_INLINE void turn_and_ask(const T* from, int64_t outputs, int64_t columns, int present, int64_t further,
                                 Accumulate<T>* to) {
  prefetch_columns(from + further, outputs, columns, present);
  turn_row(from, outputs, columns, present, to);
}

// How filters are turned: those of all channels as one row, where they follow each other; channel by channel; where
// taps are far apart, tap by tap for all channels, if those are neighbours; or each tap of its own.
enum class FiltersAre { one_row, rows, planes, apart };
struct FilterRuns {
  FiltersAre are;
  int64_t low, span;  // the first tap; how many columns the taps of a channel take
  int64_t columns;    // turned, per channel

  // Where they are, in columns: from channel to channel, and of tap i.
  int64_t channel() const { return are == FiltersAre::planes ? 1 : columns; }
  int64_t tap(int i, int64_t at, int64_t channels) const {
    return are == FiltersAre::planes ? i * channels : are == FiltersAre::apart ? i : at - low;
  }
};
template <int kTaps>
CONVEXT_INLINE FilterRuns filter_runs(int64_t outputs, int64_t inputs, const int64_t* at) {
  int64_t low = INT64_MAX, high = 0;
  for (int i = 0; i < kTaps; ++i)
    if (at[i] >= 0) low = least(low, at[i]), high = greatest(high, at[i]);
  low = least(low, high);
  const int64_t span = high - low + 1;
  if (outputs == 1) return {FiltersAre::apart, low, span, kTaps};
  if (span > kFilterSpan) return {inputs == 1 ? FiltersAre::planes : FiltersAre::apart, low, span, kTaps};
  if (inputs >= span && inputs <= 2 * span) return {FiltersAre::one_row, low, span, inputs};
  return {FiltersAre::rows, low, span, span};
}

// The filters of `channels` input channels and a vector of outputs, of which `present` are there (others repeat the
// last, or are zero): w, outputs, inputs, at as in transform_weight. `to` has room for runs.columns x channels vectors.
template <int kTaps, typename T>
CONVEXT_INLINE void turn_filters(const FilterRuns& runs, const T* w, int64_t outputs, int64_t inputs, const int64_t* at,
                                 int64_t channels, int present, Accumulate<T>* to) {
  constexpr int64_t side = kLanes<Accumulate<T>>;
  if (runs.are == FiltersAre::one_row) {
    turn_and_ask(w + runs.low, outputs, (channels - 1) * inputs + runs.span, present, channels * inputs, to);
  } else if (runs.are == FiltersAre::rows) {
    for (int64_t c = 0; c < channels; ++c, w += inputs, to += runs.span * side)
      turn_and_ask(w + runs.low, outputs, runs.span, present, inputs, to);
  } else if (runs.are == FiltersAre::planes) {
    for (int i = 0; i < kTaps; ++i, to += channels * side)
      if (at[i] >= 0) turn_and_ask(w + at[i], outputs, channels, present, channels, to);
  } else {
    for (int64_t c = 0; c < channels; ++c, w += inputs)
      for (int i = 0; i < kTaps; ++i, to += side) {
        if (at[i] < 0) continue;
        prefetch_columns(w + at[i] + inputs, outputs, 1, present);
        if (outputs == 1)
          store(to, load_part(w + at[i], 0, present));
        else
          turn_row(w + at[i], outputs, 1, present, to);
      }
  }
}

template <class H, class W, typename T>
void transform_weight(const T* w, int64_t outputs, int64_t inputs, const int64_t* at, int64_t slices, int64_t channels,
                      int64_t count, int64_t lanes, Accumulate<T>* u, int64_t points) {
  using A = Accumulate<T>;
  constexpr int64_t side = kLanes<A>;
  constexpr int kTaps = H::r * W::r;
  constexpr A zeros[side] = {};
  A column[(kTurnedFilters + 2 * kFilterSpan) * side];
  for (int64_t slice = 0; slice < slices; ++slice, at += kTaps, u += channels * lanes) {
    const FilterRuns runs = filter_runs<kTaps>(outputs, inputs, at);
    const int64_t most = greatest(kTurnedFilters / runs.columns, int64_t(1));
    for (int64_t c0 = 0; c0 < channels; c0 += most) {
      const int64_t together = least(channels - c0, most);
      for (int64_t l0 = 0; l0 < lanes; l0 += side) {
        const int present = int(bounded(count - l0, int64_t(0), side)), some = int(least(lanes - l0, side));
        if (present > 0)
          turn_filters<kTaps>(runs, w + l0 * outputs + c0 * inputs, outputs, inputs, at, together, present, column);
        for (int64_t c = 0; c < together; ++c) {
          const A* taps[kTaps];
          for (int i = 0; i < kTaps; ++i)
            taps[i] = at[i] < 0 ? zeros : column + (c * runs.channel() + runs.tap(i, at[i], together)) * side;
          A* const to = u + (c0 + c) * lanes + l0;
          if (c + 1 < together) ask_for_elements<H, W, A>(to + lanes, points);
          transform_filters<H, W, A>(taps, present, to, points, some);
        }
      }
    }
  }
}

template <class H, class W, typename T>
TurnedFilters<Accumulate<T>> turn_weight(const T* w, int64_t outputs, int64_t inputs, const int64_t* at,
                                         int64_t channels, int present, Accumulate<T>* to) {
  constexpr int kTaps = H::r * W::r;
  constexpr int64_t side = kLanes<Accumulate<T>>;
  const FilterRuns runs = filter_runs<kTaps>(outputs, inputs, at);
  turn_filters<kTaps>(runs, w, outputs, inputs, at, channels, present, to);
  const int64_t first = runs.tap(0, at[0], channels), second = kTaps > 1 ? runs.tap(1, at[1 % kTaps], channels) : first;
  return {to + first * side, runs.channel() * side, (second - first) * side};
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
