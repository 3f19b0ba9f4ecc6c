// Sums of grad_output per channel. Vectors are summed in blocks of kBlockSteps, block sums into a total: rounding
// errors then grow with the length of a block and the number of blocks, not with the number of elements.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int64_t kBlockSteps = 64;
constexpr int64_t kChains = 4;  // sums carried side by side, to hide the latency of an addition

template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> load_up_to(const T* p, int64_t n) {
  return n >= kLanes<Accumulate<T>> ? load(p) : load_part(p, 0, int(n));
}

// Contiguous: channel k, plane after plane. A step is kChains neighbouring vectors; lanes are added up last.
template <typename T>
void sum_planes(const ConvArguments& args, int64_t k) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = kBlockSteps * kChains * kL;
  const ConvGeometry& g = args.geometry;
  const int64_t places = g.output_places();
  Vec<A> total = {};
  for (int64_t n = 0; n < g.batch; ++n) {
    const T* dy = static_cast<const T*>(args.grad_output) + g.output_offset(n, k, 0);
    for (int64_t begin = 0; begin < places; begin += kBlock) {
      const int64_t end = least(begin + kBlock, places);
      Vec<A> sum[kChains] = {};
      int64_t i = begin;
      for (; i + kChains * kL <= end; i += kChains * kL)
#pragma GCC unroll 4
        for (int64_t chain = 0; chain < kChains; ++chain) sum[chain] += load(dy + i + chain * kL);
      for (int64_t chain = 0; i < end; i += kL, ++chain) sum[chain] += load_up_to(dy + i, end - i);
      total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
  }
  static_cast<T*>(args.output)[k] = from_accumulate<T>(sum_lanes<A>(total));
}

// Channels_last: the channels of a block, kVectors vectors of which the last may be short, down all images and places.
// A step is kChains places.
template <typename T>
void sum_columns(const ConvArguments& args, int64_t block) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kVectors = 2;
  const ConvGeometry& g = args.geometry;
  const int64_t channels = g.out_channels, places = g.batch * g.output_places();
  for (int64_t k = block * kBiasChannels; k < least((block + 1) * kBiasChannels, channels); k += kVectors * kL) {
    const T* dy = static_cast<const T*>(args.grad_output) + k;
    const int64_t lanes[kVectors] = {channels - k, channels - k - kL};
    const int64_t vectors = lanes[1] > 0 ? 2 : 1;
    Vec<A> total[kVectors] = {};
    for (int64_t begin = 0; begin < places; begin += kBlockSteps * kChains) {
      const int64_t end = least(begin + kBlockSteps * kChains, places);
      Vec<A> sum[kVectors][kChains] = {};
      int64_t at = begin;
      if (lanes[1] >= kL) {
        for (; at + kChains <= end; at += kChains)
#pragma GCC unroll 4
          for (int64_t chain = 0; chain < kChains; ++chain) {
            sum[0][chain] += load(dy + (at + chain) * channels);
            sum[1][chain] += load(dy + (at + chain) * channels + kL);
          }
      }
      for (; at < end; ++at)
        for (int64_t v = 0; v < vectors; ++v)
          sum[v][(at - begin) % kChains] += load_up_to(dy + at * channels + v * kL, lanes[v]);
      for (int64_t v = 0; v < vectors; ++v) total[v] += (sum[v][0] + sum[v][1]) + (sum[v][2] + sum[v][3]);
    }
    for (int64_t v = 0; v < vectors; ++v)
      store_part(static_cast<T*>(args.output) + k + v * kL, total[v], 0, int(least(lanes[v], kL)));
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
