// A traced network run by C++: see program.cpp.
#pragma once
#include <torch/csrc/utils/pybind.h>

namespace convext {

void add_program(pybind11::module_& module);

}  // namespace convext
