// The transforms of winograd for one instruction set; the formulas are in ../winograd.h.
//
// Both passes of a transform go first along one axis, then along the other, with whole vectors either way:
//   by tiles      contiguous only: lanes are columns in the first pass (down the rows), tiles in the second: columns
//                 are dealt out to m phases by de-interleaving, since tile j begins at column j m
//   by channels   lanes are channels in both; rows of contiguous planes are turned on the way in and out, which takes
//                 a third of a cycle per element
// The strip between the passes holds the n transformed rows of a run of tiles and stays in L1. Padding costs nothing
// inside: rows that see it are null, columns that see it are filled in the strip, where by linearity a column that
// shows another is transformed like it.

#include "conv_winograd_few.inl"
#include "finish_registers.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// By tiles: strip s of kStrips holds the columns of all tiles of a block from s m on: phase i + s m of the tiles is
// phase i of strip s, and tiles of several runs share vectors.
template <class W>
constexpr int kStrips = (W::n + W::m - 1) / W::m;

template <class W, typename A>
CONVEXT_INLINE int64_t strip_pitch(int64_t tiles) {  // whole vectors of tiles are read, a last run's tail is written
  constexpr int64_t lanes = kLanes<A>;
  return ceil_div(tiles, lanes) * lanes * W::m + W::n + lanes;
}

// By channels: what a run of tiles makes of its input and its output, and of contiguous planes what is turned.
constexpr int64_t kTurnedTiles = 8;  // of a run whose planes are turned
template <class W>
constexpr int64_t kTurnedColumns = 2 * ((kTurnedTiles - 1) * W::m + W::n);  // a stride of 2 leaves every second out
template <class W>
constexpr int64_t kRunColumns = kRunTiles * W::m + W::n;
template <class H, class W, typename A>
constexpr int64_t kChannelStrip = greatest(H::n, H::m) * kRunColumns<W> * kLanes<A>;

template <class H, class W, typename A>
int64_t strip_elements(bool by_tiles, int64_t tiles) {
  if (by_tiles) return greatest(H::n * kStrips<W>, H::m) * strip_pitch<W, A>(tiles);
  return kChannelStrip<H, W, A> + H::n * kTurnedColumns<W> * kLanes<A>;
}

template <class H, class W, typename T>
void transform_input_by_tiles(const ConvGeometry& g, const T* x, int64_t plane, WinogradPhase phase,
                              WinogradTiles tiles, int64_t channels, Accumulate<T>* v, WinogradSteps steps,
                              Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t count = tiles.end - tiles.begin, pitch = strip_pitch<W, A>(count), shifted = H::n * pitch;
  for (int64_t i = 0; i < kStrips<W> * shifted; ++i) strip[i] = 0;  // what lies past the last tile is read
  for (int64_t c = 0; c < channels; ++c, v += steps.channels) {
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileRun run = tile_run(tiles, t, count);
      A* mine = strip + run.at * W::m;
      const int64_t columns = (run.last - run.first) * W::m;
      t += run.last - run.first;
      int64_t row[H::n];
      shown_rows<OfInput<H>>(g, run.i * H::m * g.stride[1] + phase.h - g.pad_before[1], row);
      transform_run<OfInput<H>, T>(g, x == nullptr ? x : x + c * plane, plane, row,
                                   run.first * W::m * g.stride[2] + phase.w - g.pad_before[2], columns - W::m + W::n,
                                   mine, pitch);
      for (int s = 1; s < kStrips<W>; ++s)
        for (int r = 0; r < H::n; ++r)
          for (int64_t w = 0; w < columns; w += lanes)
            store(mine + s * shifted + r * pitch + w, load(mine + r * pitch + s * W::m + w));
    }
    for (int64_t j = 0; j < count; j += lanes) {
      A* to = v + j;
      for (int r = 0; r < H::n - int(phase.short_h); ++r) {
        const A* row = strip + r * pitch + j * W::m;
        Vec<A> d[W::n + W::m], u[W::n];
#pragma GCC unroll 4
        for (int s = 0; s < kStrips<W>; ++s) deal<W::m, A>(row + s * shifted, d + s * W::m);
        to_points<W, A>(d, u);
#pragma GCC unroll 8
        for (int s = 0; s < W::n; ++s, to += steps.points)
          if (s < W::n - 1 || !phase.short_w) store(to, u[s]);
      }
    }
  }
}

