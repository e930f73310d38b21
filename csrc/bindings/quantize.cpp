// The quantizers as Python sees them. Conversions only, no logic.
#include <ATen/EmptyTensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/parts.h"
#include "quantize/four_bit.h"
#include "quantize/int8_rows.h"
#include "record/quantizer.h"

namespace py = pybind11;

namespace dormant::bindings {
namespace {

using quantization::DynamicMap;
using quantization::FourBit;
using quantization::Int8Rows;
using record::Quantizer;

c10::ArrayRef<float> values_of(const char* what, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.scalar_type() == c10::ScalarType::Float &&
                        tensor.dim() == 1 && tensor.is_contiguous(),
                    "FourBit: ", what, " is ", tensor.scalar_type(), " of sizes ", tensor.sizes(),
                    " on ", tensor.device(),
                    "; expected a contiguous vector of float32 on the CPU");
  return {tensor.const_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

std::shared_ptr<FourBit> make_four_bit(std::string kind, int64_t block_size, const Tensor& values,
                                       const std::optional<Tensor>& nested_map) {
  return std::make_shared<FourBit>(
      std::move(kind), block_size, values_of("values", values),
      nested_map ? std::optional(values_of("nested_map", *nested_map)) : std::nullopt);
}

std::vector<at::Tensor> quantize_now(const Tensor& tensor, const Quantizer& quantizer,
                                     int threads) {
  std::vector<at::Tensor> outputs;
  for (const auto& geometry : quantizer.outputs(tensor.sizes())) {
    // Not at::empty, which records in a lazy context.
    outputs.emplace_back(at::detail::empty_cpu(geometry.sizes, geometry.dtype));
  }
  const py::gil_scoped_release other_threads_may_run;
  record::run_whole(quantizer, tensor, outputs, threads);
  return outputs;
}

/// Codes, their absmax and the offset of the absmax of all blocks.
std::vector<at::Tensor> nest(const FourBit& quantizer, const Tensor& tensor, int threads) {
  const auto absmax = values_of("absmax", tensor);
  const auto count = static_cast<int64_t>(absmax.size());
  constexpr int64_t kBlock = DynamicMap::kBlock;
  // Not at::empty, which records in a lazy context.
  std::vector<at::Tensor> nested = {
      at::detail::empty_cpu({count}, at::kByte),
      at::detail::empty_cpu({(count + kBlock - 1) / kBlock}, at::kFloat),
      at::detail::empty_cpu({}, at::kFloat)};
  const py::gil_scoped_release other_threads_may_run;
  quantizer.nest(absmax.data(), count, threads,
                 {nested[0].mutable_data_ptr<uint8_t>(), nested[1].mutable_data_ptr<float>(),
                  nested[2].mutable_data_ptr<float>()});
  return nested;
}

}  // namespace

void bind_quantize(py::module_& m) {
  // Without the constness that shared_ptr<const Quantizer> has in the core: pybind11 has none.
  py::class_<Quantizer, std::shared_ptr<Quantizer>>(m, "Quantizer")
      .def_property_readonly("name", &Quantizer::name);
  py::class_<FourBit, Quantizer, std::shared_ptr<FourBit>>(m, "FourBit")
      .def(py::init(&make_four_bit), py::arg("kind"), py::arg("block_size"), py::arg("values"),
           py::arg("nested_map") = std::nullopt)
      .def("nest", &nest, py::arg("absmax"), py::arg("threads"), py::pos_only());
  py::class_<Int8Rows, Quantizer, std::shared_ptr<Int8Rows>>(m, "Int8Rows").def(py::init<>());
  m.def("quantize_now", &quantize_now, py::arg("tensor"), py::arg("quantizer"), py::arg("threads"),
        py::pos_only());
}

}  // namespace dormant::bindings
