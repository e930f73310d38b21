#include "bindings/pickle_values.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "bindings/parts.h"

namespace py = pybind11;

namespace dormant::bindings {
namespace {

using checkpoint::Pickle;
using checkpoint::PickleId;
using checkpoint::PickleKind;

// Hashing a tuple recurses in C, once for each way to an element: limits far beyond real files
// keep a key from taking the stack or for ever.
constexpr uint32_t kDeepestKey = 100;
constexpr uint32_t kHeaviestKey = 1'000'000;

py::object text_object(std::string_view text) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogatepass"));
}

/// Objects are made in the order of their numbers, so that what cannot be changed afterwards is
/// made of what exists; then what can be is filled. So nothing recurses, and loops are no trouble.
class Maker {
 public:
  Maker(const Pickle& pickle, const InertClasses& classes)
      : pickle_(pickle), classes_(classes), sizes_(pickle.size()) {}

  std::vector<py::object> make() {
    objects_.reserve(pickle_.size());
    for (PickleId id = 0; id < pickle_.size(); ++id) {
      objects_.push_back(checked(made(id)));
    }
    for (PickleId id = 0; id < pickle_.size(); ++id) {
      fill(id);
    }
    return std::move(objects_);
  }

 private:
  struct Size {
    uint32_t depth = 0;
    uint32_t weight = 1;
  };

  static py::object checked(py::object object) {
    if (!object) {
      throw py::error_already_set();
    }
    return object;
  }

