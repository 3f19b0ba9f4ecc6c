// Power-average pooling, (sum x^p)^(1 / p) for p of 2, 3 and 4: see other_pools.h.
//
// The average of x^p, a multiplication and a root; the gradient is x^(p - 1) times that of the average, taken of
// dy / y^(p - 1). Averages and their gradients are pool_direct's. The rest goes element by element before and after
// them, on a part that stays in a near cache meanwhile: some planes, or of a channels_last image the rows that some
// rows of the output see. Traffic: x and y (dx, x, dy and y) once from memory; where windows of two parts overlap, x
// twice.
#include <memory>

#include "../other_pools.h"
#include "dtype.h"
#include "isa.h"
#include "parallel.h"
#include "pool_direct.h"
#include "simd.h"

#define CONVEXT_KERNELS "power.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

template <typename T>
const T* moved(const void* p, int64_t elements) {
  return static_cast<const T*>(p) + elements;
}
template <typename T>
T* moved(void* p, int64_t elements) {
  return static_cast<T*>(p) + elements;
}
constexpr int64_t kPowers = 4096;  // powers of a plane that are made at once, about: 16 kB of float

// A pointer such that element `first` of it is *p.
template <typename T>
const void* as_of(const T* p, int64_t first) {
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) - uintptr_t(first) * sizeof(T));
}

// Contiguous, some planes at a time, on a thread: run(first plane, planes, thread).
int64_t planes_together(const PoolGeometry& g) {
  const int64_t planes = ceil_div(kPoolPart, g.input_places());
  return planes < kWidestVector && boxes_fit(g) && lanes_fit(g, kWidestVector) ? kWidestVector : planes;
}
template <typename Run>
void run_planes(const PoolGeometry& g, const Run& run) {
  const int64_t planes = g.batch * g.channels, together = planes_together(g);
  parallel_for(ceil_div(planes, together), [&](int64_t task, int thread) {
    const int64_t first = task * together;
    run(first, first + together < planes ? together : planes - first, thread);
  });
}
// The call for `planes` planes alone.
PoolArguments of_planes(const PoolArguments& args, int64_t planes) {
  PoolArguments some = args;
  some.geometry.batch = 1;
  some.geometry.channels = planes;
  return some;
}

// Whether planes are taken whole: small ones, and those whose windows pool_boxes_average makes.
bool planes_at_once(const PoolGeometry& g) {
  return g.layout == Layout::contiguous && (g.input_places() <= kPowers || boxes_fit(g));
}

template <typename T>
void pool_planes(const PowerArguments& args) {
  const PoolGeometry& g = args.pool.geometry;
  const int64_t inputs = g.input_places(), outputs = g.output_places(), size = planes_together(g) * inputs;
  const std::unique_ptr<T[]> memory(new T[max_threads() * size]);
  const auto raise = CONVEXT_SELECT_ISA(raise_all<T>);
  const auto root = CONVEXT_SELECT_ISA(roots<T>);
  run_planes(g, [&](int64_t first, int64_t planes, int thread) {
    T* const powers = memory.get() + thread * size;
    T* const y = moved<T>(args.pool.output, first * outputs);
    raise(args.power, moved<T>(args.pool.input, first * inputs), planes * inputs, powers);
    PoolArguments some = of_planes(args.pool, planes);
    some.input = powers;
    some.output = y;
    pool_direct_average(some);
    root(args.power, g.window(), planes * outputs, y);
  });
}

