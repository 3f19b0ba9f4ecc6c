// The gradient of a maximum over plain windows in a plane, output by output: each adds its dy to the place it won, one
// addition whatever the window, in the order of naive.
//
// Where winners lie is found a vector at a time (the row of a place by a multiplication), and whether any lies outside
// the sums asked once for a block of 8 outputs of 8 contiguous planes or of 4 outputs of 16 channels; blocks that have
// one, at the edge of a part or by places that no pooling made, ask for each. The additions are scalar: offset, dy and
// sum are loaded, the sum stored. Neighbouring outputs of a plane often have the same winner, whose sum the second has
// to wait for, about 11 cycles: meanwhile go the other planes or channels. Additions alone take 2.1 cycles an output
// on Zen 3 (a store takes 1), all of it about 3.5, what looks at every place of the window 3 for 3x3, 5 for 5x5.
// Sums of contiguous planes lie in dx itself, cleared just before a window shows them; those of channels and of 16-bit
// types in a ring of rows, which rest a while before they are written: a vector's load would wait for the scalar
// stores. Traffic: dy, places and dx once; the ring stays in the nearest cache. Limits: those of winners_fit.
namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kWinners = kLanes<float>;  // winners found at once

// Some outputs' winners, as offsets from the sums' first, and their dy; kVectors vectors of each.
template <typename A, int kVectors>
struct WinnerBlock {
  alignas(kVectorBytes) int32_t at[kVectors * kWinners];
  alignas(kVectorBytes) A value[kVectors * kWinners];

  // Loaded element by element from here on: taking vectors apart costs twice the instructions.
  CONVEXT_INLINE void in_memory() { __asm__("" : "+m"(at), "+m"(value)); }
};

// Where the sums are: `size` elements of each plane, planes `lane` apart.
template <typename A>
struct WinnerSums {
  A* sum;
  int64_t size, lane;
  IndexVec<float> reciprocal, skip, sizes, lanes;  // to a row of the window; from the end of one to the next; as above
  IndexVec<float> last;                            // place of a window

  // Of places of a window that begins at `base`; the sign of `outside` is set where one is not among the sums. A place
  // that windows do not have is not.
  template <int kInner, bool kWrap>
  CONVEXT_INLINE IndexVec<float> find(IndexVec<float> place, IndexVec<float> base, IndexVec<float>* outside) const {
    IndexVec<float> at = base + (place + (place * reciprocal >> 16) * skip) * kInner;
    if (kWrap) {
      const IndexVec<float> wrapped = at - sizes;
      at = choose(less(wrapped, IndexVec<float>{}), at, wrapped);
    }
    at |= (last - place) >> 31;
    *outside |= at | (sizes - 1 - at);
    return at;
  }
};

// Keeps n numbers as they are summed.
template <typename T>
CONVEXT_INLINE void keep(const T* dy, int64_t n, Accumulate<T>* value) {
  constexpr int64_t kL = kLanes<Accumulate<T>>;
#pragma GCC unroll 2
  for (int64_t i = 0; i < kWinners; i += kL)
    if (i < n) store(value + i, load_first(dy + i, n - i));
}

// The outputs [first, n) of a vector of neighbours in each of `planes` planes. kWhole: memory goes on for a vector.
template <int kPlanes, bool kWrap, bool kWhole, typename T>
CONVEXT_INLINE void add_plane_vectors(const WinnerSums<Accumulate<T>>& sums, const T* dy, const uint8_t* places,
                                      int64_t pitch, int64_t planes, IndexVec<float> start, int64_t first, int64_t n) {
  using A = Accumulate<T>;
  WinnerBlock<A, kPlanes> block;
  A* const sum = sums.sum;
  const int64_t there = kWhole ? kWinners : n;
  IndexVec<float> outside = {}, lane = {};
#pragma GCC unroll 8
  for (int64_t l = 0; l < planes; ++l, dy += pitch, places += pitch, lane += sums.lanes) {
    const IndexVec<float> at = sums.template find<1, kWrap>(load_places<float>(places, there), start, &outside);
    store_index<float>(block.at + l * kWinners, at + lane);
    keep(dy, there, block.value + l * kWinners);
  }
  block.in_memory();
  if (any(less(outside, IndexVec<float>{}))) {
    for (int64_t i = first; i < n; ++i)
      for (int64_t l = 0; l < planes; ++l) {
        const int64_t at = block.at[l * kWinners + i];
        if (uint64_t(at - l * sums.lane) < uint64_t(sums.size)) sum[at] += block.value[l * kWinners + i];
      }
    return;
  }
  for (int64_t i = first; i < n; ++i)
#pragma GCC unroll 8
    for (int64_t l = 0; l < planes; ++l) sum[block.at[l * kWinners + i]] += block.value[l * kWinners + i];
}
// `count` neighbours in each of `planes` planes, the first of whose windows begins at `base`; `room` elements follow.
template <int kPlanes, bool kWrap, typename T>
CONVEXT_INLINE void add_planes(const PoolGeometry& g, const WinnerSums<Accumulate<T>>& sums, const T* dy,
                               const uint8_t* places, int64_t planes, int64_t base, int64_t count, int64_t room) {
  const int64_t stride = g.stride[2], pitch = g.output_places();
  const IndexVec<float> apart = lane_numbers<float>() * int32_t(stride);
  int64_t q = 0;
  for (; q + kWinners <= count; q += kWinners)
    add_plane_vectors<kPlanes, kWrap, true>(sums, dy + q, places + q, pitch, planes,
                                            splat_index<float>(base + q * stride) + apart, 0, kWinners);
  if (q == count) return;
  const int64_t from = count - kWinners;
  if (from >= 0)
    add_plane_vectors<kPlanes, kWrap, true>(sums, dy + from, places + from, pitch, planes,
                                            splat_index<float>(base + from * stride) + apart, q - from, kWinners);
  else if ((planes - 1) * pitch + kWinners <= room)
    add_plane_vectors<kPlanes, kWrap, true>(sums, dy, places, pitch, planes, splat_index<float>(base) + apart, 0,
                                            count);
  else
    add_plane_vectors<kPlanes, kWrap, false>(sums, dy, places, pitch, planes, splat_index<float>(base) + apart, 0,
                                             count);
}