template <class H, class W, typename T>
void transform_input_by_channels(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradPhase phase,
                                 WinogradTiles tiles, int64_t channels, Accumulate<T>* v, WinogradSteps steps,
                                 Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const bool turned = g.layout == Layout::contiguous;
  const int64_t stride = g.stride[2], most = turned ? kTurnedTiles : kRunTiles;
  for (int64_t t = tiles.begin; t < tiles.end;) {
    const TileRun run = tile_run(tiles, t, most);
    const int64_t count = run.last - run.first, first = run.first * W::m * stride + phase.w - g.pad_before[2];
    const int64_t columns = (count - 1) * W::m + W::n;
    int64_t row[H::n];
    shown_rows<OfInput<H>>(g, run.i * H::m * g.stride[1] + phase.h - g.pad_before[1], row);
    t += count;
    for (int64_t c = 0; c < channels; c += lanes) {
      const int some = int(least(channels - c, lanes));
      A* to = v + run.at * steps.tiles + c;
      if (turned) {
        transform_planes<OfInput<H>, T>(g, x == nullptr ? x : x + c * plane, plane, row, first, columns, some,
                                        strip + kChannelStrip<H, W, A>, strip);
      } else {
        const T* rows[H::n];
        for (int r = 0; r < H::n; ++r) rows[r] = x == nullptr || row[r] < 0 ? nullptr : x + row[r] * place + c;
        if (some == lanes)
          transform_channels<OfInput<H>, T, false>(g, rows, first, place, columns, some, strip);
        else
          transform_channels<OfInput<H>, T, true>(g, rows, first, place, columns, some, strip);
      }
      if (some == lanes)
        transform_strip<OfInput<W>, A, false>(strip, H::n - int(phase.short_h), !phase.short_w, count, some, to, steps);
      else
        transform_strip<OfInput<W>, A, true>(strip, H::n - int(phase.short_h), !phase.short_w, count, some, to, steps);
    }
  }
}

template <class H, class W, typename T>
void transform_input(const ConvGeometry& g, const T* x, int64_t plane, int64_t place, WinogradPhase phase,
                     WinogradTiles tiles, int64_t channels, Accumulate<T>* v, WinogradSteps steps,
                     Accumulate<T>* strip) {
  if (steps.channels > 1)
    transform_input_by_tiles<H, W, T>(g, x, plane, phase, tiles, channels, v, steps, strip);
  else
    transform_input_by_channels<H, W, T>(g, x, plane, place, phase, tiles, channels, v, steps, strip);
}

// y[h][w] = A^T m A of one vector of tiles or channels.
template <class H, class W, typename A>
CONVEXT_INLINE void transform_back(const A* m, int64_t points, Vec<A> (*y)[W::m]) {
  Vec<A> half[W::m][H::n];
#pragma GCC unroll 8
  for (int r = 0; r < H::n; ++r) {
    Vec<A> d[W::n], out[W::m];
#pragma GCC unroll 8
    for (int s = 0; s < W::n; ++s, m += points) {
      d[s] = load(m);
      keep(d[s]);
    }
    from_points<W, A>(d, out);
#pragma GCC unroll 8
    for (int w = 0; w < W::m; ++w) half[w][r] = out[w];
  }
#pragma GCC unroll 8
  for (int w = 0; w < W::m; ++w) {
    Vec<A> out[H::m];
    from_points<H, A>(half[w], out);
#pragma GCC unroll 8
    for (int h = 0; h < H::m; ++h) y[h][w] = out[h];
  }
}

