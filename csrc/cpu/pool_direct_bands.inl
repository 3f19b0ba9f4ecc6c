// Windows without dilation, in two steps: along the rows of a padded band, then across its rows.
//
// A band of input rows is copied to the stack, widened to the accumulate type, the padding written out as -infinity or
// zero. One of its columns is kInner elements: a single one of a contiguous plane, or the channels that fill a line of
// the cache of a channels_last image. Step one joins neighbouring columns, in place and in one loop over the whole
// band: what runs over the end of a row is never used. Step two joins rows and writes the output. Up to kPoolTaps
// places are joined at once. The runs that make a maximum may overlap, so a longer window is widened fourfold first, in
// place, as often as it takes: 13 places cost 4 + 4 loads in each direction. Ties: a run joins one that begins and ends
// before it, and of equals the first is kept. NaN: not honoured; the copy looks for it, with places also for -infinity,
// which must not lose to the padding, and leaves the part to the caller. Traffic: input once, the rows between two
// bands twice; output once. The band stays in the nearest cache. Limits: those of band_of.

namespace convext::cpu::CONVEXT_ISA {
namespace {

template <typename A, bool kPlaces, int kInner>
using BandMemory = CellMemory<A, kPlaces, band_elements(kInner)>;

// The runs of `width` places that make one of `size`, places being `distance` elements and `tap` taps apart.
CONVEXT_INLINE Runs runs_of(int64_t size, int64_t width, int64_t distance, int64_t tap) {
  Runs runs;
  runs.count = ceil_div(size, width);
  for (int64_t i = 0; i < runs.count; ++i) {
    const int64_t at = least(i * width, size - width);
    runs.distance[i] = at * distance;
    runs.tap[i] = at * tap;
  }
  return runs;
}

// Joins at `count` elements, in place, and keeps every result or a column of every `stride`, close together.
template <int kInner, int kCount, bool kStrided, typename A, bool kPlaces, int kElements>
void join_counted(CellMemory<A, kPlaces, kElements>* band, int64_t count, const Runs& runs, int64_t stride) {
  constexpr int64_t kL = kLanes<A>;
  if (kInner > 1 && kStrided) {
    for (int64_t i = 0; i * stride < count; i += kInner)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kInner; v += kL) band->set(i + v, join_at<Maximum, kCount>(*band, i * stride + v, runs));
    return;
  }
  for (int64_t i = 0; i < count; i += 2 * kL) {
    Cells<A, kPlaces> a = join_at<Maximum, kCount>(*band, i, runs);
    const Cells<A, kPlaces> b = join_at<Maximum, kCount>(*band, i + kL, runs);
    if (kStrided && stride == 2) {
      a.value = even_lanes<A>(a.value, b.value);
      if (kPlaces) a.tap = even_lanes<A>(a.tap, b.tap);
      band->set(i / 2, a);
    } else {
      band->set(i, a);
      band->set(i + kL, b);
    }
  }
  if (!kStrided || stride == 2) return;
  for (int64_t i = 0; i * stride < count; ++i) {
    band->value[i] = band->value[i * stride];
    if (kPlaces) band->tap[i] = band->tap[i * stride];
  }
}
template <int kInner, bool kStrided, typename A, bool kPlaces, int kElements>
void join_in_place(CellMemory<A, kPlaces, kElements>* band, int64_t count, const Runs& runs, int64_t stride) {
  switch (runs.count) {
    case 1: return join_counted<kInner, 1, kStrided>(band, count, runs, stride);
    case 2: return join_counted<kInner, 2, kStrided>(band, count, runs, stride);
    case 3: return join_counted<kInner, 3, kStrided>(band, count, runs, stride);
    case 4: return join_counted<kInner, 4, kStrided>(band, count, runs, stride);
    default: return join_counted<kInner, 5, kStrided>(band, count, runs, stride);
  }
}

// Widens the runs that begin at any of `count` elements until kPoolTaps of them make `size` places, `distance` elements
// and `tap` taps apart; returns those.
template <int kInner, typename A, bool kPlaces, int kElements>
CONVEXT_INLINE Runs widen(CellMemory<A, kPlaces, kElements>* band, int64_t count, int64_t size, int64_t distance,
                          int64_t tap) {
  int64_t width = 1;
  for (; size > kPoolTaps * width; width *= 4) {
    const Runs runs = runs_of(4 * width, width, distance, tap);
    count -= runs.distance[3];
    join_in_place<kInner, false>(band, count, runs, 1);
  }
  return runs_of(size, width, distance, tap);
}

// A row of the band: columns of padding, of the input, and in all.
struct BandRow {
  int64_t before, inside, columns;
};

// Fills a row of the band with what x holds, channels of it apart, and `lanes` of those. Stores run over: into what is
// written next, at last into the slack. Notes in `special` what is NaN, or with places -infinity.
template <typename T, bool kPlaces, int kInner>
CONVEXT_INLINE void pack_band_row(const T* x, const BandRow& row, int64_t channels, int64_t lanes, Accumulate<T>* to,
                                  Mask<Accumulate<T>>* special) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const Vec<A> outside = splat<A>(lowest<A>());
  for (int64_t i = 0; i < row.before * kInner; i += kL) store(to + i, outside);
  to += row.before * kInner;
  if (kInner == 1 && row.inside > 0) {
    const int64_t n = least(row.inside, kL);
    for (int64_t j = 0; j < row.inside; j += kL) {
      const int64_t i = least(j, row.inside - n);
      const Vec<A> value = load_first(x + i, n);
      look_at<Maximum, A, kPlaces>(value, special);
      store(to + i, value);
    }
  } else {
    for (int64_t w = 0; w < row.inside; ++w)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kInner; v += kL) {
        if (v >= lanes) break;
        const Vec<A> value = load_first(x + w * channels + v, lanes - v);
        look_at<Maximum, A, kPlaces>(value, special);
        store(to + w * kInner + v, value);
      }
  }
  to += row.inside * kInner;
  for (int64_t i = 0; i < (row.columns - row.before - row.inside) * kInner; i += kL) store(to + i, outside);
}

