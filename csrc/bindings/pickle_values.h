// Pickles as Python's values.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "checkpoint/pickle.h"

namespace dormant::bindings {

/// The classes of dormant.checkpoint.inert.
struct InertClasses {
  pybind11::object global;
  pybind11::object record;
  pybind11::object persistent;
};

/// Every value of a pickle as a Python object, by its number. c10::ValueError where a key cannot be
/// hashed, or might take for ever. Needs Python's lock.
std::vector<pybind11::object> python_values(const checkpoint::Pickle& pickle,
                                            const InertClasses& classes);

}  // namespace dormant::bindings
