#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "bindings/open_file.h"
#include "bindings/parts.h"
#include "checkpoint/dcp.h"
#include "checkpoint/file_part.h"
#include "checkpoint/zip_directory.h"

namespace py = pybind11;
using namespace dormant::checkpoint;
using namespace dormant::bindings;

namespace {

py::tuple tuple_of(const std::vector<int64_t>& values) { return py::tuple(py::cast(values)); }

py::tuple as_objects(const DistributedCheckpoint& checkpoint) {
  std::map<const File*, size_t> numbers;
  py::list files;
  for (const auto& file : checkpoint.files) {
    numbers.emplace(file.get(), numbers.size());
    files.append(OpenFile{file});
  }
  py::list tensors;
  for (const auto& tensor : checkpoint.tensors) {
    py::list parts;
    for (const auto& piece : tensor.pieces->pieces()) {
      std::vector<int64_t> sizes;
      for (size_t i = 0; i < piece.box.begin.size(); ++i) {
        sizes.push_back(piece.box.end[i] - piece.box.begin[i]);
      }
      parts.append(py::make_tuple(numbers.at(piece.file.get()), piece.offset, piece.length,
                                  tuple_of(sizes)));
    }
    tensors.append(py::make_tuple(tensor.name, dtype_object(tensor.dtype), tuple_of(tensor.sizes),
                                  tensor.nbytes, tensor.storage, parts));
  }
  py::list objects;
  for (const auto& object : checkpoint.objects) {
    objects.append(
        py::make_tuple(object.name, numbers.at(object.file.get()), object.offset, object.length));
  }
  py::dict paths;
  for (const auto& [name, path] : checkpoint.paths) {
    paths[py::str(name)] = py::tuple(py::cast(path));
  }
  return py::make_tuple(tensors, objects, paths, files, checkpoint.metadata);
}

py::tuple distributed_entries(const OpenFile& metadata, const py::function& open) {
  const auto open_beside = [&](const std::string& path) {
    const py::gil_scoped_acquire python;
    return py::cast<OpenFile>(open(path)).file;
  };
  DistributedCheckpoint checkpoint;
  {
    const py::gil_scoped_release other_threads_may_run;
    checkpoint = read_distributed(*metadata.file, open_beside);
  }
  return as_objects(checkpoint);
}

py::tuple distributed_safetensors_entries(const std::vector<OpenFile>& opened) {
  std::vector<std::shared_ptr<const File>> files;
  for (const auto& each : opened) {
    files.push_back(each.file);
  }
  DistributedCheckpoint checkpoint;
  {
    const py::gil_scoped_release other_threads_may_run;
    checkpoint = read_distributed_safetensors(files);
  }
  return as_objects(checkpoint);
}

py::list archive_records(const OpenFile& open, uint64_t offset, uint64_t length) {
  const FilePart part(open.file, offset, length);
  std::vector<ZipRecord> found;
  {
    const py::gil_scoped_release other_threads_may_run;
    found = read_zip_directory(part);
  }
  py::list records;
  for (const auto& record : found) {
    records.append(py::make_tuple(record.name, offset + record.offset, record.nbytes, record.crc));
  }
  return records;
}

}  // namespace

void dormant::bindings::bind_distributed_checkpoint(py::module_& m) {
  m.def("distributed_entries", &distributed_entries, py::arg("metadata"), py::arg("open"));
  m.def("distributed_safetensors_entries", &distributed_safetensors_entries, py::arg("files"));
  m.def("archive_records", &archive_records, py::arg("file"), py::arg("offset"), py::arg("length"));
}