// A row of a channel's outputs, and its end.
template <typename T>
CONVEXT_INLINE void write_row(const Accumulate<T>* from, int64_t columns, T* to, int64_t place,
                              const WinogradEnd<Accumulate<T>>& end) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  int64_t w = 0;
  if (place > 1) {
    for (; w < columns; ++w) to[w * place] = from_accumulate<T>(from[w]);
    return;
  }
  if constexpr (sizeof(T) == sizeof(A))
    if (end.finish != nullptr) {
      const Ends<A> ends(*end.finish);
      for (; w < columns; w += lanes) {
        const int64_t some = least(columns - w, lanes);
        store_first(to + w, ends(load(from + w), to + w, some), some);
      }
      return;
    }
  for (; w + lanes <= columns; w += lanes) store(to + w, load(from + w));
  if (w < columns) store_part(to + w, load(from + w), 0, int(columns - w));
}

template <class H, class W, typename T>
void transform_output_by_tiles(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps, WinogradTiles tiles,
                               int64_t channels, const WinogradEnd<Accumulate<T>>& end, T* y, int64_t plane,
                               int64_t row, int64_t place, Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t height = g.output[1], width = g.output[2], count = tiles.end - tiles.begin;
  const int64_t pitch = strip_pitch<W, A>(count);
  for (int64_t k = 0; k < channels; ++k, m += steps.channels, y += plane) {
    const Vec<A> start = splat<A>(end.bias == nullptr ? A(0) : end.bias[k]);
    for (int64_t j = 0; j < count; j += lanes) {
      Vec<A> out[H::m][W::m];
      transform_back<H, W, A>(m + j, steps.points, out);
#pragma GCC unroll 8
      for (int h = 0; h < H::m; ++h) {
#pragma GCC unroll 8
        for (int w = 0; w < W::m; ++w) out[h][w] += start;
        collect<W::m, A>(out[h], strip + h * pitch + j * W::m);
      }
    }
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileRun run = tile_run(tiles, t, count);
      t += run.last - run.first;
      const int64_t columns = least(run.last * W::m, width) - run.first * W::m;
      for (int64_t h = 0; h < least<int64_t>(H::m, height - run.i * H::m); ++h) {
        write_row(strip + h * pitch + run.at * W::m, columns, y + (run.i * H::m + h) * row + run.first * W::m * place,
                  place, end);
      }
    }
  }
}

template <class H, class W, typename T>
void transform_output_channels_last(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps,
                                    WinogradTiles tiles, int64_t channels, const WinogradEnd<Accumulate<T>>& end, T* y,
                                    int64_t row, int64_t place) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const int64_t i = t / tiles.per_row, h0 = i * H::m, w0 = (t - i * tiles.per_row) * W::m;
    const int64_t high = least<int64_t>(H::m, g.output[1] - h0), wide = least<int64_t>(W::m, g.output[2] - w0);
    for (int64_t k = 0; k < channels; k += lanes) {
      const int some = int(least(channels - k, lanes));
      Vec<A> out[H::m][W::m], start = {};
      if (end.bias != nullptr) start = load_part(end.bias + k, 0, some);
      transform_back<H, W, A>(m + (t - tiles.begin) * steps.tiles + k, steps.points, out);
      for (int h = 0; h < high; ++h) {
        T* to = y + (h0 + h) * row + w0 * place + k;
        if constexpr (sizeof(T) == sizeof(A))
          if (end.finish != nullptr) {
            const Ends<A> ends(*end.finish);
            for (int w = 0; w < wide; ++w, to += place)
              store_first(to, ends(out[h][w] + start, to, some), int64_t(some));
            continue;
          }
        for (int w = 0; w < wide; ++w, to += place)
          if (some == lanes)
            store(to, out[h][w] + start);
          else
            store_part(to, out[h][w] + start, 0, some);
      }
    }
  }
}

