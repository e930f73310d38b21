#include "bindings/remote_file.h"

#include <utility>

#include "checkpoint/remote_file.h"

namespace py = pybind11;

namespace dormant::bindings {
namespace {

class PythonReader final : public checkpoint::RangeReader {
 public:
  explicit PythonReader(py::object reader) : reader_(std::move(reader)) {}

  // The last reference may go on any thread, and after the interpreter has.
  ~PythonReader() override {
    if (Py_IsInitialized() == 0) {
      static_cast<void>(reader_.release());
      return;
    }
    const py::gil_scoped_acquire lock;
    reader_ = py::object();
  }

  void read(uint64_t offset, size_t count, void* out) const override {
    const py::gil_scoped_acquire lock;
    const auto view = py::memoryview::from_memory(out, static_cast<py::ssize_t>(count));
    try {
      reader_.attr("read_into")(offset, view);
    } catch (...) {
      // What an exception's traceback refers to must not reach memory that is somebody else's.
      view.attr("release")();
      throw;
    }
    view.attr("release")();
  }

  void check() const override {
    const py::gil_scoped_acquire lock;
    reader_.attr("check")();
  }

 private:
  py::object reader_;
};

}  // namespace

std::shared_ptr<const checkpoint::File> file_over(const py::object& reader, std::string name,
                                                  uint64_t size) {
  return std::make_shared<const checkpoint::RemoteFile>(std::move(name), size,
                                                        std::make_unique<PythonReader>(reader));
}

}  // namespace dormant::bindings