// Parts of a plane, or of a channels_last image: rows of the output, or depths where there are several, more than what
// windows of neighbouring parts share.
template <typename T>
void pool_rows(const PowerArguments& args) {
  const PoolGeometry& g = args.pool.geometry;
  const bool planes = g.layout == Layout::contiguous;
  const int64_t images = planes ? g.batch * g.channels : g.batch, channels = planes ? 1 : g.channels;
  const int axis = g.output[0] > 1 ? 0 : 1;
  const int64_t rows = g.output[axis], reach = (g.kernel[axis] - 1) * g.dilation[axis] + 1;
  const int64_t row = g.input_places() / g.input[axis] * channels * g.stride[axis];  // what a row of outputs goes on by
  int64_t together = ceil_div(planes ? kPowers : kPoolPart, row);
  if (together < 2 * (reach / g.stride[axis])) together = 2 * (reach / g.stride[axis]);
  const int64_t parts = ceil_div(rows, together);
  const auto raise = CONVEXT_SELECT_ISA(raise_all<T>);
  const auto root = CONVEXT_SELECT_ISA(roots<T>);
  parallel_for(images * parts, [&](int64_t task, int) {
    const int64_t first = task % parts * together, last = first + together < rows ? first + together : rows;
    const int64_t image = task / parts, channel = planes ? image % g.channels : 0;
    Part part = {
        planes ? image / g.channels : image, {channel, channel + channels}, {0, g.output[0]}, {0, g.output[1]}};
    (axis == 0 ? part.os : part.ps) = {first, last};
    // What those rows see: rows, or depths; all of an image whose depths are seen at once.
    const bool cut = axis == 0 || g.input[0] == 1;
    const int64_t limit = cut ? g.input[axis] : 1, whole = g.input_places() / limit;
    int64_t from = cut ? g.place(axis, first, 0) : 0;
    int64_t until = cut ? g.place(axis, last - 1, g.kernel[axis] - 1) + 1 : 1;
    from = from < 0 ? 0 : from < limit ? from : limit;
    until = until < from ? from : until < limit ? until : limit;
    const int64_t begin = from * whole * channels, count = (until - from) * whole * channels;
    const int64_t before = image * g.input_places() * channels;
    const std::unique_ptr<T[]> powers(new T[count]);
    raise(args.power, moved<T>(args.pool.input, before + begin), count, powers.get());
    PoolArguments some = args.pool;
    some.input = as_of(powers.get(), before + begin);
    pool_direct_average_part(some, part);
    const int64_t out = g.output_places() / rows * channels;
    root(args.power, g.window(), (last - first) * out,
         moved<T>(args.pool.output, image * g.output_places() * channels + first * out));
  });
}

template <typename T>
void gradient_planes(const PowerArguments& args) {
  const PoolGeometry& g = args.pool.geometry;
  const int64_t inputs = g.input_places(), outputs = g.output_places(), size = planes_together(g) * outputs;
  const std::unique_ptr<T[]> memory(new T[max_threads() * size]);
  const auto share = CONVEXT_SELECT_ISA(root_shares<T>);
  const auto slope = CONVEXT_SELECT_ISA(power_slopes<T>);
  run_planes(g, [&](int64_t first, int64_t planes, int thread) {
    T* const shares = memory.get() + thread * size;
    T* const dx = moved<T>(args.pool.output, first * inputs);
    share(args.power, g.window(), moved<T>(args.pool.grad_output, first * outputs), moved<T>(args.y, first * outputs),
          planes * outputs, shares);
    PoolArguments some = of_planes(args.pool, planes);
    some.grad_output = shares;
    some.output = dx;
    pool_direct_average_backward(some);
    slope(args.power, moved<T>(args.pool.input, first * inputs), planes * inputs, dx);
  });
}

template <typename T>
void gradient_channels(const PowerArguments& args) {
  const PoolGeometry& g = args.pool.geometry;
  const int64_t outputs = g.output_elements(), row = g.input[2] * g.channels;
  const std::unique_ptr<T[]> shares(new T[outputs]);
  const auto share = CONVEXT_SELECT_ISA(root_shares<T>);
  const auto slope = CONVEXT_SELECT_ISA(power_slopes<T>);
  parallel_for(ceil_div(outputs, kPoolPart), [&](int64_t task, int) {
    const int64_t first = task * kPoolPart, count = first + kPoolPart < outputs ? kPoolPart : outputs - first;
    share(args.power, g.window(), moved<T>(args.pool.grad_output, first), moved<T>(args.y, first), count,
          shares.get() + first);
  });
  PoolArguments average = args.pool;
  average.grad_output = shares.get();
  parallel_for(g.batch * g.input[0] * g.input[1], [&](int64_t i, int) {
    pool_direct_average_backward_row(average, i);
    slope(args.power, moved<T>(args.pool.input, i * row), row, moved<T>(args.pool.output, i * row));
  });
}

}  // namespace

void power_pool(const PowerArguments& args) {
  dispatch_floating(args.pool.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    planes_at_once(args.pool.geometry) ? pool_planes<T>(args) : pool_rows<T>(args);
  });
}

void power_pool_backward(const PowerArguments& args) {
  dispatch_floating(args.pool.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    args.pool.geometry.layout == Layout::contiguous ? gradient_planes<T>(args) : gradient_channels<T>(args);
  });
}

}  // namespace convext::cpu
