// What finds decoders, as Python sees it. Conversions only, no logic.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/open_file.h"
#include "bindings/parts.h"
#include "checkpoint/encodings/find.h"

namespace py = pybind11;
using namespace dormant::checkpoint;

namespace dormant::bindings {
namespace {

using record::Decoder;

using Description = std::tuple<std::string, py::object, std::vector<int64_t>, std::string>;

py::tuple find(const std::vector<Description>& tensors, const std::optional<py::bytes>& config,
               const std::string& config_path,
               const std::vector<std::pair<std::string, py::bytes>>& quantization_files,
               const py::object& dtype, const std::string& where, const py::function& read) {
  std::vector<RawTensor> raw;
  raw.reserve(tensors.size());
  for (const auto& [name, type, sizes, format] : tensors) {
    raw.push_back({name, scalar_type(type), sizes, format});
  }
  auto configuration =
      config ? ConfigurationText{config_path, std::string(*config)} : ConfigurationText{};
  for (const auto& [path, text] : quantization_files) {
    configuration.quantization_files.emplace_back(path, std::string(text));
  }
  const auto findings = find_encoded(
      std::move(raw), configuration,
      dtype.is_none() ? std::nullopt : std::optional(scalar_type(dtype)), where,
      [&](const RawTensor& tensor) { return std::string(read(tensor.name).cast<py::bytes>()); });
  py::list encoded;
  for (const auto& each : findings.encoded) {
    const auto output = each.decoder->output();
    // pybind11 has no holder for what must not change.
    encoded.append(py::make_tuple(
        each.name, each.parts, std::const_pointer_cast<Decoder>(each.decoder),
        py::tuple(py::cast(std::vector<int64_t>(output.sizes.begin(), output.sizes.end()))),
        dtype_object(each.dtype), each.transposed));
  }
  return py::make_tuple(encoded, findings.spent, findings.warnings);
}

}  // namespace

void bind_encodings(py::module_& m) {
  m.def("find_encoded", &find, py::arg("tensors"), py::kw_only(), py::arg("config"),
        py::arg("config_path"), py::arg("quantization_files"), py::arg("dtype"), py::arg("where"),
        py::arg("read"));
}

}  // namespace dormant::bindings
