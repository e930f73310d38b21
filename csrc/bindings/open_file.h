// A file as Python holds it, and PyTorch's dtypes.
#pragma once

#include <c10/core/ScalarType.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "checkpoint/file.h"

namespace dormant::bindings {

/// pybind11 has no holder for what must not change.
struct OpenFile {
  std::shared_ptr<const checkpoint::File> file;
};

pybind11::object dtype_object(c10::ScalarType type);
/// TypeError where it is none.
c10::ScalarType scalar_type(pybind11::handle dtype);

}  // namespace dormant::bindings
