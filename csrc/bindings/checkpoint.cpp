#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/open_file.h"
#include "bindings/parts.h"
#include "bindings/remote_file.h"
#include "checkpoint/file.h"
#include "checkpoint/file_part.h"
#include "checkpoint/file_storage.h"
#include "checkpoint/gguf.h"
#include "checkpoint/index.h"
#include "checkpoint/remote_file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_dtypes.h"
#include "checkpoint/safetensors_layout.h"
#include "system/background.h"

namespace py = pybind11;
using namespace dormant::bindings;
using namespace dormant::checkpoint;

py::object dormant::bindings::dtype_object(c10::ScalarType type) {
  return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(torch::getTHPDtype(type)));
}

c10::ScalarType dormant::bindings::scalar_type(py::handle dtype) {
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()), "dormant: expected a torch.dtype, got ",
                   Py_TYPE(dtype.ptr())->tp_name);
  return reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type;
}

namespace {

bool is_remote(const OpenFile& open) {
  return dynamic_cast<const RemoteFile*>(open.file.get()) != nullptr;
}

std::filesystem::path path_object(const std::string& path) { return path; }

std::shared_ptr<FileStorage> storage(const OpenFile& open, const py::object& dtype, uint64_t offset,
                                     uint64_t nbytes) {
  open.file->check_range(offset, nbytes);
  return std::make_shared<FileStorage>(open.file, scalar_type(dtype), offset, nbytes);
}

py::tuple safetensors_entries(const OpenFile& open) {
  Safetensors header;
  {
    const py::gil_scoped_release other_threads_may_run;
    header = read_safetensors_header(*open.file);
  }
  py::list entries;
  for (const auto& entry : header.entries) {
    entries.append(py::make_tuple(entry.name, dtype_object(entry.dtype),
                                  py::tuple(py::cast(entry.sizes)), entry.offset, entry.nbytes));
  }
  return py::make_tuple(entries, header.metadata);
}

/// How many elements of the format each one of PyTorch's dtypes is.
py::dict safetensors_dtypes() {
  py::dict dtypes;
  for (const auto& dtype : kSafetensorsDtypes) {
    dtypes[dtype_object(dtype.type)] = dtype.packed;
  }
  return dtypes;
}

py::tuple safetensors_layout(
    const std::vector<std::tuple<std::string, py::object, std::vector<int64_t>>>& described,
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, dtype, sizes] : described) {
    tensors.push_back({name, scalar_type(dtype), sizes});
  }
  SafetensorsLayout layout;
  {
    const py::gil_scoped_release other_threads_may_run;
    layout = lay_out_safetensors(tensors, metadata);
  }
  return py::make_tuple(py::bytes(layout.prefix), layout.offsets, layout.nbytes);
}

/// An array of a GGUF file's metadata, which is read when it is asked for.
struct StoredArray {
  std::shared_ptr<const File> file;
  GgufArray array;
};

/// Of a file's text, which may be anything: what is not UTF-8 survives a round trip.
py::object text_object(const std::string& text) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
}

py::object value_object(const std::shared_ptr<const File>& file, const GgufValue& value) {
  return std::visit(
      [&](const auto& each) -> py::object {
        using Value = std::decay_t<decltype(each)>;
        if constexpr (std::is_same_v<Value, std::string>) {
          return text_object(each);
        } else if constexpr (std::is_same_v<Value, GgufArray>) {
          return py::cast(StoredArray{file, each});
        } else {
          return py::cast(each);
        }
      },
      value);
}

py::tuple gguf_entries(const OpenFile& open) {
  Gguf header;
  {
    const py::gil_scoped_release other_threads_may_run;
    header = read_gguf(*open.file);
  }
  py::list entries;
  for (const auto& [entry, type, sizes] : header.tensors) {
    entries.append(py::make_tuple(entry.name, dtype_object(entry.dtype),
                                  py::tuple(py::cast(entry.sizes)), entry.offset, entry.nbytes,
                                  entry.encoding));
  }
  py::dict metadata;
  for (const auto& [key, value] : header.metadata) {
    metadata[py::str(key)] = value_object(open.file, value);
  }
  return py::make_tuple(entries, metadata);
}

