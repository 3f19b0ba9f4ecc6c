// What a kernel does to its sums where it stores them, see finish.h. Included by the kernels that do.
namespace convext::cpu::CONVEXT_ISA {
namespace {

// The first `some` lanes of v are for `to` and what follows it.
template <typename A>
CONVEXT_INLINE Vec<A> finished(const Finish<A>& f, Vec<A> v, const A* to, int64_t some) {
  if (f.residual != 0) v += load_first(reinterpret_cast<const A*>(reinterpret_cast<intptr_t>(to) + f.residual), some);
  if (f.slope != 1) v = larger(v * f.slope, v);
  return smaller(splat(f.high), larger(splat(f.low), v));
}

// The same for sums of what may be a half type, which have no epilogue in registers; null: none.
template <typename T>
CONVEXT_INLINE Vec<Accumulate<T>> ended(const Finish<Accumulate<T>>* f, Vec<Accumulate<T>> v, const T* to,
                                        int64_t some) {
  if constexpr (sizeof(T) == sizeof(Accumulate<T>))
    if (f != nullptr) return finished(*f, v, to, some);
  return v;
}

template <typename A>
CONVEXT_INLINE A finished_element(const Finish<A>& f, A v, const A* to) {
  if (f.residual != 0) v += *reinterpret_cast<const A*>(reinterpret_cast<intptr_t>(to) + f.residual);
  if (f.slope != 1) v = larger(v * f.slope, v);
  return smaller(f.high, larger(f.low, v));
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
