// Python's entries to whole calls; see calls.cpp.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <string_view>

namespace convext {

// A call by its arguments, with so many spatial dimensions: a new reference, or null where it is not plain.
using ShortRoad = PyObject* (*)(int spatial, PyObject* const* args);
struct Road {
  const char* name;
  ShortRoad call;
  Py_ssize_t count;  // of arguments
};
// Raises ValueError for a name that is none.
const Road& short_road(std::string_view name);
// Layers one after the other, `spatial` being 2: input, a tuple of what read_layer reads, residual.
PyObject* call_chain(int spatial, PyObject* const* args);

void add_calls(pybind11::module_& module);

}  // namespace convext
