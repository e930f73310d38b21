// The public C++ interface to quantization.
#include <ATen/EmptyTensor.h>
#include <c10/util/Exception.h>
#include <dormant/quantize.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "quantize/four_bit.h"
#include "quantize/int8_rows.h"
#include "quantize/tables.h"
#include "record/source_node.h"
#include "system/dispatch_state.h"

namespace dormant {
namespace {

constexpr int64_t kNestedBlock = quantization::DynamicMap::kBlock;

const char* name_of(FourBitKind kind) { return kind == FourBitKind::nf4 ? "nf4" : "fp4"; }

/// What is quantized: no gradient goes through it.
at::Tensor checked_source(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), "quantize: the tensor is undefined");
  TORCH_CHECK_NOT_IMPLEMENTED(
      tensor.is_cpu() && tensor.layout() == at::kStrided && tensor.has_storage(),
      "quantize: got a tensor of layout ", tensor.layout(), " on ", tensor.device(),
      ", expected a strided one on the CPU. Next: quantize there, and move what comes out.");
  TORCH_CHECK_VALUE(tensor.numel() > 0, "quantize: got sizes ", tensor.sizes(),
                    ", expected at least one element");
  return tensor.detach().resolve_neg();
}

template <typename Values>
at::Tensor tensor_of(const Values& values) {
  // Not at::empty, which records in a lazy context.
  at::Tensor tensor =
      at::detail::empty_cpu({static_cast<int64_t>(values.size())},
                            c10::CppTypeToScalarType<typename Values::value_type>::value);
  std::memcpy(tensor.mutable_data_ptr(), values.data(), tensor.nbytes());
  return tensor;
}

const char* name_of(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Float      ? "float32"
         : dtype == c10::ScalarType::BFloat16 ? "bfloat16"
                                              : "float16";
}

/// The shortest number that reads back as this one, as Python's json.dumps writes it.
std::string json_number(double value) {
  if (!std::isfinite(value)) {
    return std::isnan(value) ? "NaN" : value < 0 ? "-Infinity" : "Infinity";
  }
  char text[64];
  const auto magnitude = std::abs(value);
  // What Python's repr writes with an exponent.
  const bool is_scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  const auto end =
      std::to_chars(text, text + sizeof text, value,
                    is_scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string number(text, end.ptr);
  return is_scientific || number.find('.') != std::string::npos ? number : number + ".0";
}

/// The text that bitsandbytes keeps beside the tensors.
std::string state_text(const Quantized& quantized, const FourBit& scheme) {
  // Not by a stream, which passes over exhausted memory and gives less than there is.
  std::string text = R"({"quant_type": ")";
  text.append(name_of(scheme.kind)).append(R"(", "blocksize": )");
  text.append(std::to_string(scheme.block_size)).append(R"(, "dtype": ")");
  text.append(name_of(quantized.dtype)).append(R"(", "shape": [)");
  for (size_t i = 0; i < quantized.sizes.size(); ++i) {
    text.append(i == 0 ? "" : ", ").append(std::to_string(quantized.sizes[i]));
  }
  text.append("]");
  if (scheme.nested) {
    text.append(R"(, "nested_blocksize": )").append(std::to_string(kNestedBlock));
    text.append(R"(, "nested_dtype": "float32", "nested_offset": )");
    text.append(json_number(*quantized.offset.const_data_ptr<float>()));
  }
  text.append("}");
  return text;
}

}  // namespace

Quantized quantize(const at::Tensor& tensor, const FourBit& scheme) {
  const auto source = checked_source(tensor);
  const auto values =
      scheme.kind == FourBitKind::nf4 ? quantization::nf4_values() : quantization::fp4_values();
  std::optional<std::array<float, 256>> nested;
  if (scheme.nested) {
    nested = quantization::dynamic_map_values();
  }
  const system::PlainDispatch plain;
  const auto outputs = record::quantize(
      source, std::make_shared<const quantization::FourBit>(
                  name_of(scheme.kind), scheme.block_size, values,
                  nested ? std::optional<c10::ArrayRef<float>>(*nested) : std::nullopt));
  Quantized result{scheme,     source.sizes().vec(), source.scalar_type(),
                   outputs[0], outputs[1],           tensor_of(values)};
  if (nested) {
    result.nested_absmax = outputs[2];
    result.offset = outputs[3];
    result.nested_values = tensor_of(*nested);
  }
  return result;
}

Quantized quantize(const at::Tensor& tensor, const Int8& scheme) {
  const auto source = checked_source(tensor);
  const system::PlainDispatch plain;
  const auto outputs = record::quantize(source, std::make_shared<const quantization::Int8Rows>());
  return {scheme, source.sizes().vec(), source.scalar_type(), outputs[0], outputs[1]};
}

std::vector<at::Tensor> Quantized::tensors() const {
  std::vector<at::Tensor> all = {codes, absmax};
  for (const auto& each : {nested_absmax, offset}) {
    if (each.defined()) {
      all.push_back(each);
    }
  }
  return all;
}

NamedTensors Quantized::named_tensors(const std::string& name,
                                      const MaterializeOptions& options) const {
  const auto* four_bit = std::get_if<FourBit>(&scheme);
  if (four_bit == nullptr) {
    const auto dot = name.rfind('.');
    const auto module = dot == std::string::npos ? "" : name.substr(0, dot + 1);
    at::Tensor rows = at::detail::empty_cpu({}, at::kByte);  // bitsandbytes' number of this layout
    *rows.mutable_data_ptr<uint8_t>() = 0;
    return {{name, codes}, {module + "SCB", absmax}, {module + "weight_format", rows}};
  }
  NamedTensors state = {{name, codes}, {name + ".absmax", absmax}, {name + ".quant_map", values}};
  if (four_bit->nested) {
    materialize(offset, options);
    state.emplace_back(name + ".nested_absmax", nested_absmax);
    state.emplace_back(name + ".nested_quant_map", nested_values);
  }
  state.emplace_back(name + ".quant_state.bitsandbytes__" + std::string(name_of(four_bit->kind)),
                     [&] {
                       const auto text = state_text(*this, *four_bit);
                       return tensor_of(std::vector<uint8_t>(text.begin(), text.end()));
                     }());
  return state;
}

}  // namespace dormant
