// What a kernel does to its sums where it stores them, see finish.h. Included by the kernels that do.
namespace convext::cpu::CONVEXT_ISA {
namespace {

// A Finish in registers: made once for the sums of a tile, since the compiler cannot know that a store leaves it alone.
template <typename A>
struct Ends {
  Vec<A> low, high;
  A slope;
  intptr_t residual;

  CONVEXT_INLINE explicit Ends(const Finish<A>& f)
      : low(splat(f.low)), high(splat(f.high)), slope(f.slope), residual(f.residual) {}

  // Whether there is more to do than to clamp.
  CONVEXT_INLINE bool only_clamps() const { return residual == 0 && slope == 1; }
  CONVEXT_INLINE Vec<A> clamped(Vec<A> v) const { return smaller(high, larger(low, v)); }

  // The first `some` lanes of v are for `to` and what follows it.
  CONVEXT_INLINE Vec<A> operator()(Vec<A> v, const A* to, int64_t some) const {
    if (residual != 0) v += load_first(reinterpret_cast<const A*>(reinterpret_cast<intptr_t>(to) + residual), some);
    if (slope != 1) v = larger(v * slope, v);
    return clamped(v);
  }
};

// One element.
template <typename A>
CONVEXT_INLINE A finished_element(const Finish<A>& f, A v, const A* to) {
  if (f.residual != 0) v += *reinterpret_cast<const A*>(reinterpret_cast<intptr_t>(to) + f.residual);
  if (f.slope != 1) v = larger(v * f.slope, v);
  return smaller(f.high, larger(f.low, v));
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
