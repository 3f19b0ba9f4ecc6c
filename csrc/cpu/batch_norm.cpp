// Batch normalisation, trained: see ../batch_norm.h. Sums are made block by block, in vectors, and blocks are joined in
// double, in their order, whatever the threads: a block is a part of a plane (contiguous) or some places with all their
// channels, small enough to be read from cache the second time, for its variance about its own mean:
//
//   mean = sum of sums / N        squares = sum of squares_i + n_i (mean_i - mean)^2
//
// so that a mean far from zero costs no digits. Traffic: forward, x twice and y once (torch: x three times, y once, and
// both once more for the activation); backward x and dy twice and dx once, which begins with what the sums read last.
#include "../batch_norm.h"

#include <memory>

#include "blocking.h"
#include "isa.h"
#include "parallel.h"
#include "phases.h"
#include "simd.h"

namespace convext::cpu {

// Of one instruction set and activation.
template <typename T>
struct BatchNormKernels {
  void (*sums_of_plane)(const T*, const T*, int64_t, float, float, float, float, float, float*, float*);
  void (*input_of_plane)(const T*, const T*, int64_t, float, float, float, float, float, float, float, T*);
  void (*sums_of_places)(const T*, const T*, int64_t, int64_t, const BatchNormScales&, float, float, float*, float*);
  void (*input_of_places)(const T*, const T*, int64_t, int64_t, const BatchNormScales&, const float*, const float*,
                          float, float, T*);
};

}  // namespace convext::cpu

#define CONVEXT_KERNELS "batch_norm.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

constexpr int64_t kPlaneBlock = int64_t(1) << 12;   // numbers: a part of the nearest cache
constexpr int64_t kPlacesBlock = int64_t(1) << 15;  // numbers: a part of the second-level cache
constexpr int64_t kMostPlaces = 512;                // whose sum is one of floats
constexpr int64_t kForwards = int64_t(1) << 15;     // numbers that are passed forwards on the way backwards
constexpr int64_t kJoined = 64;                     // channels of a task

// How a tensor is cut: into blocks, counted place by place of all images, or part by part of each image's planes.
struct Cut {
  bool planes;
  Blocks places;   // of a plane, or of all images
  int64_t images;  // of planes
  int64_t blocks() const { return planes ? images * places.count : places.count; }
  int64_t size(int64_t block) const { return places[places.count == 1 ? 0 : block % places.count].size(); }
};

Cut cut_of(const BatchNormShape& s) {
  if (s.layout == Layout::contiguous) return {true, cut(s.places, 1, kPlaneBlock), s.batch};
  const int64_t places = std::clamp(kPlacesBlock / s.channels, int64_t(4), kMostPlaces);
  return {false, cut(s.batch * s.places, 1, places), s.batch};
}

// run(task's first element, block, channel) for each block of each plane, or run(.., block, 0) for each block of
// places; where `backwards`, some of the last first, as long a run of memory as is read at its full speed.
template <typename Run>
void for_each_block(const BatchNormShape& s, const Cut& cut, bool backwards, const Run& run) {
  struct Call {
    const BatchNormShape& s;
    const Cut& cut;
    bool backwards;
    const Run& run;
  } call = {s, cut, backwards, run};
  const auto body = [](void* data, int64_t begin, int64_t end, int) {
    const Call& call = *static_cast<const Call*>(data);
    const BatchNormShape& s = call.s;
    const Blocks& parts = call.cut.places;
    const auto one = [&](int64_t task) {
      if (!call.cut.planes) return call.run(parts[task].begin * s.channels, task, 0);
      const int64_t plane = parts.count == 1 ? task : task / parts.count, part = task - plane * parts.count;
      const int64_t image = plane / s.channels;
      call.run(plane * s.places + parts[part].begin, image * parts.count + part, plane - image * s.channels);
    };
    const int64_t numbers = parts.size * (call.cut.planes ? 1 : s.channels);
    const int64_t most = call.backwards ? std::max(kForwards / numbers, int64_t(1)) : end - begin;
    for (int64_t last = end, first; last > begin; last = first) {
      first = std::max(last - most, begin);
      for (int64_t task = first; task < last; ++task) one(task);
    }
  };
  parallel_ranges(cut.planes ? s.batch * s.channels * cut.places.count : cut.places.count, body, &call);
}

// Two numbers of each block and channel: [block][channel].
struct Sums {
  std::unique_ptr<float[]> first, second;
  Sums(const BatchNormShape& s, const Cut& cut)
      : first(new float[cut.blocks() * s.channels]), second(new float[cut.blocks() * s.channels]) {}
};

// join(span of channels)
template <typename Join>
void for_channels(int64_t channels, const Join& join) {
  const Blocks parts = cut(channels, 1, kJoined);
  parallel_for(parts.count, [&](int64_t task, int) { join(parts[task]); });
}