// kOutputs neighbours of a row, of `lanes` channels each, of which kChannels are held side by side. kWhole: as many.
template <int kChannels, int kOutputs, bool kWhole, typename T>
CONVEXT_INLINE void add_channel_vectors(const WinnerSums<Accumulate<T>>& sums, const T* dy, const uint8_t* places,
                                        int64_t channels, int64_t lanes, int64_t base, int64_t stride) {
  using A = Accumulate<T>;
  constexpr int kVectors = kChannels / kWinners;
  WinnerBlock<A, kOutputs * kVectors> block;
  A* const sum = sums.sum;
  if (kWhole) lanes = kChannels;
  IndexVec<float> outside = {};
#pragma GCC unroll 4
  for (int64_t q = 0; q < kOutputs; ++q, dy += channels, places += channels, base += stride) {
    IndexVec<float> start = splat_index<float>(base * kChannels) + lane_numbers<float>();
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v, start += kWinners) {
      const int64_t n = lanes - v * kWinners, to = (q * kVectors + v) * kWinners;
      if (n <= 0) break;
      const IndexVec<float> place = load_places<float>(places + v * kWinners, n);
      store_index<float>(block.at + to, sums.template find<kChannels, true>(place, start, &outside));
      keep(dy + v * kWinners, n, block.value + to);
    }
  }
  block.in_memory();
  const bool inside = !any(less(outside, IndexVec<float>{}));
  for (int64_t q = 0; q < kOutputs; ++q) {
    const int32_t* at = block.at + q * kChannels;
    const A* value = block.value + q * kChannels;
    if (inside && kWhole)
#pragma GCC unroll 16
      for (int64_t l = 0; l < kChannels; ++l) sum[at[l]] += value[l];
    else
      for (int64_t l = 0; l < lanes; ++l)
        if (uint64_t(int64_t(at[l])) < uint64_t(sums.size)) sum[at[l]] += value[l];
  }
}
// A row of outputs of `lanes` channels.
template <int kChannels, bool kWhole, typename T>
CONVEXT_INLINE void add_channels(const PoolGeometry& g, const WinnerSums<Accumulate<T>>& sums, const T* dy,
                                 const uint8_t* places, int64_t lanes, int64_t base) {
  constexpr int kOutputs = 4;
  const int64_t channels = g.channels, stride = g.stride[2];
  int64_t q = 0;
  for (; q + kOutputs <= g.output[2]; q += kOutputs)
    add_channel_vectors<kChannels, kOutputs, kWhole>(sums, dy + q * channels, places + q * channels, channels, lanes,
                                                     base + q * stride, stride);
  for (; q < g.output[2]; ++q)
    add_channel_vectors<kChannels, 1, kWhole>(sums, dy + q * channels, places + q * channels, channels, lanes,
                                              base + q * stride, stride);
}

// The rows [top, end) of a part of the input, counted from its first, as they pass through the sums: cleared before the
// first window shows them, written out when room is needed. Sums that lie in dx are cleared only.
template <bool kInner, bool kRing, typename T>
struct PassingRows {
  using A = Accumulate<T>;
  A* sum;
  T* dx;
  int64_t held, rows, width, lanes, lane, step;  // step: from one column of dx to the next, or from one plane
  int64_t top, end;

