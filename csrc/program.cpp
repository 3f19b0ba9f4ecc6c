// A graph of torch.fx run step by step without its generated Python code in between, which costs 5 to 20 us a layer:
// the call of a module, the look-ups of its options, the packing of arguments. A network of a hundred layers of 100 us
// is a tenth faster for it, and more with threads, which wait meanwhile.
//
// Nothing is remembered about a layer but its name in the graph. Every call looks up the module under that name and its
// parameters and options, as Python would; a layer of a type that has a short road (set_layer_road), without hooks, is
// run on it, and everything else, or what that road finds not plain, is called as Python calls it.
#include "program.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/Exceptions.h>

#include <array>
#include <string>
#include <vector>

#include "calls.h"
#include "python_arguments.h"
#include "tensors.h"

namespace convext {
namespace {

namespace py = pybind11;

// Names as Python's dictionaries compare them fastest.
PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }
py::object interned(const py::handle& text) {
  PyObject* name = text.inc_ref().ptr();
  PyUnicode_InternInPlace(&name);
  return py::reinterpret_steal<py::object>(name);
}

// Borrowed, null where there is none.
PyObject* item(PyObject* dictionary, PyObject* name) {
  return dictionary == nullptr || !PyDict_Check(dictionary) ? nullptr : PyDict_GetItemWithError(dictionary, name);
}
py::object attributes_of(PyObject* object) {
  PyObject* attributes = PyObject_GenericGetDict(object, nullptr);
  if (attributes == nullptr) PyErr_Clear();
  return py::reinterpret_steal<py::object>(attributes);
}

// Where an argument of a short road comes from.
struct Source {
  enum Kind { kInput, kInputs, kParameter, kAttribute, kLayers, kConstant } kind;  // kLayers: of a chain
  size_t input = 0;
  py::object name, part, constant;
};

// How layers of a type run. in_chain: what read_layer (calls.cpp) reads.
struct LayerRoad {
  PyTypeObject* type;
  py::object forward;  // of the type: another one, put there since, is called
  const Road* road = nullptr;
  Source spatial;
  std::vector<Source> sources, in_chain;
};

std::vector<LayerRoad>& layer_roads() {
  static auto* all = new std::vector<LayerRoad>;  // outlives Python's objects: never destroyed
  return *all;
}
const LayerRoad* road_of(PyTypeObject* type) {
  for (const LayerRoad& road : layer_roads())
    if (road.type == type) return &road;
  return nullptr;
}

struct Names {
  PyObject* forward = interned("forward");
  PyObject* modules = interned("_modules");
  PyObject* parameters = interned("_parameters");
  PyObject* layers = interned("layers");
  PyObject* compiled = interned("_compiled_call_impl");
  std::array<PyObject*, 4> hooks = {interned("_forward_hooks"), interned("_forward_pre_hooks"),
                                    interned("_backward_hooks"), interned("_backward_pre_hooks")};
};
const Names& names() {
  static const auto* all = new Names;
  return *all;
}

// A module's parts. Without hooks and with the forward of its type, calling it is calling that.
struct Layer {
  py::object module, attributes;

  explicit Layer(PyObject* of) : module(py::reinterpret_borrow<py::object>(of)), attributes(attributes_of(of)) {}

  bool calls_forward_of(const LayerRoad& road) const {
    const Names& n = names();
    if (!attributes || item(attributes.ptr(), n.forward) != nullptr) return false;
    for (PyObject* name : n.hooks) {
      PyObject* hooks = item(attributes.ptr(), name);
      if (hooks == nullptr || !PyDict_Check(hooks) || PyDict_GET_SIZE(hooks) != 0) return false;
    }
    PyObject* compiled = item(attributes.ptr(), n.compiled);
    if (compiled != nullptr && compiled != Py_None) return false;
    const auto forward =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(reinterpret_cast<PyObject*>(road.type), n.forward));
    if (!forward) PyErr_Clear();
    return forward.is(road.forward);
  }

