// Files and dtypes as Python holds them.
#pragma once

#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>

#include "checkpoint/file.h"

namespace dormant::bindings {

/// pybind11 has no holder for what must not change.
struct OpenFile {
  std::shared_ptr<const checkpoint::File> file;
};

inline pybind11::object dtype_object(c10::ScalarType type) {
  return pybind11::reinterpret_borrow<pybind11::object>(
      reinterpret_cast<PyObject*>(torch::getTHPDtype(type)));
}

inline c10::ScalarType scalar_type(const pybind11::object& dtype) {
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()),
                   "dormant: File.storage: dtype must be a torch.dtype");
  return reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type;
}

}  // namespace dormant::bindings