template <typename T>
void statistics(const BatchNormShape& s, const T* x, double* mean, double* squares) {
  const Phase phase("statistics");
  const Cut blocks = cut_of(s);
  const Sums sums(s, blocks);
  const auto plane = CONVEXT_SELECT_ISA(statistics_of_plane<T>);
  const auto places = CONVEXT_SELECT_ISA(statistics_of_places<T>);
  for_each_block(s, blocks, false, [&](int64_t at, int64_t block, int64_t channel) {
    float *first = &sums.first[block * s.channels + channel], *second = &sums.second[block * s.channels + channel];
    if (blocks.planes)
      plane(x + at, blocks.size(block), first, second);
    else
      places(x + at, blocks.size(block), s.channels, first, second);
  });
  for_channels(s.channels, [&](Span some) {
    for (int64_t c = some.begin; c < some.end; ++c) mean[c] = squares[c] = 0;
    for (int64_t i = 0; i < blocks.blocks(); ++i) {
      for (int64_t c = some.begin; c < some.end; ++c) mean[c] += double(sums.first[i * s.channels + c]);
    }
    for (int64_t c = some.begin; c < some.end; ++c) mean[c] /= double(s.batch * s.places);
    for (int64_t i = 0; i < blocks.blocks(); ++i) {
      const double count = double(blocks.size(i));
      for (int64_t c = some.begin; c < some.end; ++c) {
        const double off = double(sums.first[i * s.channels + c]) / count - mean[c];
        squares[c] += double(sums.second[i * s.channels + c]) + count * (off * off);
      }
    }
  });
}

template <typename T>
void gradient_sums(const BatchNormShape& s, const T* x, const T* dy, const BatchNormScales& of, double* sum,
                   double* product) {
  const Phase phase("sums");
  const Cut blocks = cut_of(s);
  const Sums sums(s, blocks);
  const auto& kernels = CONVEXT_SELECT_ISA(batch_norm_kernels<T>)(s.activation);
  for_each_block(s, blocks, false, [&](int64_t at, int64_t block, int64_t channel) {
    float *first = &sums.first[block * s.channels + channel], *second = &sums.second[block * s.channels + channel];
    if (blocks.planes)
      kernels.sums_of_plane(x + at, dy + at, blocks.size(block), of.mean[channel], of.scale[channel], of.shift[channel],
                            s.a, s.b, first, second);
    else
      kernels.sums_of_places(x + at, dy + at, blocks.size(block), s.channels, of, s.a, s.b, first, second);
  });
  for_channels(s.channels, [&](Span some) {
    for (int64_t c = some.begin; c < some.end; ++c) sum[c] = product[c] = 0;
    for (int64_t i = 0; i < blocks.blocks(); ++i)
      for (int64_t c = some.begin; c < some.end; ++c) {
        sum[c] += double(sums.first[i * s.channels + c]);
        product[c] += double(sums.second[i * s.channels + c]);
      }
  });
}

template <typename T>
void input_gradient(const BatchNormShape& s, const T* x, const T* dy, const BatchNormScales& of, const float* slope,
                    const float* offset, T* dx) {
  const Phase phase("gradient of the input");
  const Cut blocks = cut_of(s);
  const auto& kernels = CONVEXT_SELECT_ISA(batch_norm_kernels<T>)(s.activation);
  for_each_block(s, blocks, true, [&](int64_t at, int64_t block, int64_t c) {
    if (blocks.planes)
      kernels.input_of_plane(x + at, dy + at, blocks.size(block), of.mean[c], of.scale[c], of.shift[c], slope[c],
                             offset[c], s.a, s.b, dx + at);
    else
      kernels.input_of_places(x + at, dy + at, blocks.size(block), s.channels, of, slope, offset, s.a, s.b, dx + at);
  });
}

template <typename Run>
void dispatch(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::float16: return run(Half());
    case DType::bfloat16: return run(BFloat16());
    default: return run(float());
  }
}

}  // namespace

void batch_statistics(const BatchNormShape& shape, const void* input, double* mean, double* squares) {
  dispatch(shape.dtype, [&](auto of) {
    using T = decltype(of);
    statistics(shape, static_cast<const T*>(input), mean, squares);
  });
}

void batch_norm_sums(const BatchNormShape& shape, const void* input, const void* grad_output,
                     const BatchNormScales& scales, double* sum, double* product) {
  dispatch(shape.dtype, [&](auto of) {
    using T = decltype(of);
    gradient_sums(shape, static_cast<const T*>(input), static_cast<const T*>(grad_output), scales, sum, product);
  });
}

void batch_norm_backward_input(const BatchNormShape& shape, const void* input, const void* grad_output,
                               const BatchNormScales& scales, const float* slope, const float* offset, void* dx) {
  dispatch(shape.dtype, [&](auto of) {
    using T = decltype(of);
    input_gradient(shape, static_cast<const T*>(input), static_cast<const T*>(grad_output), scales, slope, offset,
                   static_cast<T*>(dx));
  });
}

}  // namespace convext::cpu
