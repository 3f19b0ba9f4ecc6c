// Arguments of a plain call read straight off their Python objects: true, or the call is not plain, whatever is wrong
// with it. Texts are not copied: they last as long as their object.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/DispatchKeyExtractor.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string_view>

#include "autograd.h"

namespace convext {

// Nothing but a backend and autograd would see an operator called with it.
inline bool is_plain(const at::Tensor& t) {
  constexpr c10::DispatchKeySet usual = c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                        c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::BackendSelect});
  const c10::DispatchKeySet keys = c10::impl::computeDispatchKeySet(t.key_set(), c10::DispatchKeySet::FULL);
  return (keys - usual).highestFunctionalityKey() == c10::DispatchKey::Undefined && (t.is_cpu() || t.is_cuda()) &&
         !t._fw_grad(/*level=*/0).defined();
}

inline bool read(PyObject* object, at::Tensor* out) {
  if (!THPVariable_CheckExact(object)) return false;
  *out = THPVariable_Unpack(object);
  return out->defined() && is_plain(*out);
}

inline bool read(PyObject* object, std::optional<at::Tensor>* out) {
  return object == Py_None || read(object, &out->emplace());
}

inline bool read(PyObject* object, int64_t* out) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  *out = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

inline bool read(PyObject* object, std::optional<int64_t>* out) {
  return object == Py_None || read(object, &out->emplace());
}

inline bool read(PyObject* object, bool* out) {
  *out = object == Py_True;
  return PyBool_Check(object);
}

inline bool read(PyObject* object, double* out) {
  *out = PyFloat_CheckExact(object) ? PyFloat_AS_DOUBLE(object) : 0;
  return PyFloat_CheckExact(object);
}

inline bool read(PyObject* object, std::string_view* out) {
  if (!PyUnicode_CheckExact(object)) return false;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &size);
  if (text == nullptr) PyErr_Clear();
  *out = std::string_view(text, text == nullptr ? 0 : size_t(size));
  return text != nullptr;
}

// Items are borrowed. Without the GIL another thread could take them out of a list meanwhile: lists go the long road.
inline bool is_sequence(PyObject* object) {
#ifdef Py_GIL_DISABLED
  return PyTuple_Check(object);
#else
  return PyTuple_Check(object) || PyList_Check(object);
#endif
}

// An int for all dimensions, or a sequence of one or `spatial` ints.
inline bool read(PyObject* object, int spatial, Entries* out) {
  if (!is_sequence(object)) {
    out->resize(spatial);
    if (!read(object, out->data())) return false;
    std::fill(out->begin(), out->end(), out->front());
    return true;
  }
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(object);
  if (count != 1 && count != spatial) return false;
  out->resize(spatial);
  for (int i = 0; i < spatial; ++i)
    if (!read(PySequence_Fast_GET_ITEM(object, count == 1 ? 0 : i), &(*out)[i])) return false;
  return true;
}

}  // namespace convext