// Of contiguous planes: a run of tiles of a vector of channels, then turned.
template <class H, class W, typename T>
void transform_output_turned(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps, WinogradTiles tiles,
                             int64_t channels, const WinogradEnd<Accumulate<T>>& end, T* y, int64_t plane, int64_t row,
                             int64_t place, Accumulate<T>* strip) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>, most = kTurnedTiles * W::m, pitch = most + lanes;
  A* const turned = strip + H::m * most * lanes;
  for (int64_t t = tiles.begin; t < tiles.end;) {
    const TileRun run = tile_run(tiles, t, kTurnedTiles);
    const int64_t count = run.last - run.first, high = least<int64_t>(H::m, g.output[1] - run.i * H::m);
    const int64_t columns = least(run.last * W::m, g.output[2]) - run.first * W::m;
    t += count;
    for (int64_t k = 0; k < channels; k += lanes) {
      const int64_t some = least(channels - k, lanes);
      Vec<A> start = {};
      if (end.bias != nullptr) start = load_part(end.bias + k, 0, int(some));
      for (int64_t j = 0; j < count; ++j) {
        Vec<A> out[H::m][W::m];
        transform_back<H, W, A>(m + (run.at + j) * steps.tiles + k, steps.points, out);
#pragma GCC unroll 8
        for (int h = 0; h < H::m; ++h)
#pragma GCC unroll 8
          for (int w = 0; w < W::m; ++w) store(strip + (h * most + j * W::m + w) * lanes, out[h][w] + start);
      }
      for (int64_t h = 0; h < high; ++h) {
        turn_columns<A>(strip + h * most * lanes, count * W::m, turned, pitch);
        T* to = y + k * plane + (run.i * H::m + h) * row + run.first * W::m * place;
        for (int64_t l = 0; l < some; ++l, to += plane) write_row(turned + l * pitch, columns, to, place, end);
      }
    }
  }
}

template <class H, class W, typename T>
void transform_output(const ConvGeometry& g, const Accumulate<T>* m, WinogradSteps steps, WinogradTiles tiles,
                      int64_t channels, const WinogradEnd<Accumulate<T>>& end, T* y, int64_t plane, int64_t row,
                      int64_t place, Accumulate<T>* strip) {
  if (steps.channels > 1)
    return transform_output_by_tiles<H, W, T>(g, m, steps, tiles, channels, end, y, plane, row, place, strip);
  if (g.layout == Layout::contiguous)
    return transform_output_turned<H, W, T>(g, m, steps, tiles, channels, end, y, plane, row, place, strip);
  transform_output_channels_last<H, W, T>(g, m, steps, tiles, channels, end, y, row, place);
}

template <typename T, class H, class W>
constexpr WinogradKernel<T> kWinograd = {
    H::m,
    W::m,
    H::n,
    W::n,
    strip_elements<H, W, Accumulate<T>>,
    transform_input<H, W, T>,
    transform_output<H, W, T>,
    transform_weight<H, W, T>,
    turn_weight<H, W, T>,
    multiply_turned<H, W, Accumulate<T>>,
    kColumnTiles<H, W>,
};

// In the order of WinogradTile.
template <typename T>
constexpr const WinogradKernel<T>* kWinogradKernels[] = {
    &kWinograd<T, Minimal<2, 3>, Minimal<2, 3>>, &kWinograd<T, Minimal<4, 3>, Minimal<4, 3>>,
    &kWinograd<T, Minimal<2, 5>, Minimal<2, 5>>, &kWinograd<T, Minimal<4, 5>, Minimal<4, 5>>,
    &kWinograd<T, Plain, Minimal<2, 3>>,         &kWinograd<T, Plain, Minimal<4, 3>>,
    &kWinograd<T, Plain, Minimal<2, 5>>,         &kWinograd<T, Plain, Minimal<4, 5>>,
    &kWinograd<T, Minimal<4, 2>, Minimal<4, 2>>, &kWinograd<T, Minimal<2, 5>, Minimal<4, 5>>,
    &kWinograd<T, Minimal<2, 4>, Minimal<2, 4>>, &kWinograd<T, Minimal<4, 4>, Minimal<4, 4>>,
};

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