  // Null where there is none.
  py::object find(const Source& source, const std::vector<py::object>& inputs) const {
    switch (source.kind) {
      case Source::kConstant: return source.constant;
      case Source::kInput: return source.input < inputs.size() ? inputs[source.input] : py::none();
      case Source::kInputs: {
        py::tuple all(inputs.size());
        for (size_t i = 0; i < inputs.size(); ++i) all[i] = inputs[i];
        return all;
      }
      case Source::kParameter:
        return py::reinterpret_borrow<py::object>(item(item(attributes.ptr(), names().parameters), source.name.ptr()));
      case Source::kLayers: return layers_in_chain();
      case Source::kAttribute: break;
    }
    PyObject* own = item(attributes.ptr(), source.name.ptr());
    auto value = own != nullptr ? py::reinterpret_borrow<py::object>(own)
                                : py::reinterpret_steal<py::object>(PyObject_GetAttr(module.ptr(), source.name.ptr()));
    if (value && source.part)
      value = py::reinterpret_steal<py::object>(PyObject_GetAttr(value.ptr(), source.part.ptr()));
    if (!value) PyErr_Clear();
    return value;
  }
  // The tuple that read_layer reads; null where the layer can't be in a chain.
  py::object in_chain() const {
    const LayerRoad* road = road_of(Py_TYPE(module.ptr()));
    if (road == nullptr || road->in_chain.empty() || !calls_forward_of(*road)) return {};
    py::tuple all(road->in_chain.size());
    for (size_t i = 0; i < road->in_chain.size(); ++i) {
      py::object value = find(road->in_chain[i], {});
      if (!value) return {};
      PyTuple_SET_ITEM(all.ptr(), Py_ssize_t(i), value.release().ptr());
    }
    return all;
  }
  py::object layers_in_chain() const {
    PyObject* list = item(item(attributes.ptr(), names().modules), names().layers);
    if (list == nullptr) return {};
    const py::object own = attributes_of(list);
    PyObject* layers = own ? item(own.ptr(), names().modules) : nullptr;
    if (layers == nullptr || !PyDict_Check(layers)) return {};
    std::vector<py::object> modules;
    PyObject *key = nullptr, *module = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(layers, &at, &key, &module);)
      modules.push_back(py::reinterpret_borrow<py::object>(module));
    py::tuple all(modules.size());
    for (size_t i = 0; i < modules.size(); ++i) {
      py::object one = Layer(modules[i].ptr()).in_chain();
      if (!one) return {};
      PyTuple_SET_ITEM(all.ptr(), Py_ssize_t(i), one.release().ptr());
    }
    return all;
  }
};

// The module's output, or null, without an error set, where it is to be called as Python calls it.
py::object on_short_road(PyObject* module, const std::vector<py::object>& inputs) {
  constexpr size_t kMost = 20;
  const LayerRoad* road = road_of(Py_TYPE(module));
  if (road == nullptr) return {};
  const Layer layer(module);
  if (!layer.calls_forward_of(*road)) return {};
  py::object held[kMost];  // kept while they are used, whatever another thread does to the module
  PyObject* arguments[kMost];
  const py::object spatial = layer.find(road->spatial, inputs);
  const int64_t dimensions = spatial && PyLong_CheckExact(spatial.ptr()) ? PyLong_AsLongLong(spatial.ptr()) : 0;
  if (dimensions < 1 || dimensions > 3) return {};
  for (size_t i = 0; i < road->sources.size(); ++i) {
    held[i] = layer.find(road->sources[i], inputs);
    arguments[i] = held[i].ptr();
    if (arguments[i] == nullptr) return {};
  }
  return py::reinterpret_steal<py::object>(road->road->call(int(dimensions), arguments));
}

// What a step is given: a value of the graph, anything else, or a tuple or list of such.
struct Given {
  enum Kind { kValue, kConstant, kTuple, kList } kind;
  size_t value = 0;
  py::object constant;
  std::vector<Given> parts;

  py::object of(const std::vector<py::object>& values) const {
    if (kind == kConstant) return constant;
    if (kind == kValue) return values[value];
    const auto size = Py_ssize_t(parts.size());
    PyObject* all = kind == kTuple ? PyTuple_New(size) : PyList_New(size);
    if (all == nullptr) throw py::error_already_set();
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject* part = parts[i].of(values).release().ptr();
      kind == kTuple ? PyTuple_SET_ITEM(all, i, part) : PyList_SET_ITEM(all, i, part);
    }
    return py::reinterpret_steal<py::object>(all);
  }
};

