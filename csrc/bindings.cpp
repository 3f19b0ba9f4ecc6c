// The Python module convext._C: questions about the library that are not tensor operations.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <chrono>
#include <iterator>
#include <limits>
#include <optional>
#include <thread>

#include "arena.h"
#include "calls.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/phases.h"
#include "cuda_choice.h"
#include "epilogue.h"
#include "ops.h"
#include "packed_weights.h"
#include "program.h"
#include "tuning.h"

namespace py = pybind11;

namespace convext {
namespace {

using Ints = std::vector<int64_t>;

Ints to_list(const Shape& shape) { return Ints(shape.begin(), shape.end()); }

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

ConvGeometry conv_geometry(const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding,
                           const Ints& dilation, int64_t groups, const std::string& padding_mode, bool flip_kernel,
                           bool channels_last) {
  ConvGeometry g;
  raise_if(make_conv_geometry(input, weight, {stride, padding, dilation, groups, padding_mode, flip_kernel}, &g));
  g.layout = channels_last ? Layout::channels_last : Layout::contiguous;
  return g;
}

PoolGeometry pool_geometry(const std::string& op, const Ints& input, const Ints& kernel_size, const Ints& stride,
                           const Ints& padding, const Ints& dilation, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override, bool channels_last) {
  PoolGeometry g;
  raise_if(make_pool_geometry(
      op.c_str(), input,
      {kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override.value_or(0)}, &g));
  g.layout = channels_last ? Layout::channels_last : Layout::contiguous;
  return g;
}

PoolPass parse_pass(const std::string& op, const std::string& direction) {
  const bool forward = parse_direction(direction) == Direction::forward;
  if (op == "avg_pool") return forward ? PoolPass::avg_forward : PoolPass::avg_backward;
  return forward ? PoolPass::max_forward : PoolPass::max_backward;
}

int64_t workspace_bytes(const ConvAlgorithm& a, const ConvGeometry& g, DType dtype, Direction direction) {
  return a.unsupported(g, dtype, direction) == nullptr ? a.workspace_bytes(g, dtype, direction) : 0;
}
int64_t workspace_bytes(const PoolAlgorithm&, const PoolGeometry&, DType, PoolPass) { return 0; }

// (text of the call, name of what runs, [(name, reason or None, workspace bytes)], whether it was measured to be best).
template <typename Table, typename Geometry, typename Of, typename Resolve>
py::tuple explain(const Table& table, const Geometry& g, DType dtype, Of of, typename Table::value_type measured,
                  const Resolve& resolve) {
  py::list verdicts;
  for (const auto* algorithm : table) {
    const std::string reason = refusal(*algorithm, g, dtype, of);
    verdicts.append(py::make_tuple(algorithm->name, reason.empty() ? py::object(py::none()) : py::str(reason),
                                   workspace_bytes(*algorithm, g, dtype, of)));
  }
  if (verdicts.empty()) return py::make_tuple(describe(g), py::none(), verdicts, false);
  const auto& runs = resolve();
  return py::make_tuple(describe(g), runs.name, verdicts, &runs == measured);
}

// The algorithm of that name, or nullptr for None.
template <typename Table>
auto named(const Table& table, const std::optional<std::string>& name) -> typename Table::value_type {
  if (!name.has_value()) return nullptr;
  for (const auto* algorithm : table)
    if (*name == algorithm->name) return algorithm;
  throw py::value_error("no algorithm is named '" + *name + "'");
}

template <typename Table>
std::vector<std::string> names(const Table& table) {
  std::vector<std::string> result;
  for (const auto* algorithm : table) result.push_back(algorithm->name);
  return result;
}

// How parallel_for deals out tasks and share their parts, those that thread t takes lasting so many microseconds[t]:
// shows whether threads are really there.
std::vector<int64_t> parts_per_thread(int64_t tasks, int64_t parts, const std::vector<int64_t>& microseconds) {
  std::vector<int64_t> counts(cpu::max_threads(), 0);
  cpu::parallel_for(tasks, [&](int64_t, int) {
    cpu::share(parts, [&](int64_t, int thread) {
      ++counts[thread];
      if (size_t(thread) < microseconds.size())
        std::this_thread::sleep_for(std::chrono::microseconds(microseconds[thread]));
    });
  });
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

// Free-threaded Python: all state of the process is atomic (modes, limits, the instruction set), behind a lock (packed
// weights, measured choices, phases) or a thread's own; long_roads (calls.cpp) is written while the module is imported.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  py::register_local_exception_translator(&translate);
  m.doc() = "convext's kernels and what they say of themselves";
  m.def("conv_algorithms", [](const std::string& device) { return names(conv_algorithms(parse_device(device))); });
  m.def("pool_algorithms", [](const std::string& device) { return names(pool_algorithms(parse_device(device))); });
  m.def(
      "conv_output_shape",
      [](const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding, const Ints& dilation,
         int64_t groups, const std::string& padding_mode) {
        const ConvGeometry g =
            conv_geometry(input, weight, stride, padding, dilation, groups, padding_mode, false, false);
        return to_list(conv_output_shape(g));
      },
      py::arg("input"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("padding_mode"));
  m.def(
      "pool_output_shape",
      [](const std::string& op, const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
         const Ints& dilation, bool ceil_mode) {
        PoolGeometry g;
        raise_if(make_pool_geometry(op.c_str(), input, {kernel_size, stride, padding, dilation, ceil_mode}, &g));
        return to_list(pool_output_shape(g));
      },
      py::arg("op"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("ceil_mode"));
  m.def(
      "explain_conv",
      [](const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding, const Ints& dilation,
         int64_t groups, const std::string& padding_mode, bool flip_kernel, bool channels_last,
         const std::string& device_name, const std::string& dtype_name, const std::string& direction_name,
         const std::string& algorithm) {
        ConvGeometry g =
            conv_geometry(input, weight, stride, padding, dilation, groups, padding_mode, flip_kernel, channels_last);
        const Device device = parse_device(device_name);
        const DType dtype = parse_dtype(dtype_name);
        const Direction direction = parse_direction(direction_name);
        const Asked asked = parse_algorithm(algorithm);
        g.winograd = asked.winograd;
        g.tf32 = allows_tf32(device, dtype);
        const ConvAlgorithm* measured = asked.name == "auto" ? tuned(device, g, dtype, direction) : nullptr;
        return explain(conv_algorithms(device), g, dtype, direction, measured,
                       [&]() -> const ConvAlgorithm& { return resolve_conv(device, asked, g, dtype, direction); });
      },
      py::arg("input"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("padding_mode"), py::arg("flip_kernel"), py::arg("channels_last"), py::arg("device"),
      py::arg("dtype"), py::arg("direction"), py::arg("algorithm"));
  m.def(
      "cuda_model",
      [](const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding, const Ints& dilation,
         int64_t groups, const std::string& padding_mode, bool flip_kernel, bool channels_last,
         const std::string& dtype_name, const std::string& direction_name, const std::string& algorithm,
         const std::vector<std::string>& able, std::optional<std::pair<int, int>> gpu) {
        ConvGeometry g =
            conv_geometry(input, weight, stride, padding, dilation, groups, padding_mode, flip_kernel, channels_last);
        g.winograd = parse_algorithm(algorithm).winograd;
        if (able.empty()) throw py::value_error("able must name an algorithm");
        const Gpu which = gpu.has_value() ? Gpu{gpu->first, gpu->second} : current_gpu();
        const DType dtype = parse_dtype(dtype_name);
        const Direction direction = parse_direction(direction_name);
        py::dict seconds;
        for (const std::string& name : able) seconds[py::str(name)] = cuda_seconds(which, name, g, dtype, direction);
        const std::vector<std::string_view> names(able.begin(), able.end());
        return py::make_tuple(std::string(cuda_choice(which, names, g, dtype, direction)), seconds);
      },
      py::arg("input"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("padding_mode"), py::arg("flip_kernel"), py::arg("channels_last"), py::arg("dtype"),
      py::arg("direction"), py::arg("algorithm"), py::arg("able"), py::arg("gpu") = py::none());
  m.def(
      "explain_pool",
      [](const std::string& op, const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
         const Ints& dilation, bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override,
         bool channels_last, const std::string& device_name, const std::string& dtype_name,
         const std::string& direction, const std::string& algorithm) {
        const PoolGeometry g = pool_geometry(op, input, kernel_size, stride, padding, dilation, ceil_mode,
                                             count_include_pad, divisor_override, channels_last);
        const Device device = parse_device(device_name);
        const DType dtype = parse_dtype(dtype_name);
        const PoolPass pass = parse_pass(op, direction);
        const PoolAlgorithm* measured = algorithm == "auto" ? tuned(device, g, dtype, pass) : nullptr;
        return explain(pool_algorithms(device), g, dtype, pass, measured,
                       [&]() -> const PoolAlgorithm& { return resolve_pool(device, algorithm, g, dtype, pass); });
      },
      py::arg("op"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("ceil_mode"), py::arg("count_include_pad"), py::arg("divisor_override"),
      py::arg("channels_last"), py::arg("device"), py::arg("dtype"), py::arg("direction"), py::arg("algorithm"));
  m.def(
      "set_tuned_conv",
      [](const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding, const Ints& dilation,
         int64_t groups, const std::string& padding_mode, bool flip_kernel, bool channels_last,
         const std::string& device_name, const std::string& dtype, const std::string& direction,
         const std::string& winograd, const std::optional<std::string>& algorithm) {
        ConvGeometry g =
            conv_geometry(input, weight, stride, padding, dilation, groups, padding_mode, flip_kernel, channels_last);
        g.winograd = parse_winograd_mode(winograd);
        const Device device = parse_device(device_name);
        g.tf32 = allows_tf32(device, parse_dtype(dtype));
        set_tuned(device, g, parse_dtype(dtype), parse_direction(direction), named(conv_algorithms(device), algorithm));
      },
      py::arg("input"), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("padding_mode"), py::arg("flip_kernel"), py::arg("channels_last"), py::arg("device"),
      py::arg("dtype"), py::arg("direction"), py::arg("winograd"), py::arg("algorithm"));
  m.def(
      "set_tuned_pool",
      [](const std::string& op, const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
         const Ints& dilation, bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override,
         bool channels_last, const std::string& device_name, const std::string& dtype, const std::string& direction,
         const std::optional<std::string>& algorithm) {
        const PoolGeometry g = pool_geometry(op, input, kernel_size, stride, padding, dilation, ceil_mode,
                                             count_include_pad, divisor_override, channels_last);
        const Device device = parse_device(device_name);
        set_tuned(device, g, parse_dtype(dtype), parse_pass(op, direction), named(pool_algorithms(device), algorithm));
      },
      py::arg("op"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("ceil_mode"), py::arg("count_include_pad"), py::arg("divisor_override"),
      py::arg("channels_last"), py::arg("device"), py::arg("dtype"), py::arg("direction"), py::arg("algorithm"));
  m.def("clear_tuned", &clear_tuned);
  m.def("workspace_limit", []() -> std::optional<int64_t> {
    const int64_t limit = workspace_limit();
    return limit == std::numeric_limits<int64_t>::max() ? std::nullopt : std::optional(limit);
  });
  m.def("set_workspace_limit",
        [](std::optional<int64_t> limit) { set_workspace_limit(limit.value_or(std::numeric_limits<int64_t>::max())); });
  add_calls(m);
  add_program(m);
  m.def("use_arena", &use_arena);
  m.def("trim_arena", &trim_arena);
  m.def("arena_bytes", [] {
    const ArenaBytes bytes = arena_bytes();
    return std::pair(bytes.held, bytes.used);
  });
  m.def("activations", [] { return std::vector<std::string>(std::begin(kActivations), std::end(kActivations)); });
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
  m.attr("TRANSPOSED") = std::string(kTransposed);
  m.def("parse_algorithm", [](const std::string& algorithm) {
    const Asked asked = parse_algorithm(algorithm);
    return std::make_pair(std::string(asked.name), std::string(name_of(asked.winograd)));
  });
  m.def("max_threads", &cpu::max_threads);
  m.def("parts_per_thread", &parts_per_thread, py::arg("tasks"), py::arg("parts") = 1,
        py::arg("microseconds") = std::vector<int64_t>());
  m.def("packed_weight_bytes", &packed_weight_bytes);
  m.def("clear_packed_weights", &clear_packed_weights);
  m.def("keep_packed_weights", &keep_packed_weights);
  m.def("forget_packed_weight", [](const py::object& weight) {
    if (THPVariable_Check(weight.ptr())) forget_packed_weight(THPVariable_Unpack(weight.ptr()));
  });
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