// Step two in the channels_last layout: `count` outputs of a row, kInner channels of each or as many as there are.
template <int kInner, int kCount, typename T, bool kPlaces, int kElements>
void finish_channels(const CellMemory<Accumulate<T>, kPlaces, kElements>& band, int64_t at, int64_t count,
                     const Runs& runs, int64_t channels, int64_t lanes, T* y, uint8_t* places) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  for (int64_t q = 0; q < count; ++q)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kInner; v += kL) {
      if (v >= lanes) break;
      const Cells<A, kPlaces> joined = join_at<Maximum, kCount>(band, at + q * kInner + v, runs);
      store_first(y + q * channels + v, joined.value, lanes - v);
      if (kPlaces) store_places<A>(places + q * channels + v, joined.tap, lanes - v);
    }
}
template <int kInner, typename T, bool kPlaces, int kElements>
CONVEXT_INLINE void finish_channels(const CellMemory<Accumulate<T>, kPlaces, kElements>& band, int64_t at,
                                    int64_t count, const Runs& runs, int64_t channels, int64_t lanes, T* y,
                                    uint8_t* places) {
  switch (runs.count) {
    case 1: return finish_channels<kInner, 1>(band, at, count, runs, channels, lanes, y, places);
    case 2: return finish_channels<kInner, 2>(band, at, count, runs, channels, lanes, y, places);
    case 3: return finish_channels<kInner, 3>(band, at, count, runs, channels, lanes, y, places);
    case 4: return finish_channels<kInner, 4>(band, at, count, runs, channels, lanes, y, places);
    default: return finish_channels<kInner, 5>(band, at, count, runs, channels, lanes, y, places);
  }
}

// A part of the output, or false where a NaN (with places: -infinity) was found.
template <typename T, bool kPlaces, int kInner>
bool max_bands(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  const PoolGeometry& g = args.geometry;
  const int64_t kernel_h = g.kernel[1], kernel_w = g.kernel[2], stride_h = g.stride[1], stride_w = g.stride[2];
  const int64_t channels = kInner == 1 ? 1 : g.channels, lanes = part.channels.last - part.channels.first;
  const int64_t image = kInner == 1 ? part.image * g.channels + part.channels.first : part.image;
  const int64_t first = kInner == 1 ? 0 : part.channels.first;
  const T* x = static_cast<const T*>(args.input) + image * channels * g.input_places() + first;
  T* y = static_cast<T*>(args.output) + image * channels * g.output_places() + first;
  uint8_t* places =
      advance<kPlaces>(static_cast<uint8_t*>(args.places_out), image * channels * g.output_places() + first);
  const BandShape shape = band_of(g, kInner);
  BandMemory<A, kPlaces, kInner> band;
  auto special = is_nan(Vec<A>{});

  for (int64_t o = part.os.first; o < part.os.last; ++o)
    for (int64_t q = 0; q < g.output[2]; q += shape.outputs)
      for (int64_t p = part.ps.first; p < part.ps.last; p += shape.output_rows) {
        const int64_t qs = least(shape.outputs, g.output[2] - q), ps = least(shape.output_rows, part.ps.last - p);
        const int64_t rows = (ps - 1) * stride_h + kernel_h;
        const int64_t kept = ceil_div((qs - 1) * stride_w + kernel_w, stride_w);  // columns of a row after step one
        const int64_t pitch = kept * stride_w * kInner, kept_pitch = kept * kInner;
        const int64_t w = g.place(2, q, 0), h = g.place(1, p, 0), d = g.place(0, o, 0);
        BandRow row = {greatest(-w, int64_t(0)), 0, kept * stride_w};
        row.inside = greatest(least(g.input[2] - w, row.columns) - row.before, int64_t(0));
        for (int64_t i = 0; i < rows; ++i) {
          const bool inside = h + i >= 0 && h + i < g.input[1];
          const BandRow shown = inside ? row : BandRow{row.columns, 0, row.columns};
          pack_band_row<T, kPlaces, kInner>(x + ((d * g.input[1] + h + i) * g.input[2] + w + row.before) * channels,
                                            shown, channels, lanes, band.value + i * pitch, &special);
        }
        if (any(special)) return false;
        if (kPlaces)
          for (int64_t i = 0; i < rows * pitch + kPoolSlack; ++i) band.tap[i] = 0;

        const Runs along = widen<kInner>(&band, rows * pitch, kernel_w, kInner, 1);
        const int64_t count = rows * pitch - (kernel_w - 1) * kInner;
        if (stride_w > 1)
          join_in_place<kInner, true>(&band, count, along, stride_w);
        else if (along.count > 1)
          join_in_place<kInner, false>(&band, count, along, 1);

        const Runs across = widen<kInner>(&band, rows * kept_pitch, kernel_h, kept_pitch, kernel_w);
        for (int64_t i = 0; i < ps; ++i) {
          const int64_t at = ((o * g.output[1] + p + i) * g.output[2] + q) * channels;
          uint8_t* places_at = advance<kPlaces>(places, at);
          if (kInner == 1)
            finish<Maximum>(band, i * stride_h * kept_pitch, qs, across, Divisor<A>{}, y + at, places_at);
          else
            finish_channels<kInner>(band, i * stride_h * kept_pitch, qs, across, channels, lanes, y + at, places_at);
        }
      }
  return true;
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
