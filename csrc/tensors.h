// What the operators share of tensors: their layout, fresh memory for outputs and workspaces, the device to run on.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "geometry_checks.h"

namespace convext {

// One algorithm call on the right device and stream.
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor& tensor);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  void* stream() const { return stream_; }

 private:
  int previous_ = -1;
  void* stream_ = nullptr;
};

inline Sizes sizes_of(const at::Tensor& t) { return t.sizes(); }

// torch's rule: channels_last where one of them is laid out so.
Layout layout_of(const at::Tensor& a, const at::Tensor& b);
inline Layout layout_of(const at::Tensor& t) { return layout_of(t, t); }
at::MemoryFormat memory_format(Layout layout, int spatial);
// The tensor itself where it is already laid out so, else a copy.
at::Tensor laid_out(const at::Tensor& t, Layout layout, int spatial);

// Fresh memory, full of NaN or a byte pattern while set_poison (ops.h) is on.
at::Tensor new_tensor(at::IntArrayRef shape, at::ScalarType type, const at::Tensor& like, at::MemoryFormat format);
at::Tensor new_output(at::IntArrayRef shape, const at::Tensor& like, Layout layout, int spatial);
void do_poison(const at::Tensor& t);

// Memory for `bytes` bytes, to be aligned to a cache line. Undefined (aligned: null) for no bytes.
at::Tensor new_workspace(int64_t bytes, const at::Tensor& like);
void* aligned(const at::Tensor& workspace);

// Whether CONVEXT_LOG=debug, and the line it asks for.
bool logs();
template <typename Geometry>
void log_choice(std::string_view asked, const char* chosen, const Geometry& geometry, DType dtype, const char* what) {
  if (logs())
    std::fprintf(stderr, "convext: %s %s %s: %s (asked: %.*s)\n", describe(geometry).c_str(), name_of(dtype), what,
                 chosen, int(asked.size()), asked.data());
}

}  // namespace convext