Given given(const py::handle& spelled) {
  const auto [kind, content] = py::cast<std::pair<std::string, py::object>>(spelled);
  Given g;
  if (kind == "value") {
    g.kind = Given::kValue;
    g.value = content.cast<size_t>();
    return g;
  }
  if (kind == "constant") {
    g.kind = Given::kConstant;
    g.constant = content;
    return g;
  }
  TORCH_CHECK_VALUE(kind == "tuple" || kind == "list", "an argument is a value, a constant, a tuple or a list, got ",
                    kind);
  g.kind = kind == "tuple" ? Given::kTuple : Given::kList;
  for (const py::handle& part : content) g.parts.push_back(given(part));
  return g;
}

struct Step {
  enum Kind { kModule, kFunction, kMethod, kAttribute } kind;
  std::vector<py::object> path;  // of a module or an attribute
  py::object target;             // a function, or the name of a method
  std::vector<Given> args;
  std::vector<std::pair<std::string, Given>> kwargs;
  std::vector<size_t> done;  // values that nothing needs afterwards
};

class Program {
 public:
  // A step's result is the value behind those of the inputs and the steps before.
  Program(size_t inputs, const py::list& steps, const py::handle& output) : inputs_(inputs), output_(given(output)) {
    for (const py::handle& spelled : steps) {
      const auto [kind, target, args, kwargs, done] =
          py::cast<std::tuple<std::string, py::object, py::list, py::dict, std::vector<size_t>>>(spelled);
      Step step;
      step.kind = kind == "module"     ? Step::kModule
                  : kind == "function" ? Step::kFunction
                  : kind == "method"   ? Step::kMethod
                                       : Step::kAttribute;
      if (step.kind == Step::kModule || step.kind == Step::kAttribute)
        for (const py::handle& name : target) step.path.push_back(interned(name));
      else
        step.target = target;
      for (const py::handle& arg : args) step.args.push_back(given(arg));
      for (const auto& [name, value] : kwargs) step.kwargs.emplace_back(py::cast<std::string>(name), given(value));
      step.done = done;
      steps_.push_back(std::move(step));
    }
  }

  size_t inputs() const { return inputs_; }

  py::object run(PyObject* root, PyObject* const* args) const {
    std::vector<py::object> values(inputs_ + steps_.size());
    for (size_t i = 0; i < inputs_; ++i) values[i] = py::reinterpret_borrow<py::object>(args[i]);
    std::vector<py::object> given;
    for (size_t i = 0; i < steps_.size(); ++i) {
      const Step& step = steps_[i];
      given.clear();
      for (const Given& arg : step.args) given.push_back(arg.of(values));
      values[inputs_ + i] = run_step(root, step, given, values);
      for (const size_t done : step.done) values[done] = {};
    }
    return output_.of(values);
  }

 private:
  static py::object run_step(PyObject* root, const Step& step, const std::vector<py::object>& args,
                             const std::vector<py::object>& values) {
    py::object callee = step.target;
    if (step.kind == Step::kAttribute) return resolve(root, step.path);
    if (step.kind == Step::kModule) {
      callee = resolve(root, step.path);
      if (step.kwargs.empty()) {
        py::object output = on_short_road(callee.ptr(), args);
        if (output) return output;
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      }
    }
    py::dict kwargs;
    for (const auto& [name, value] : step.kwargs) kwargs[name.c_str()] = value.of(values);
    size_t first = 0;
    if (step.kind == Step::kMethod) {
      callee = args.at(0).attr(step.target);
      first = 1;
    }
    py::tuple positional(args.size() - first);
    for (size_t i = first; i < args.size(); ++i) positional[i - first] = args[i];
    PyObject* output = PyObject_Call(callee.ptr(), positional.ptr(), step.kwargs.empty() ? nullptr : kwargs.ptr());
    if (output == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(output);
  }

  // root.a.b: modules by the dictionaries they are in.
  static py::object resolve(PyObject* root, const std::vector<py::object>& path) {
    auto found = py::reinterpret_borrow<py::object>(root);
    for (const py::object& name : path) {
      const py::object attributes = attributes_of(found.ptr());
      PyObject* module = attributes ? item(item(attributes.ptr(), names().modules), name.ptr()) : nullptr;
      found = module != nullptr ? py::reinterpret_borrow<py::object>(module) : py::object(found.attr(name));
    }
    return found;
  }

  size_t inputs_;
  std::vector<Step> steps_;
  Given output_;
};

// program, module, then its inputs.
PyObject* run_program(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count >= 2, "expected a program, a module, and its inputs");
  const auto& program = py::cast<const Program&>(py::handle(args[0]));
  TORCH_CHECK_TYPE(size_t(count) - 2 == program.inputs(), "expected ", program.inputs(), " inputs, got ", count - 2);
  return program.run(args[1], args + 2).release().ptr();
  END_HANDLE_TH_ERRORS
}

