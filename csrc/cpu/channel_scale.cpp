#include "../channel_scale.h"

#include "isa.h"
#include "parallel.h"
#include "simd.h"
#define CONVEXT_KERNELS "channel_scale.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

constexpr int64_t kScaleElements = 1 << 14;  // of a task, about

// Planes: a task is a few channels of one image, wherever they come from.
template <typename T>
void scale_planes(const ChannelScaleArguments& args) {
  const auto kernel = CONVEXT_SELECT_ISA(kScalePlane<T>)[int(args.activation)];
  const int64_t planes = ceil_div(kScaleElements, args.places), tasks = ceil_div(args.channels, planes);
  T* y = static_cast<T*>(args.output);
  parallel_for(args.batch * tasks, [&](int64_t task, int) {
    const int64_t n = task / tasks, first = task % tasks * planes;
    int64_t begin = 0;  // of an input, among the output's channels
    for (int64_t i = 0; i < args.count; begin += args.input_channels[i++]) {
      const T* x = static_cast<const T*>(args.inputs[i]);
      const int64_t from = first > begin ? first : begin, end = begin + args.input_channels[i];
      for (int64_t c = from; c < end && c < first + planes; ++c)
        kernel(x + (n * args.input_channels[i] + c - begin) * args.places, args.places, args.scale[c], args.shift[c],
               args.a, args.b, y + (n * args.channels + c) * args.places);
    }
  });
}

// Channels side by side: a task is a few places.
template <typename T>
void scale_places(const ChannelScaleArguments& args) {
  const auto kernel = CONVEXT_SELECT_ISA(kScalePlace<T>)[int(args.activation)];
  const int64_t places = ceil_div(kScaleElements, args.channels), all = args.batch * args.places;
  T* y = static_cast<T*>(args.output);
  parallel_for(ceil_div(all, places), [&](int64_t task, int) {
    const int64_t end = (task + 1) * places < all ? (task + 1) * places : all;
    for (int64_t place = task * places; place < end; ++place) {
      int64_t c = 0;
      for (int64_t i = 0; i < args.count; c += args.input_channels[i++])
        kernel(static_cast<const T*>(args.inputs[i]) + place * args.input_channels[i], args.input_channels[i],
               args.scale + c, args.shift + c, args.a, args.b, y + place * args.channels + c);
    }
  });
}

template <typename T>
void scale(const ChannelScaleArguments& args) {
  if (args.layout == Layout::contiguous)
    scale_planes<T>(args);
  else
    scale_places<T>(args);
}

}  // namespace

void channel_scale(const ChannelScaleArguments& args) {
  switch (args.dtype) {
    case DType::float16: return scale<Half>(args);
    case DType::bfloat16: return scale<BFloat16>(args);
    default: return scale<float>(args);
  }
}

}  // namespace convext::cpu
