// Python's entries to whole calls; see calls.cpp.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

namespace convext {

// Nothing but a backend and autograd would see an operator called with it.
bool is_plain(const at::Tensor& t);

void add_calls(pybind11::module_& module);

}  // namespace convext