// A plain tensor of 2 or 3 spatial dimensions laid out channels_last; None where it is not plain or wants a gradient.
PyObject* channels_last(PyObject*, PyObject* object) {
  HANDLE_TH_ERRORS
  at::Tensor t;
  if (!read(object, &t) || t.dim() < 4 || t.dim() > 5 || (t.requires_grad() && at::GradMode::is_enabled()))
    Py_RETURN_NONE;
  return THPVariable_Wrap(laid_out(t, Layout::channels_last, int(t.dim()) - 2));
  END_HANDLE_TH_ERRORS
}

Source source(const py::handle& spelled) {
  const auto parts = py::cast<py::tuple>(spelled);
  const auto kind = py::cast<std::string>(parts[0]);
  Source s = {};
  if (kind == "input") {
    s.kind = Source::kInput;
    s.input = py::cast<size_t>(parts[1]);
  } else if (kind == "inputs" || kind == "layers") {
    s.kind = kind == "inputs" ? Source::kInputs : Source::kLayers;
  } else if (kind == "constant") {
    s.kind = Source::kConstant;
    s.constant = parts[1];
  } else {
    TORCH_CHECK_VALUE(kind == "parameter" || kind == "attribute", "there is no source called ", kind);
    s.kind = kind == "parameter" ? Source::kParameter : Source::kAttribute;
    s.name = interned(parts[1]);
    if (parts.size() > 2) s.part = interned(parts[2]);
  }
  return s;
}
std::vector<Source> sources(const py::list& spelled) {
  std::vector<Source> all;
  for (const py::handle& one : spelled) all.push_back(source(one));
  return all;
}

void set_layer_road(const py::type& type, const std::string& road, const py::tuple& spatial, const py::list& arguments,
                    const py::list& in_chain) {
  LayerRoad own = {reinterpret_cast<PyTypeObject*>(type.ptr()),
                   type.attr("forward"),
                   &short_road(road),
                   source(spatial),
                   sources(arguments),
                   sources(in_chain)};
  TORCH_CHECK_VALUE(Py_ssize_t(own.sources.size()) == own.road->count, road, " takes ", own.road->count,
                    " arguments, got ", own.sources.size());
  py::object(type).release();  // for as long as the table
  layer_roads().push_back(std::move(own));
}

}  // namespace

void add_program(py::module_& module) {
  static PyMethodDef methods[] = {
      {"run_program", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_program)), METH_FASTCALL,
       "A graph's program, for the module whose graph it is and its inputs"},
      {"channels_last", &channels_last, METH_O, "A plain tensor laid out channels_last, else None"},
      {nullptr, nullptr, 0, nullptr},
  };
  py::class_<Program>(module, "Program")
      .def(py::init<size_t, const py::list&, const py::handle&>(), py::arg("inputs"), py::arg("steps"),
           py::arg("output"))
      .def_property_readonly("inputs", &Program::inputs);
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
  module.def("set_layer_road", &set_layer_road, py::arg("type"), py::arg("road"), py::arg("spatial"),
             py::arg("arguments"), py::arg("in_chain"));
}

}  // namespace convext
