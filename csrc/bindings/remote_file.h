// A Python object as a checkpoint::RangeReader.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/file.h"

namespace dormant::bindings {

/// A file of `size` bytes that `reader` hands over: it has `read_into(offset, memoryview)`, which
/// fills the view or raises, and `check()`. Any thread may call them, with Python's lock, which is
/// all that is held.
std::shared_ptr<const checkpoint::File> file_over(const pybind11::object& reader, std::string name,
                                                  uint64_t size);

}  // namespace dormant::bindings
