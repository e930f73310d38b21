// What a binding takes from Python: what really is a tensor, or a storage.
//
// PyTorch's own conversions ask isinstance, which an object's `__class__` answers (mocks and
// proxies do), and then read the object's memory as if it were a tensor's. These ask the object's
// type.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <torch/csrc/Storage.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <utility>
#include <vector>

namespace dormant::bindings {

/// A tensor that came as an argument; every binding takes tensors as these.
struct Tensor : at::Tensor {
  Tensor() = default;
  explicit Tensor(const at::Tensor& tensor) : at::Tensor(tensor) {}
};

/// A storage that came as an argument.
struct Storage : c10::Storage {
  Storage() = default;
  explicit Storage(c10::Storage storage) : c10::Storage(std::move(storage)) {}
};

/// The same tensors, as the core takes them.
inline std::vector<at::Tensor> plain(const std::vector<Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

/// Whether the type of `object` is `type`, or derived from it, whatever the object says.
inline bool is_really(pybind11::handle object, PyTypeObject* type) {
  return type != nullptr && PyType_IsSubtype(Py_TYPE(object.ptr()), type) != 0;
}

}  // namespace dormant::bindings

namespace pybind11::detail {

template <>
struct type_caster<dormant::bindings::Tensor> {
  PYBIND11_TYPE_CASTER(dormant::bindings::Tensor, const_name("Tensor"));

  bool load(handle source, bool /*convert*/) {
    if (!dormant::bindings::is_really(source, reinterpret_cast<PyTypeObject*>(THPVariableClass))) {
      return false;
    }
    value = dormant::bindings::Tensor(THPVariable_Unpack(source.ptr()));
    return true;
  }
};

template <>
struct type_caster<dormant::bindings::Storage> {
  PYBIND11_TYPE_CASTER(dormant::bindings::Storage, const_name("UntypedStorage"));

  bool load(handle source, bool /*convert*/) {
    if (!dormant::bindings::is_really(source, THPStorageClass)) {
      return false;
    }
    value = dormant::bindings::Storage(THPStorage_Unpack(source.ptr()));
    return true;
  }
};

}  // namespace pybind11::detail
