// The decoders as Python sees them. Conversions only, no logic.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/parts.h"
#include "record/decoder.h"
#include "record/source_node.h"

namespace py = pybind11;

void dormant::bindings::bind_decode(py::module_& m) {
  using record::Decoder;
  // Without the constness that shared_ptr<const Decoder> has in the core: pybind11 has none.
  py::class_<Decoder, std::shared_ptr<Decoder>>(m, "Decoder")
      .def_property_readonly("name", &Decoder::name);
  m.def(
      "decode",
      [](const std::vector<Tensor>& parts, const std::shared_ptr<Decoder>& decoder) {
        const auto tensors = plain(parts);
        const py::gil_scoped_release other_threads_may_run;
        return record::decode(tensors, decoder);
      },
      py::arg("parts"), py::arg("decoder"), py::pos_only());
}
