// Files of torch.save as Python's `dormant.checkpoint.torch_file` uses them.
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/open_file.h"
#include "bindings/parts.h"
#include "bindings/pickle_values.h"
#include "checkpoint/file_storage.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/torch_state.h"

namespace py = pybind11;
using namespace dormant::checkpoint;

namespace dormant::bindings {
namespace {

py::object text_of(const std::string& text) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogatepass"));
}

/// A tensor of an archive, and the storage that others may share.
struct StoredTensor {
  TorchTensor tensor;
  std::shared_ptr<FileStorage> storage;
  uint64_t storage_begin;  ///< in the file

  uint64_t offset() const {
    return storage_begin + static_cast<uint64_t>(tensor.offset) * c10::elementSize(tensor.dtype);
  }
};

/// Used with Python's lock held.
class Archive {
 public:
  explicit Archive(const OpenFile& open) : file_(open.file) {
    const py::gil_scoped_release other_threads_may_run;
    archive_ = read_torch_archive(*file_);
  }

  py::dict find(const std::optional<std::string>& key, const py::object& fits) {
    Fits count;
    if (!fits.is_none()) {
      count = [&](const std::vector<std::string>& names) {
        py::list list;
        for (const auto& name : names) {
          list.append(text_of(name));
        }
        return fits(list).cast<size_t>();
      };
    }
    TorchState state;
    try {
      state = find_state(archive_->objects, key, count, file_->name());
    } catch (const c10::IndexError& error) {
      PyErr_SetString(PyExc_KeyError, error.what_without_backtrace());
      throw py::error_already_set();
    }
    py::list tensors;
    for (const auto& [name, value] : state.tensors) {
      tensors.append(py::make_tuple(text_of(name), value));
    }
    py::list beside;
    for (const auto& [id, value] : state.beside) {
      beside.append(py::make_tuple(id, value));
    }
    py::list modules;
    for (const auto& [name, class_] : state.modules) {
      modules.append(py::make_tuple(text_of(name), text_of(archive_->objects.name_of(class_))));
    }
    py::dict result;
    result["tensors"] = tensors;
    result["beside"] = beside;
    result["modules"] = modules;
    result["mapping"] = state.mapping;
    return result;
  }

  StoredTensor tensor(PickleId id, const std::string& where) {
    auto tensor = archive_->objects.tensor(id, where);
    auto over = storage(tensor);
    const auto begin = archive_->storages.at(tensor.storage).offset;
    return {std::move(tensor), std::move(over), begin};
  }

  std::vector<PickleId> tensors() const {
    std::vector<PickleId> found;
    for (PickleId id = 0; id < archive_->pickle.size(); ++id) {
      if (archive_->objects.is_tensor(id)) {
        found.push_back(id);
      }
    }
    return found;
  }

  py::list globals() const {
    const auto& pickle = archive_->pickle;
    std::map<std::string, uint64_t> first;
    for (PickleId id = 0; id < pickle.size(); ++id) {
      if (pickle.is(id, PickleKind::global)) {
        first.emplace(archive_->objects.name_of(id), pickle.offset(id));
      }
    }
    py::list result;
    for (const auto& [name, offset] : first) {
      result.append(py::make_tuple(text_of(name), offset));
    }
    return result;
  }

  py::list checksums() const {
    py::list result;
    for (const auto& [record, offset, nbytes, crc] : archive_->checksums) {
      result.append(
          py::make_tuple(py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
                             record.data(), static_cast<Py_ssize_t>(record.size()), "replace")),
                         offset, nbytes, crc));
    }
    return result;
  }

  py::dict locations() const {
    py::dict result;
    for (const auto& [key, storage] : archive_->objects.storages()) {
      result[text_of(key)] = text_of(storage.location);
    }
    return result;
  }

  std::vector<py::object> values(py::object global, py::object record,
                                 py::object persistent) const {
    return python_values(archive_->pickle,
                         {std::move(global), std::move(record), std::move(persistent)});
  }

  const TorchArchive& archive() const { return *archive_; }

 private:
  std::shared_ptr<FileStorage> storage(const TorchTensor& tensor) {
    auto& made = storages_[tensor.storage];
    if (made == nullptr) {
      const auto& [offset, nbytes] = archive_->storages.at(tensor.storage);
      const bool fits = nbytes % c10::elementSize(tensor.dtype) == 0;
      made = std::make_shared<FileStorage>(file_, fits ? tensor.dtype : c10::ScalarType::Byte,
                                           offset, nbytes);
    }
    return made;
  }

  std::shared_ptr<const File> file_;
  std::unique_ptr<const TorchArchive> archive_;
  std::map<std::string, std::shared_ptr<FileStorage>> storages_;
};

}  // namespace

void bind_torch_archive(py::module_& m) {
  const auto field = [](auto get) {
    return [get](const StoredTensor& self) { return get(self.tensor); };
  };
  py::class_<StoredTensor>(m, "TorchTensor")
      .def_property_readonly("dtype", field([](auto& t) { return dtype_object(t.dtype); }))
      .def_property_readonly("sizes", field([](auto& t) { return py::tuple(py::cast(t.sizes)); }))
      .def_property_readonly("strides",
                             field([](auto& t) { return py::tuple(py::cast(t.strides)); }))
      .def_property_readonly("storage_offset", field([](auto& t) { return t.offset; }))
      .def_property_readonly("nbytes", field([](auto& t) { return t.nbytes(); }))
      .def_property_readonly("conjugated", field([](auto& t) { return t.conjugated; }))
      .def_property_readonly("negated", field([](auto& t) { return t.negated; }))
      .def_property_readonly("requires_grad", field([](auto& t) { return t.requires_grad; }))
      .def_property_readonly("is_parameter", field([](auto& t) { return t.is_parameter; }))
      .def_property_readonly("has_attributes", field([](auto& t) { return t.has_attributes; }))
      .def_property_readonly("storage", [](const StoredTensor& self) { return self.storage; })
      .def_property_readonly("offset", &StoredTensor::offset);
  py::class_<Archive>(m, "TorchArchive")
      .def(py::init<const OpenFile&>(), py::arg("file"))
      .def("find_state", &Archive::find, py::arg("key"), py::arg("fits"))
      .def("tensor", &Archive::tensor, py::arg("id"), py::arg("where"))
      .def("tensors", &Archive::tensors)
      .def("globals", &Archive::globals)
      .def("checksums", &Archive::checksums)
      .def("locations", &Archive::locations)
      .def("values", &Archive::values, py::arg("global_"), py::arg("record"), py::arg("persistent"))
      .def_property_readonly("root",
                             [](const Archive& self) { return self.archive().pickle.root(); })
      .def_property_readonly("where",
                             [](const Archive& self) { return self.archive().pickle.where(); });
  m.def("is_torch_file", [](const py::bytes& first_bytes) {
    return is_torch_file(static_cast<std::string_view>(first_bytes));
  });
}

}  // namespace dormant::bindings
