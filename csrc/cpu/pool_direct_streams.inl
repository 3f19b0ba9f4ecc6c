// Large channels_last windows, place by place: memory is read in its order, in runs of many channels, which the
// processor foresees; the results of those channels wait in the nearest cache. kStreamTaps places are joined at once,
// so that a result is read and written once for as many. Traffic: input once and in order, output once. Limits: those
// of streams_fit; up to kPoolChannels channels at once.

namespace convext::cpu::CONVEXT_ISA {
namespace {

constexpr int kStreamTaps = 4;

// What the windows have in common: result.join<count>(x, step, tap, channels) takes `count` places, `step` apart.
template <typename T, typename Result>
CONVEXT_INLINE void stream_window(const PoolGeometry& g, const T* x, Range ts, Range rs, Range ss, const int64_t* start,
                                  int64_t channels, Result* result) {
  const int64_t step = g.dilation[2] * g.channels;
  for (int64_t t = ts.first; t < ts.last; ++t)
    for (int64_t r = rs.first; r < rs.last; ++r) {
      const T* at = x + first_of_row(g, start, t, r, ss.first);
      const int64_t row = (t * g.kernel[1] + r) * g.kernel[2];
      int64_t s = ss.first;
      for (; s + kStreamTaps <= ss.last; s += kStreamTaps, at += kStreamTaps * step)
        result->template join<kStreamTaps>(at, step, row + s, channels);
      for (; s < ss.last; ++s, at += step) result->template join<1>(at, step, row + s, channels);
    }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
