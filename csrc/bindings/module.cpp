// dormant._C: the core as Python sees it. Conversions only, no logic.
#include <dormant/export.h>
#include <dormant/version.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/parts.h"
#include "random/exact_path.h"
#include "recipe/recipe.h"
#include "record/digest.h"
#include "record/fallback.h"
#include "record/lazy_storage.h"
#include "record/node.h"
#include "record/recorder.h"
#include "record/replay.h"
#include "record/source_node.h"
#include "record/turns.h"
#include "record/twin.h"
#include "system/faults.h"
#include "tile/device_sink.h"
#include "tile/engine.h"
#include "tile/held_tensors.h"
#include "tile/sink.h"

namespace py = pybind11;
using namespace dormant::record;
using dormant::bindings::plain;
using dormant::bindings::Storage;
using dormant::bindings::Tensor;
using dormant::tile::HeldTensors;

namespace {

using OnStep = std::optional<std::function<void(size_t, size_t)>>;

c10::Storage storage_of(const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.has_storage(), "dormant: a tensor of layout ", tensor.layout(),
                   " has no storage");
  return tensor.storage();
}

at::Tensor flat(const c10::Storage& storage) {
  return make_tensor(storage, Geometry::bytes(storage.nbytes()));
}

/// The last node of a lazy tensor's history; null where it has none.
NodePtr tail_of(const at::Tensor& tensor) {
  const auto history = history_of(tensor);
  return history ? history->tail : NodePtr();
}

/// Looks for Ctrl-C, from a thread without the GIL.
void check_signals() {
  const py::gil_scoped_acquire python;
  if (PyErr_CheckSignals() != 0) {
    throw py::error_already_set();
  }
}

/// Looks for Ctrl-C, then calls `on_step` where there is something to tell, from a thread without
/// the GIL.
std::function<void(size_t, size_t)> interruptible(const OnStep& on_step) {
  return [&on_step](size_t done, size_t total) {
    const py::gil_scoped_acquire python;
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
    if (on_step && total != 0) {
      (*on_step)(done, total);
    }
  };
}

dormant::Mmap mmap_from(const std::string& name) {
  TORCH_CHECK_VALUE(name == "auto" || name == "always" || name == "never", "dormant: mmap=\"", name,
                    "\", expected \"auto\", \"always\" or \"never\"");
  return name == "auto"     ? dormant::Mmap::automatic
         : name == "always" ? dormant::Mmap::always
                            : dormant::Mmap::never;
}

const char* name_of(dormant::tile::Way way) {
  switch (way) {
    case dormant::tile::Way::tiles:
      return "tiles";
    case dormant::tile::Way::mapped:
      return "mapped";
    default:
      return "replay";
  }
}

dormant::Values values_from(const std::string& name) {
  TORCH_CHECK_VALUE(name == "exact" || name == "fast" || name == "empty", "materialize: values=\"",
                    name, "\", expected \"exact\", \"fast\" or \"empty\"");
  return name == "exact"  ? dormant::Values::exact
         : name == "fast" ? dormant::Values::fast
                          : dormant::Values::empty;
}

py::list list_of(const std::vector<dormant::tile::Materialized>& done) {
  py::list result;
  for (const auto& storage : done) {
    py::dict entry;
    entry["storage"] = reinterpret_cast<uintptr_t>(storage.storage);
    entry["nbytes"] = storage.nbytes;
    entry["operators"] = storage.operators;
    entry["seconds"] = storage.seconds;
    entry["way"] = name_of(storage.way);
    entry["read_bytes"] = storage.read_bytes;
    entry["initialized_bytes"] = storage.initialized_bytes;
    entry["sources"] = storage.sources;
    result.append(entry);
  }
  return result;
}

py::list materialize_tensors(const std::vector<Tensor>& arguments, const std::string& values,
                             const OnStep& on_step, std::optional<size_t> memory_budget,
                             const std::string& mmap, HeldTensors* held) {
  const dormant::tile::Options options{{.values = values_from(values),
                                        .memory_budget = memory_budget,
                                        .mmap = mmap_from(mmap),
                                        .on_step = interruptible(on_step)}};
  const auto tensors = plain(arguments);
  std::vector<dormant::tile::Materialized> done;
  {
    const py::gil_scoped_release other_threads_may_run;
    done = held == nullptr ? dormant::tile::materialize_tensors(tensors, options)
                           : held->materialize(tensors, options);
  }
  return list_of(done);
}