  CONVEXT_INLINE void clear(int64_t h) {
    constexpr int64_t kL = kLanes<A>;
    const int64_t count = kInner ? width * kPoolWon : width, n = least(count, kL), row = kRing ? h % held : h;
    for (int64_t l = 0; l < (kInner ? 1 : lanes); ++l) {
      A* to = sum + l * lane + row * count;
      for (int64_t j = 0; j < count; j += kL) store_first(to + least(j, count - n), Vec<A>{}, n);
    }
  }
  CONVEXT_INLINE void write(int64_t h) {
    constexpr int64_t kL = kLanes<A>;
    const A* from = sum + h % held * width * (kInner ? kPoolWon : 1);
    T* to = dx + h * width * (kInner ? step : 1);
    if (kInner) {
      for (int64_t w = 0; w < width; ++w, from += kPoolWon, to += step)
        for (int64_t l = 0; l < lanes; l += kL) store_first(to + l, load_first(from + l, lanes - l), lanes - l);
    } else {
      const int64_t n = least(width, kL);
      for (int64_t l = 0; l < lanes; ++l)
        for (int64_t j = 0; j < width; j += kL) {
          const int64_t i = least(j, width - n);
          store_first(to + l * step + i, load_first(from + l * lane + i, n), n);
        }
    }
  }
  // Rows before `until` are among the sums.
  CONVEXT_INLINE void show(int64_t until) {
    for (; end < until; ++end) {
      if (kRing && end - top == held) {
        if (top < rows) write(top);
        ++top;
      }
      if (kRing || end < rows) clear(end);
    }
  }
  CONVEXT_INLINE void finish() {
    show(rows);
    if (kRing)
      for (; top < rows; ++top) write(top);
  }
};

// A part of the input of some planes, or of some channels.
template <bool kInner, bool kRing, typename T>
void max_backward_winners(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int kPlanes = kPoolWonPlanes;
  const PoolGeometry& g = args.geometry;
  const int64_t width = g.input[2], kernel = g.kernel[1], step = kInner ? g.channels : 1;
  const int64_t places_in = g.input_places(), places_out = g.output_places();
  const int64_t first = part.channels.first, lanes = part.channels.last - first, plane = part.image * g.channels;
  const int64_t out = kInner ? plane * places_out + first : (plane + first) * places_out;
  const T* dy = static_cast<const T*>(args.grad_output) + out;
  const int64_t room = g.batch * g.channels * places_out - out;
  const uint8_t* places = static_cast<const uint8_t*>(args.places) + out;
  T* dx = static_cast<T*>(args.output) + (kInner ? plane * places_in + first : (plane + first) * places_in);

  const Range hs = part.ps, ps = outputs_over(g, 1, hs.first, hs.last);
  alignas(64) A ring[kRing ? kPoolScatter : 1];
  PassingRows<kInner, kRing, T> rows;
  const int64_t held = kRing ? kernel + kPoolSpare : hs.last - hs.first;
  // At stride 1, where rows of the input and of the output are equally long, rows follow each other as columns do.
  const bool even = !kRing && g.stride[1] == 1 && g.stride[2] == 1 && g.output[2] == width;
  const int64_t taken = even ? greatest(kPoolEven / width, int64_t(1)) : 1;
  rows.held = held;
  rows.rows = hs.last - hs.first;
  rows.width = width;
  rows.lanes = lanes;
  rows.step = kInner ? g.channels : places_in;
  WinnerSums<A> sums;
  sums.size = held * width * (kInner ? kPoolWon : 1);
  sums.lane = rows.lane = kInner ? 1 : kRing ? (sums.size + 127) / 128 * 128 + 64 : places_in;
  sums.reciprocal = splat_index<float>(ceil_div(65536, g.kernel[2]));
  sums.skip = splat_index<float>(width - g.kernel[2]);
  sums.sizes = splat_index<float>(sums.size);
  sums.lanes = splat_index<float>(sums.lane);
  sums.last = splat_index<float>(kernel * g.kernel[2] - 1);

  for (int64_t d = part.os.first; d < part.os.last; ++d) {
    rows.dx = dx + (d * g.input[1] + hs.first) * width * step;
    if constexpr (kRing)
      rows.sum = ring;
    else
      rows.sum = rows.dx;
    sums.sum = rows.sum;
    rows.top = rows.end = 0;
    const Seers os = seers_of(g, 0, d);
    for (int64_t p = ps.first; os.count > 0 && p < ps.last; p += taken) {
      const int64_t start = g.place(1, p, 0) - hs.first, at = (os.out * g.output[1] + p) * g.output[2] * step;
      const int64_t now = least(taken, ps.last - p), row = kRing ? (start % held + held) % held : start;
      rows.show(start + (now - 1) * g.stride[1] + kernel);
      const int64_t base = row * width + g.place(2, 0, 0), count = now * g.output[2];
      if constexpr (kInner)
        lanes == kPoolWon ? add_channels<int(kPoolWon), true>(g, sums, dy + at, places + at, lanes, base)
                          : add_channels<int(kPoolWon), false>(g, sums, dy + at, places + at, lanes, base);
      else if (lanes == kPlanes)
        add_planes<kPlanes, kRing>(g, sums, dy + at, places + at, kPlanes, base, count, room - at);
      else
        add_planes<kPlanes, kRing>(g, sums, dy + at, places + at, lanes, base, count, room - at);
    }
    rows.finish();
  }
}

template <typename T>
void max_backward_winners_planes(const PoolArguments& args, const Part& part) {
  max_backward_winners<false, sizeof(T) != sizeof(Accumulate<T>), T>(args, part);
}
template <typename T>
void max_backward_winners_channels(const PoolArguments& args, const Part& part) {
  max_backward_winners<true, true, T>(args, part);
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
