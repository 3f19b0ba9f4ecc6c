// What the drivers of winograd (conv_winograd.cpp, conv_winograd_backward_weight.cpp) and their transforms (.inl)
// share.
#pragma once
#include "../algorithms.h"
#include "../winograd.h"
#include "finish.h"
#include "unfold.h"

namespace convext::cpu {

// Tiles [begin, end) of an image, row-major; a slice of the input (one depth), which may lie in the padding (null).
struct WinogradTiles {
  int64_t begin, end;
  int64_t per_row;
};

// Of a stride of 2: which of the places, modulo the stride. Short: it lacks a tap along an axis, so that the values at
// infinity, the last point, are not wanted.
struct WinogradPhase {
  int64_t h = 0, w = 0;
  bool short_h = false, short_w = false;
};

// The phases of a stride of 2, in an order where those that a point sees follow each other.
constexpr WinogradPhase kPhases[] = {{1, 0}, {0, 0}, {0, 1}, {1, 1}};

inline bool strided(const ConvGeometry& g) { return g.stride[1] == 2; }
inline int64_t phase_count(const ConvGeometry& g) { return strided(g) ? 4 : 1; }

// With an odd kernel, odd phases have one tap less.
inline WinogradPhase phase_of(const ConvGeometry& g, int64_t i) {
  if (!strided(g)) return {};
  const bool odd = g.kernel[1] % 2 == 1;
  const WinogradPhase p = kPhases[i];
  return {p.h, p.w, odd && p.h > 0, odd && p.w > 0};
}

// Of all phases, those that have a value at a point: at infinity, short ones have none.
inline Span seen_phases(const ConvGeometry& g, bool h_is_infinity, bool w_is_infinity) {
  if (!strided(g) || g.kernel[1] % 2 == 0) return {0, phase_count(g)};
  return {h_is_infinity ? 1 : 0, w_is_infinity ? 2 : h_is_infinity ? 3 : 4};
}

// The way to element (point, channel, tile) of a transformed operand: point * points + channel * channels +
// tile * tiles. One of the last two is 1: tiles are side by side (the transforms' lanes are tiles, contiguous layouts
// only) or channels are.
struct WinogradSteps {
  int64_t points, channels, tiles;
};

// What the outputs of a layer end with. bias: one per channel, or null; finish: null for none.
template <typename A>
struct WinogradEnd {
  const A* bias = nullptr;
  const Finish<A>* finish = nullptr;
};

constexpr double kForeign = 3;        // times what an operand's transform costs where other cores use it, too
constexpr int64_t kTurnedTerms = 32;  // channels whose filters are used at once, turned
constexpr int64_t kFilterSpan = 64;   // elements in which the taps of a channel lie, up to which they are turned as one

// Filters of a vector of outputs, lane by lane: tap i of channel c's at data + channel * c + tap * i.
template <typename A>
struct TurnedFilters {
  const A* data;
  int64_t channel, tap;
  const A* ahead = nullptr;  // what comes after these is asked for while they are in use
};

// Transforms of T, with sums in A.
template <typename T>
struct WinogradKernel {
  using A = Accumulate<T>;
  int out_h, out_w;    // outputs of a tile
  int size_h, size_w;  // its inputs
  int points() const { return size_h * size_w; }
  // Elements of `strip` that the transforms of so many tiles need.
  int64_t (*strip_elements)(bool by_tiles, int64_t tiles);
  // v = B^T d B for `channels` channels from x on (null: zeros), a phase of its places and the tiles; lanes past the
  // last tile may be written, up to the next multiple of a vector. place: from input place to place; plane: from
  // channel to channel.
  void (*transform_input)(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradPhase phase,
                          WinogradTiles tiles, int64_t channels, A* v, WinogradSteps steps, A* strip);
  // y = A^T m A, from y on, likewise, and its end. row: from output row to output row; where places are apart, there is
  // no end.
  void (*transform_output)(const ConvGeometry& g, const A* m, WinogradSteps steps, WinogradTiles tiles,
                           int64_t channels, const WinogradEnd<A>& end, T* y, int64_t plane, int64_t row, int64_t place,
                           A* strip);
  // u[point][slice][channel][lane] = G w G^T for `lanes` outputs, of which `count` exist (others: 0). w: tap i of a
  // slice of element (output, input) at output * outputs + input * inputs + at[slice][i]; the tap is zero where that is
  // < 0.
  void (*transform_weight)(const T* w, int64_t outputs, int64_t inputs, const int64_t* at, int64_t slices,
                           int64_t channels, int64_t count, int64_t lanes, A* u, int64_t points);
  // The filters of a vector of outputs and kTurnedTerms channels or fewer turned, to `to`, which has room for a vector
  // for each tap and for 2 * kFilterSpan per channel; none is missing.
  TurnedFilters<A> (*turn_weight)(const T* w, int64_t outputs, int64_t inputs, const int64_t* at, int64_t channels,
                                  int present, A* to);
  // m of all points for turned filters and few tiles, u in registers; v[point][tile][kTurnedTerms channels]; m's rows
  // are tiles. resume: sums go on from m.
  void (*multiply_turned)(const TurnedFilters<A>& w, int64_t channels, const A* v, int64_t v_points, int64_t tiles,
                          A* m, int64_t points, int64_t row, bool resume);
  int few_tiles;  // at most
};

// Where the gradient of a weight lies, from input channel to input channel and from tap to tap: the taps of a channel
// side by side, or (channels_last) the channels of a tap.
struct TapSteps {
  int64_t channel, tap;
};

// From points to the taps of a kernel, which with a stride of 2 are those of all phases.
template <typename T>
struct WinogradToTaps {
  using A = Accumulate<T>;
  // dw = G^T m G for `channels` input channels, side by side in m, whole vectors of them. phases: from phase to phase.
  void (*transform_sums)(const A* m, int64_t points, int64_t phases, int64_t channels, bool flip, T* dw,
                         TapSteps steps);
  // dw = G^T (sum over `tiles` tiles of u v) G, to the bit what the sums that a matrix product makes are transformed
  // to. `rows` output channels, row_step apart in dw; phases: from phase to phase of v.
  void (*multiply_to_taps)(const A* u, WinogradSteps u_steps, const A* v, WinogradSteps v_steps, int64_t phases,
                           int64_t tiles, int64_t rows, int64_t channels, bool flip, T* dw, int64_t row_step,
                           TapSteps steps);
};

// The same for the gradient of the weight.
template <typename T>
struct WinogradWeightKernel {
  using A = Accumulate<T>;
  int out_h, out_w;
  int size_h, size_w;
  int points() const { return size_h * size_w; }
  int64_t (*strip_elements)(Layout layout);
  // v = B^T d B, and u = A dy A^T, as transform_input above, but with channels side by side; whole vectors are written.
  void (*transform_input)(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradPhase phase,
                          WinogradTiles tiles, int64_t channels, A* v, WinogradSteps steps, A* strip);
  void (*transform_gradient)(const ConvGeometry& g, const T* dy, int64_t plane, int64_t place, WinogradPhase phase,
                             WinogradTiles tiles, int64_t channels, A* u, WinogradSteps steps, A* strip);
  WinogradToTaps<T> plain, even, odd;  // a stride of 1; of 2 with an even and an odd kernel
  const WinogradToTaps<T>& to_taps(const ConvGeometry& g) const {
    return !strided(g) ? plain : g.kernel[1] % 2 == 0 ? even : odd;
  }
};

// So many elements or a few more, so that the same place of successive points falls into successive sets of a cache.
template <typename A>
int64_t points_apart(int64_t elements) {
  return (elements * int64_t(sizeof(A)) + 4095) / 4096 * (4096 / int64_t(sizeof(A))) + 64 / int64_t(sizeof(A));
}

// conv_winograd_backward_weight.cpp
namespace winograd_cpu {
int64_t backward_weight_bytes(const ConvGeometry& g, DType dtype);
double backward_weight_gain(const ConvGeometry& g);
void backward_weight(const ConvArguments& args);
}  // namespace winograd_cpu

}  // namespace convext::cpu