py::list write_to_device(const Tensor& tensor, const Tensor& destination, const OnStep& on_step,
                         std::optional<size_t> memory_budget) {
  std::vector<dormant::tile::Materialized> done;
  {
    const py::gil_scoped_release other_threads_may_run;
    done = dormant::tile::write_to_device(
        tensor, destination, {.memory_budget = memory_budget, .on_step = interruptible(on_step)});
  }
  return list_of(done);
}

std::vector<uintptr_t> ids_of(const std::vector<const c10::StorageImpl*>& storages) {
  std::vector<uintptr_t> ids;
  for (const auto* storage : storages) {
    ids.push_back(reinterpret_cast<uintptr_t>(storage));
  }
  return ids;
}

void check_write_budget(const std::vector<Tensor>& tensors, size_t memory_budget) {
  std::vector<dormant::tile::Output> outputs;
  for (const auto& tensor : tensors) {
    (void)storage_of(tensor);
    outputs.push_back({tensor, 0});
  }
  const py::gil_scoped_release other_threads_may_run;
  dormant::tile::check_write_budget(outputs, memory_budget);
}

void write_tensors(const std::vector<std::tuple<Tensor, int64_t>>& tensors, int descriptor,
                   const std::string& path, const OnStep& on_step,
                   std::optional<size_t> memory_budget) {
  std::vector<dormant::tile::Output> outputs;
  for (const auto& [tensor, offset] : tensors) {
    (void)storage_of(tensor);
    outputs.push_back({tensor, offset});
  }
  const py::gil_scoped_release other_threads_may_run;
  dormant::tile::write(outputs, dormant::tile::FileSink(descriptor, path),
                       {memory_budget, interruptible(on_step)});
}

at::Tensor view_as(const Tensor& storage_tensor, const py::object& dtype,
                   const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                   int64_t offset) {
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()), "view_as: dtype must be a torch.dtype");
  Geometry geometry;
  geometry.sizes.assign(sizes.begin(), sizes.end());
  geometry.strides.assign(strides.begin(), strides.end());
  geometry.offset = offset;
  geometry.dtype = reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type;
  const auto storage = storage_of(storage_tensor);
  TORCH_CHECK_VALUE(geometry.nbytes_needed() <= storage.nbytes(), "view_as: sizes ", sizes,
                    " and strides ", strides, " at offset ", offset, " need ",
                    geometry.nbytes_needed(), " bytes, the storage has ", storage.nbytes());
  auto tensor = make_tensor(storage, geometry);
  // A copy or a loaded tensor gets its storage from set_ in eager, which counts as a write.
  tensor.unsafeGetTensorImpl()->bump_version();
  return tensor;
}

py::object attributes(const py::object& object) {
  auto* dictionary = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (dictionary == nullptr) {
    if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) {
      throw py::error_already_set();
    }
    PyErr_Clear();
    return py::none();
  }
  return py::reinterpret_steal<py::object>(dictionary);
}

py::tuple dump(const Tensor& tensor) {
  const auto recipe = dormant::recipe::write(storage_of(tensor));
  return py::make_tuple(py::bytes(recipe.document), recipe.tensors);
}