  py::object made(PickleId id) {
    switch (pickle_.kind(id)) {
      case PickleKind::none:
        return py::none();
      case PickleKind::boolean:
        return py::bool_(pickle_.boolean(id));
      case PickleKind::integer: {
        if (const auto value = pickle_.integer(id)) {
          return py::int_(*value);
        }
        const auto bytes = pickle_.wide_integer(id);
        return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyLong_Type))
            .attr("from_bytes")(py::bytes(bytes.data(), bytes.size()), "little",
                                py::arg("signed") = true);
      }
      case PickleKind::real:
        return py::float_(pickle_.real(id));
      case PickleKind::text:
        return text_object(pickle_.text(id));
      case PickleKind::bytes:
        return py::bytes(pickle_.text(id).data(), pickle_.text(id).size());
      case PickleKind::bytearray:
        return py::bytearray(pickle_.text(id).data(), pickle_.text(id).size());
      case PickleKind::list:
        return py::list();
      case PickleKind::tuple:
        return tuple(id);
      case PickleKind::dict:
        return py::dict();
      case PickleKind::set:
        return py::set();
      case PickleKind::frozenset: {
        py::list items;
        for (const auto item : pickle_.items(id)) {
          check_key(item);
          append(items, item);
        }
        return hashed(id, py::reinterpret_steal<py::object>(PyFrozenSet_New(items.ptr())));
      }
      case PickleKind::global: {
        const auto global = pickle_.global(id);
        return classes_.global(text_object(global.module), text_object(global.name));
      }
      case PickleKind::record: {
        const auto& record = pickle_.record(id);
        return classes_.record(objects_[record.callable], objects_[record.arguments]);
      }
      case PickleKind::persistent:
        return classes_.persistent(objects_[pickle_.persistent(id)]);
    }
    return {};
  }

  py::object tuple(PickleId id) {
    const auto items = pickle_.items(id);
    py::tuple result(items.size());
    uint64_t weight = 1;
    for (size_t i = 0; i < items.size(); ++i) {
      result[i] = objects_[items[i]];
      sizes_[id].depth = std::max(sizes_[id].depth, sizes_[items[i]].depth);
      weight = std::min<uint64_t>(weight + sizes_[items[i]].weight, kHeaviestKey + 1);
    }
    ++sizes_[id].depth;
    sizes_[id].weight = static_cast<uint32_t>(weight);
    return result;
  }

  void fill(PickleId id) {
    const auto& object = objects_[id];
    switch (pickle_.kind(id)) {
      case PickleKind::list:
        for (const auto item : pickle_.items(id)) {
          append(object, item);
        }
        return;
      case PickleKind::dict:
        set_entries(id, object, pickle_.items(id));
        return;
      case PickleKind::set:
        for (const auto item : pickle_.items(id)) {
          check_key(item);
          check_hashed(id, PySet_Add(object.ptr(), objects_[item].ptr()));
        }
        return;
      case PickleKind::record: {
        const auto& record = pickle_.record(id);
        if (record.is_new) {
          object.attr("is_new") = py::bool_(true);
        }
        if (record.keywords) {
          object.attr("keywords") = objects_[*record.keywords];
        }
        if (record.state) {
          object.attr("state") = objects_[*record.state];
        }
        if (!record.items.empty()) {
          py::list items;
          for (const auto item : record.items) {
            append(items, item);
          }
          object.attr("items") = items;
        }
        if (!record.entries.empty()) {
          py::list entries;
          for (size_t i = 0; i < record.entries.size(); i += 2) {
            entries.append(
                py::make_tuple(objects_[record.entries[i]], objects_[record.entries[i + 1]]));
          }
          object.attr("entries") = entries;
        }
        return;
      }
      default:
        return;
    }
  }

  void append(const py::object& list, PickleId item) const {
    if (PyList_Append(list.ptr(), objects_[item].ptr()) != 0) {
      throw py::error_already_set();
    }
  }

  void set_entries(PickleId id, const py::object& dict, std::span<const PickleId> entries) {
    for (size_t i = 0; i < entries.size(); i += 2) {
      check_key(entries[i]);
      check_hashed(id, PyDict_SetItem(dict.ptr(), objects_[entries[i]].ptr(),
                                      objects_[entries[i + 1]].ptr()));
    }
  }

  void check_key(PickleId id) const {
    const auto& [depth, weight] = sizes_[id];
    TORCH_CHECK_VALUE(depth <= kDeepestKey && weight <= kHeaviestKey,
                      "open_checkpoint: ", pickle_.where(), ": the tuple created at byte ",
                      pickle_.offset(id), " is a dict key or set element with depth ", depth,
                      " and ", weight, weight > kHeaviestKey ? " or more" : "",
                      " elements, expected at most depth ", kDeepestKey, " and ", kHeaviestKey,
                      " elements"
                      ". Cause: the file is damaged or malicious.");
  }

  /// Of what Python raises where a key cannot be hashed.
  void check_hashed(PickleId id, int status) const {
    if (status == 0) {
      return;
    }
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) {
      throw py::error_already_set();
    }
    const py::error_already_set error;
    TORCH_CHECK_VALUE(false, "open_checkpoint: ", pickle_.where(), ": the ", pickle_.describe(id),
                      " created at byte ", pickle_.offset(id),
                      " has a key that Python cannot hash: ", error.what(),
                      ". Cause: the file is damaged or malicious.");
  }

  py::object hashed(PickleId id, py::object object) const {
    check_hashed(id, object ? 0 : -1);
    return object;
  }

  const Pickle& pickle_;
  const InertClasses& classes_;
  std::vector<Size> sizes_;
  std::vector<py::object> objects_;
};

py::object parse_pickle(const py::bytes& data, const std::string& where, py::object global,
                        py::object record, py::object persistent) {
  const InertClasses classes{std::move(global), std::move(record), std::move(persistent)};
  auto text = static_cast<std::string>(data);
  const auto pickle = [&] {
    const py::gil_scoped_release other_threads_may_run;
    return Pickle::parse(std::move(text), where);
  }();
  return python_values(pickle, classes)[pickle.root()];
}

}  // namespace

std::vector<py::object> python_values(const Pickle& pickle, const InertClasses& classes) {
  return Maker(pickle, classes).make();
}

void bind_pickle(py::module_& m) {
  m.def("parse_pickle", &parse_pickle, py::arg("data"), py::arg("where"), py::arg("global_"),
        py::arg("record"), py::arg("persistent"));
}

}  // namespace dormant::bindings
