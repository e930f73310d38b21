// Which Python exceptions a Meta kernel written in Python refuses its arguments with.
#include "system/refusal.h"

#include <torch/csrc/Exceptions.h>

#include "bindings/parts.h"

namespace py = pybind11;

namespace dormant::bindings {
namespace {

bool refuses(PyObject* type) {
  const py::gil_scoped_acquire lock;
  const auto is = [&](PyObject* base) { return PyErr_GivenExceptionMatches(type, base) != 0; };
  return is(PyExc_Exception) && !is(PyExc_MemoryError) && !is(PyExc_RecursionError);
}

bool is_refusal_in_python(const std::exception& error) {
  if (const auto* raised = dynamic_cast<const python_error*>(&error)) {
    return refuses(raised->type);
  }
  if (const auto* raised = dynamic_cast<const py::error_already_set*>(&error)) {
    return refuses(raised->type().ptr());
  }
  return true;
}

}  // namespace

void bind_refusal() { system::set_refusal_test(&is_refusal_in_python); }

}  // namespace dormant::bindings
