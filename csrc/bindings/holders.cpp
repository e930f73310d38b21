// Which of many Python objects may hold a tensor.
//
// Most of what hangs on a model holds none: numbers, texts, and small objects of those. What an
// object refers to is asked of its tp_traverse, by which the garbage collector asks: it runs no
// code of the object's class and makes no dictionary of attributes that are kept without one.
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Size.h>

#include <unordered_map>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/parts.h"

namespace py = pybind11;

namespace dormant::bindings {
namespace {

enum class Holds { nothing, referents, unknown };

class Holders {
 public:
  Holders(const py::tuple& followed, const py::tuple& ignored) {
    for (const auto& type : followed) {
      followed_.push_back(as_type(type));
    }
    for (const auto& type : ignored) {
      ignored_.push_back(as_type(type));
    }
  }

  /// False only if nothing that `object` leads to can be a tensor.
  bool may_hold(PyObject* object) {
    left_ = kMostLooks;
    return !leads_nowhere(object, kMostDepth);
  }

 private:
  // One look at an object stays short, however large what it refers to: that is walked once.
  static constexpr int kMostLooks = 64;
  static constexpr int kMostDepth = 4;

  struct Visit {
    Holders* holders;
    int depth;
  };

  static PyTypeObject* as_type(py::handle type) {
    TORCH_CHECK_TYPE(PyType_Check(type.ptr()), "holders: expected types");
    return reinterpret_cast<PyTypeObject*>(type.ptr());
  }

  static int visit(PyObject* referent, void* argument) {
    auto* at = static_cast<Visit*>(argument);
    return at->holders->leads_nowhere(referent, at->depth) ? 0 : 1;
  }

  bool leads_nowhere(PyObject* object, int depth) {
    if (left_-- == 0) {
      return false;
    }
    switch (holds(Py_TYPE(object))) {
      case Holds::nothing:
        return true;
      case Holds::unknown:
        return false;
      default:
        break;
    }
    Visit inside{this, depth - 1};
    return depth > 0 && Py_TYPE(object)->tp_traverse(object, &visit, &inside) == 0;
  }

  Holds holds(PyTypeObject* type) {
    const auto [known, is_new] = known_.try_emplace(type, Holds::unknown);
    if (is_new) {
      known->second = examine(type);
    }
    return known->second;
  }

  Holds examine(PyTypeObject* type) const {
    for (auto* plain : {Py_TYPE(Py_None), &PyBool_Type, &PyLong_Type, &PyFloat_Type,
                        &PyComplex_Type, &PyUnicode_Type, &PyBytes_Type, &THPDtypeType}) {
      if (type == plain) {
        return Holds::nothing;
      }
    }
    for (auto* followed : followed_) {
      if (PyType_IsSubtype(type, followed) != 0) {
        return Holds::unknown;
      }
    }
    for (auto* ignored : ignored_) {
      if (PyType_IsSubtype(type, ignored) != 0) {
        return Holds::nothing;
      }
    }
    if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_GC) != 0 && type->tp_traverse != nullptr) {
      return Holds::referents;
    }
    return type->tp_dictoffset == 0 ? Holds::nothing : Holds::unknown;
  }

  std::vector<PyTypeObject*> followed_;
  std::vector<PyTypeObject*> ignored_;
  std::unordered_map<PyTypeObject*, Holds> known_;
  int left_ = 0;
};

/// Positions in a list. No code but this runs meanwhile, so the types that are met stay.
std::vector<py::ssize_t> holders(const py::list& objects, const py::tuple& followed,
                                 const py::tuple& ignored) {
  Holders known(followed, ignored);
  std::vector<py::ssize_t> positions;
  for (py::ssize_t i = 0; i < PyList_GET_SIZE(objects.ptr()); ++i) {
    if (known.may_hold(PyList_GET_ITEM(objects.ptr(), i))) {
      positions.push_back(i);
    }
  }
  return positions;
}

}  // namespace

void bind_holders(py::module_& m) {
  m.def("holders", &holders, py::arg("objects"), py::arg("followed"), py::arg("ignored"),
        py::pos_only(),
        "Positions of the objects that may hold a tensor, without running any code of theirs.\n\n"
        "Objects of a type in `followed` always may; objects of a type in `ignored` never do.");
}

}  // namespace dormant::bindings
