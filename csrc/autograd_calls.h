// What the calls with a gradient (autograd_conv.cpp, autograd_normalisation.cpp, autograd_pool.cpp) share.
//
// Each node computes, where no graph of the gradient is asked for, its gradients by the operators; else it hands over
// to the Python Function of the same meaning. What is saved is what the gradients read.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "autograd.h"
#include "node.h"
#include "python_arguments.h"

namespace convext {

namespace py = pybind11;
using at::IntArrayRef;
using at::Tensor;
using std::string_view;
using torch::autograd::compute_requires_grad;
using Bias = std::optional<Tensor>;

// An operator, as the dispatcher knows it.
template <typename Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Runs an operator whose gradient is somebody else's concern.
template <typename Operator, typename... Args>
auto run(const Operator& op, Args&&... args) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(std::forward<Args>(args)...);
}

// The gradient's graph is wanted: convext.autograd's function of that name.
template <typename Gradient = Tensor, typename... Args>
Gradient differentiable(const char* name, Args&&... args) {
  const py::gil_scoped_acquire gil;
  return py::module_::import("convext.autograd").attr(name)(std::forward<Args>(args)...).template cast<Gradient>();
}

inline bool wants_graph() { return at::GradMode::is_enabled(); }

inline Entries entries(IntArrayRef values) { return Entries(values.begin(), values.end()); }

inline std::vector<int64_t> list(IntArrayRef values) { return values.vec(); }  // for Python

}  // namespace convext
