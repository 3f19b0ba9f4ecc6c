// Python's entries to whole calls; see calls.cpp.
#pragma once
#include <torch/csrc/utils/pybind.h>

namespace convext {

void add_calls(pybind11::module_& module);

}  // namespace convext