at::Tensor load(const py::bytes& document, const std::vector<Tensor>& tensors) {
  return flat(dormant::recipe::read(static_cast<std::string_view>(document), plain(tensors)));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(std::move(thrown));
    } catch (const std::system_error& error) {
      const auto arguments = py::make_tuple(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });
  m.def("recording", &recording);
  m.def(
      "set_recording",
      [](bool on) {
        const bool before = set_recording(on);
        if (on && !before) {
          reset_value_reads();
        }
        return before;
      },
      py::arg("on"), py::pos_only());
  m.def("value_reads", [] { return value_reads(); });
  m.def("is_lazy", [](const Tensor& tensor) { return is_lazy(tensor); });
  m.def("carries_key", [](const Tensor& tensor) { return carries_key(tensor); });
  m.def("settle", [](const Tensor& tensor) { settle(tensor); });
  m.def("storage_id", [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(storage_of(tensor).unsafeGetStorageImpl());
  });
  m.def("storage_nbytes", [](const Tensor& tensor) { return storage_of(tensor).nbytes(); });
  m.def(
      "tensor_over", [](const Storage& storage) { return flat(storage); },
      "All bytes of a storage as a uint8 tensor over it, lazy or real.");
  m.def("live_storages", &live_storages);
  m.def("operators", [](const Tensor& tensor) { return operator_names(tail_of(tensor)); });
  m.def("digest", [](const Tensor& tensor) { return digest(tensor); });
  m.def("is_statistic", [](const Tensor& tensor) { return is_statistic(tensor); });
  m.def("sources", [](const Tensor& tensor) { return source_names(tail_of(tensor)); });
  m.def("history_digest", [](const Tensor& tensor) { return history_digest(tensor); });
  m.def("file_ranges", [](const Tensor& tensor) {
    std::vector<std::tuple<std::string, uint64_t, uint64_t>> ranges;
    for (const auto& [name, begin, end] : file_ranges(tail_of(tensor))) {
      ranges.emplace_back(name, begin, end);
    }
    return ranges;
  });
  py::class_<Twin>(m, "Twin")
      .def(
          py::init([](const Tensor& tensor) { return std::make_unique<Twin>(storage_of(tensor)); }),
          py::arg("tensor"), py::pos_only())
      .def_property_readonly("bytes", [](const Twin& twin) { return twin.bytes(); })
      .def("give", &Twin::give);
  m.def("materialize", &materialize_tensors, py::arg("tensors"), py::arg("values"),
        py::arg("on_step"), py::arg("memory_budget") = std::nullopt, py::arg("mmap") = "auto",
        py::arg("held") = nullptr);
  py::class_<Turn>(m, "Turn")
      .def(py::init([](const std::vector<uintptr_t>& things) {
             std::vector<const void*> addresses;
             for (const auto thing : things) {
               addresses.push_back(reinterpret_cast<const void*>(thing));
             }
             const py::gil_scoped_release other_threads_may_run;
             return std::make_unique<Turn>(std::move(addresses), &check_signals);
           }),
           py::arg("things"), py::pos_only())
      .def("end", &Turn::end)
      .def_static("ended", &Turn::ended);
  py::class_<HeldTensors>(m, "HeldTensors")
      .def(py::init([](const std::vector<Tensor>& tensors) {
             for (const auto& tensor : tensors) {
               (void)storage_of(tensor);
             }
             return std::make_unique<HeldTensors>(plain(tensors));
           }),
           py::arg("tensors"), py::pos_only())
      .def("restore", &HeldTensors::restore)
      .def("keep", &HeldTensors::keep)
      .def("prepare_to_keep", &HeldTensors::prepare_to_keep)
      .def("begun", [](const HeldTensors& held) { return ids_of(held.begun()); })
      .def("touched", [](const HeldTensors& held) { return ids_of(held.touched()); });
  m.def("read_of", [](const Tensor& tensor) { return read_of(tensor); });
  m.def(
      "quantize",
      [](const Tensor& tensor, const std::shared_ptr<Quantizer>& quantizer,
         const std::vector<Tensor>& outputs) {
        return quantize(tensor, quantizer, plain(outputs));
      },
      py::arg("tensor"), py::arg("quantizer"), py::arg("outputs") = py::tuple());
  m.def("write_to_device", &write_to_device, py::arg("tensor"), py::arg("destination"),
        py::arg("on_step"), py::arg("memory_budget") = py::none());
  m.def("check_write_budget", &check_write_budget, py::arg("tensors"), py::arg("memory_budget"),
        py::pos_only());
  m.def("write", &write_tensors, py::arg("tensors"), py::arg("descriptor"), py::arg("path"),
        py::arg("on_step"), py::arg("memory_budget") = std::nullopt, py::pos_only());
  m.def("exact_path", [] { return dormant::random::exact_path().description; });
  m.def("clone_storage",
        [](const Tensor& tensor) { return flat(clone_storage(storage_of(tensor))); });
  m.def("view_as", &view_as);
  m.def("dump", &dump);
  m.def("load", &load);
  m.def(
      "set_faults",
      [](const std::string& text) {
        const auto [allocate, read, write, publish, link] = dormant::system::set_faults(text);
        return std::map<std::string, uint64_t>{{"allocate", allocate},
                                               {"read", read},
                                               {"write", write},
                                               {"publish", publish},
                                               {"link", link}};
      },
      py::arg("text"), py::pos_only());
  m.def("attributes", &attributes, py::arg("object"), py::pos_only(),
        "The dictionary of an object's own attributes, whatever its class does with __dict__.");
  m.def("torch_version", [] { return std::string(TORCH_VERSION); });
  m.attr("version") =
      py::str("{}.{}.{}")
          .format(DORMANT_VERSION_MAJOR, DORMANT_VERSION_MINOR, DORMANT_VERSION_PATCH);
  dormant::bindings::bind_checkpoint(m);
  dormant::bindings::bind_distributed_checkpoint(m);
  dormant::bindings::bind_pickle(m);
  dormant::bindings::bind_torch_archive(m);
  dormant::bindings::bind_quantize(m);
  dormant::bindings::bind_decode(m);
  dormant::bindings::bind_encodings(m);
  dormant::bindings::bind_holders(m);
  dormant::bindings::bind_refusal();
}
