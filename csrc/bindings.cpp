// The Python module convext._C: questions about the library that are not tensor operations.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/phases.h"
#include "ops.h"
#include "packed_weights.h"

namespace py = pybind11;

namespace convext {
namespace {

Device parse_device(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  if (name == "cuda") return Device::cuda;
  throw py::value_error("device must be 'cpu' or 'cuda', got '" + name + "'");
}

DType parse_dtype(const std::string& name) {
  for (int i = 0; i <= int(DType::int64); ++i)
    if (name == name_of(DType(i))) return DType(i);
  throw py::value_error("dtype must be one convext has kernels for, got '" + name + "'");
}

Direction parse_direction(const std::string& name) {
  for (Direction d : {Direction::forward, Direction::backward_input, Direction::backward_weight})
    if (name == name_of(d)) return d;
  throw py::value_error("direction must be 'forward', 'backward_input' or 'backward_weight', got '" + name + "'");
}

void raise_if(const std::string& error) {
  if (!error.empty()) {
    PyErr_SetString(PyExc_RuntimeError, error.c_str());
    throw py::error_already_set();
  }
}

ConvGeometry conv_geometry(const Sizes& input, const Sizes& weight, const Sizes& stride, const Sizes& padding,
                           const Sizes& dilation, int64_t groups, const std::string& padding_mode, bool flip_kernel,
                           bool channels_last) {
  ConvGeometry g;
  raise_if(make_conv_geometry(input, weight, {stride, padding, dilation, groups, padding_mode, flip_kernel}, &g));
  g.layout = channels_last ? Layout::channels_last : Layout::contiguous;
  return g;
}

// (text of the call, name of what runs, [(name, reason or None, workspace bytes)]).
py::tuple explain_conv(ConvGeometry g, const std::string& device_name, const std::string& dtype_name,
                       const std::string& direction_name, const std::string& algorithm_name) {
  const Device device = parse_device(device_name);
  const DType dtype = parse_dtype(dtype_name);
  const Direction direction = parse_direction(direction_name);
  const Asked asked = parse_algorithm(algorithm_name);
  g.winograd = asked.winograd;
  py::list verdicts;
  for (const ConvAlgorithm* algorithm : conv_algorithms(device)) {
    const char* reason = algorithm->unsupported(g, dtype, direction);
    verdicts.append(py::make_tuple(algorithm->name, reason == nullptr ? py::object(py::none()) : py::str(reason),
                                   reason == nullptr ? algorithm->workspace_bytes(g, dtype, direction) : 0));
  }
  if (verdicts.empty()) return py::make_tuple(describe(g), py::none(), verdicts);
  return py::make_tuple(describe(g), resolve_conv(device, std::string(asked.name), g, dtype, direction).name, verdicts);
}

py::tuple explain_pool(const PoolGeometry& g, const std::string& device_name, const std::string& dtype_name,
                       const std::string& algorithm) {
  const Device device = parse_device(device_name);
  const DType dtype = parse_dtype(dtype_name);
  py::list verdicts;
  for (const PoolAlgorithm* algorithm : pool_algorithms(device)) {
    const char* reason = algorithm->unsupported(g, dtype);
    verdicts.append(py::make_tuple(algorithm->name, reason == nullptr ? py::object(py::none()) : py::str(reason), 0));
  }
  if (verdicts.empty()) return py::make_tuple(describe(g), py::none(), verdicts);
  return py::make_tuple(describe(g), resolve_pool(device, algorithm, g, dtype).name, verdicts);
}

template <typename Table>
std::vector<std::string> names(const Table& table) {
  std::vector<std::string> result;
  for (const auto* algorithm : table) result.push_back(algorithm->name);
  return result;
}

// How parallel_for deals out so many tasks: shows whether threads are really there.
std::vector<int64_t> tasks_per_thread(int64_t tasks) {
  std::vector<int64_t> counts(cpu::max_threads(), 0);
  cpu::parallel_for(tasks, [&](int64_t, int thread) { ++counts[thread]; });
  return counts;
}

// torch's exceptions as Python's, by their text alone.
void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const c10::NotImplementedError& error) {
    PyErr_SetString(PyExc_NotImplementedError, error.what_without_backtrace());
  } catch (const c10::ValueError& error) { PyErr_SetString(PyExc_ValueError, error.what_without_backtrace()); }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_local_exception_translator(&translate);
  m.doc() = "convext's kernels and what they say of themselves";
  m.def("conv_algorithms", [](const std::string& device) { return names(conv_algorithms(parse_device(device))); });
  m.def("pool_algorithms", [](const std::string& device) { return names(pool_algorithms(parse_device(device))); });
  m.def(
      "conv_output_shape",
      [](const Sizes& input, const Sizes& weight, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
         int64_t groups, const std::string& padding_mode) {
        return conv_output_shape(
            conv_geometry(input, weight, stride, padding, dilation, groups, padding_mode, false, false));
      },
      py::arg("input"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("padding_mode"));
  m.def(
      "pool_output_shape",
      [](const std::string& op, const Sizes& input, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
         const Sizes& dilation, bool ceil_mode) {
        PoolGeometry g;
        raise_if(make_pool_geometry(op.c_str(), input, {kernel_size, stride, padding, dilation, ceil_mode}, &g));
        return pool_output_shape(g);
      },
      py::arg("op"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("ceil_mode"));
  m.def(
      "explain_conv",
      [](const Sizes& input, const Sizes& weight, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
         int64_t groups, const std::string& padding_mode, bool flip_kernel, bool channels_last,
         const std::string& device, const std::string& dtype, const std::string& direction,
         const std::string& algorithm) {
        return explain_conv(
            conv_geometry(input, weight, stride, padding, dilation, groups, padding_mode, flip_kernel, channels_last),
            device, dtype, direction, algorithm);
      },
      py::arg("input"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("padding_mode"), py::arg("flip_kernel"), py::arg("channels_last"), py::arg("device"),
      py::arg("dtype"), py::arg("direction"), py::arg("algorithm"));
  m.def(
      "explain_pool",
      [](const std::string& op, const Sizes& input, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
         const Sizes& dilation, bool ceil_mode, bool channels_last, const std::string& device, const std::string& dtype,
         const std::string& algorithm) {
        PoolGeometry g;
        raise_if(make_pool_geometry(op.c_str(), input, {kernel_size, stride, padding, dilation, ceil_mode}, &g));
        g.layout = channels_last ? Layout::channels_last : Layout::contiguous;
        return explain_pool(g, device, dtype, algorithm);
      },
      py::arg("op"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("ceil_mode"), py::arg("channels_last"), py::arg("device"), py::arg("dtype"),
      py::arg("algorithm"));
  m.def("active_isa", [] { return std::string(cpu::name_of(cpu::active_isa())); });
  m.def("available_isas", [] {
    std::vector<std::string> result;
    for (cpu::Isa isa : cpu::available_isas()) result.push_back(cpu::name_of(isa));
    return result;
  });
  m.def("set_isa", [](const std::string& name) {
    const std::string error = cpu::set_isa(name);
    if (!error.empty()) throw py::value_error(error);
  });
  m.def("winograd_mode", [] { return std::string(name_of(winograd_mode())); });
  m.def("set_winograd_mode", [](const std::string& name) { set_winograd_mode(parse_winograd_mode(name)); });
  m.def("parse_algorithm", [](const std::string& algorithm) {
    const Asked asked = parse_algorithm(algorithm);
    return std::make_pair(std::string(asked.name), std::string(name_of(asked.winograd)));
  });
  m.def("max_threads", &cpu::max_threads);
  m.def("tasks_per_thread", &tasks_per_thread, py::arg("tasks"));
  m.def("packed_weight_bytes", &packed_weight_bytes);
  m.def("clear_packed_weights", &clear_packed_weights);
  m.def("keep_packed_weights", &keep_packed_weights);
  m.def("start_phases", &cpu::start_phases);
  m.def("stop_phases", [] {
    std::vector<std::tuple<std::string, int, int64_t, int64_t>> result;
    for (const cpu::PhaseTime& phase : cpu::stop_phases())
      result.emplace_back(phase.name, phase.thread, phase.nanoseconds, phase.calls);
    return result;
  });
  m.def("set_poison", &set_poison);
  m.def("built_with_cuda", [] { return !conv_algorithms(Device::cuda).empty(); });
  m.def("compiler", [] { return std::string("GCC-compatible ") + __VERSION__; });
}

}  // namespace convext