py::list gguf_values(const StoredArray& stored) {
  std::vector<GgufValue> values;
  {
    const py::gil_scoped_release other_threads_may_run;
    values = read_gguf_array(*stored.file, stored.array);
  }
  py::list list;
  for (const auto& value : values) {
    list.append(value_object(stored.file, value));
  }
  return list;
}

/// The paths in it are absolute if it is at a path, else as they stand.
py::tuple index_entries(const std::variant<std::filesystem::path, OpenFile>& where) {
  Index index;
  {
    const py::gil_scoped_release other_threads_may_run;
    const auto* path = std::get_if<std::filesystem::path>(&where);
    index =
        path != nullptr ? read_index(path->string()) : parse_index(*std::get<OpenFile>(where).file);
  }
  py::dict files;
  for (const auto& [tensor, file] : index.files) {
    files[py::str(tensor)] = py::str(py::cast(path_object(file)));
  }
  return py::make_tuple(files, py::module_::import("json").attr("loads")(index.metadata));
}

}  // namespace

void dormant::bindings::bind_checkpoint(py::module_& m) {
  py::class_<FileStorage, std::shared_ptr<FileStorage>>(m, "FileStorage")
      .def("tensor",
           [](FileStorage& storage) {
             // Histories are extended without Python's global lock (record/lazy_storage.h).
             const py::gil_scoped_release other_threads_may_run;
             return storage.tensor();
           })
      .def("check", [](const FileStorage& storage) {
        const py::gil_scoped_release other_threads_may_run;
        storage.check();
      });
  py::class_<OpenFile>(m, "File")
      .def(py::init([](const std::filesystem::path& path) {
             return OpenFile{File::open(path.string())};
           }),
           py::arg("path"))
      .def_static(
          "over",
          [](const py::object& reader, std::string name, uint64_t size) {
            return OpenFile{dormant::bindings::file_over(reader, std::move(name), size)};
          },
          py::arg("reader"), py::arg("name"), py::arg("size"))
      .def_property_readonly("path",
                             [](const OpenFile& open) {
                               const auto& path = open.file->path();
                               return is_remote(open) ? py::str(path)
                                                      : py::str(py::cast(path_object(path)));
                             })
      .def_property_readonly("is_remote", &is_remote)
      .def_property_readonly("size", [](const OpenFile& open) { return open.file->size(); })
      .def("copy_always", [](const OpenFile& open) { open.file->copy_always(); })
      .def(
          "part",
          [](const OpenFile& open, uint64_t offset, uint64_t size) {
            return OpenFile{std::make_shared<const FilePart>(open.file, offset, size)};
          },
          py::arg("offset"), py::arg("size"))
      .def("check",
           [](const OpenFile& open) {
             const py::gil_scoped_release other_threads_may_run;
             open.file->check();
           })
      .def(
          "read",
          [](const OpenFile& open, uint64_t offset, size_t count) {
            // Refused before memory of any size is asked for.
            open.file->check_range(offset, count);
            auto* bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(count));
            if (bytes == nullptr) {
              throw py::error_already_set();
            }
            const auto result = py::reinterpret_steal<py::bytes>(bytes);
            auto* out = PyBytes_AS_STRING(bytes);
            const py::gil_scoped_release other_threads_may_run;
            open.file->read(offset, count, out);
            return result;
          },
          py::arg("offset"), py::arg("count"))
      .def("storage", &storage, py::arg("dtype"), py::arg("offset"), py::arg("nbytes"));
  py::class_<StoredArray>(m, "GgufArray")
      .def("__len__", [](const StoredArray& stored) { return stored.array.count; })
      .def("values", &gguf_values);
  m.def("gguf_entries", &gguf_entries, py::arg("file"));
  m.def("finish_background", &dormant::system::finish_background,
        py::call_guard<py::gil_scoped_release>());
  m.def("safetensors_entries", &safetensors_entries, py::arg("file"));
  m.def("safetensors_dtypes", &safetensors_dtypes);
  m.def("lay_out_safetensors", &safetensors_layout, py::arg("tensors"), py::arg("metadata"),
        py::pos_only());
  m.def("index_entries", &index_entries, py::arg("path_or_file"));
}
