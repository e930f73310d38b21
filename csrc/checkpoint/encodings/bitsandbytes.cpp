#include "checkpoint/encodings/bitsandbytes.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "decode/four_bit_codes.h"
#include "decode/output_format.h"
#include "decode/scaled_bytes.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using nlohmann::json;
using text::in_quotes;
using Kind = decode::FourBitCodes::Kind;

constexpr std::string_view kState = ".quant_state.bitsandbytes__";
constexpr std::string_view kScales = ".SCB";
constexpr int64_t kLargestBlock = 4096;
// A weight of int8 is the code times the largest number of its row times this, 1 / 127 as the
// library writes it (backends/default/ops.py).
constexpr auto kInt8Factor = static_cast<float>(7.874015718698502e-3);

/// The text that says how a weight is packed.
class State {
 public:
  State(const Scan& scan, const RawTensor& tensor)
      : scan_(scan), tensor_(tensor), json_(parse_json(scan.read(tensor), about())) {
    TORCH_CHECK_VALUE(json_.is_object(), about(), " is not a JSON object. ", kNextRaw);
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  std::string text(const char* key) const {
    TORCH_CHECK_VALUE(has(key) && json_[key].is_string(), about(), " states ", key, " as ",
                      shown(key), ", expected text. ", kNextRaw);
    return json_[key].get<std::string>();
  }

  int64_t block(const char* key) const {
    TORCH_CHECK_VALUE(has(key) && json_[key].is_number_unsigned() &&
                          json_[key].get<uint64_t>() >= 1 &&
                          json_[key].get<uint64_t>() <= kLargestBlock,
                      about(), " states ", key, " as ", shown(key), ", expected 1 to ",
                      kLargestBlock, ". ", kNextRaw);
    return json_[key].get<int64_t>();
  }

  float number(const char* key) const {
    TORCH_CHECK_VALUE(has(key) && json_[key].is_number(), about(), " states ", key, " as ",
                      shown(key), ", expected a number. ", kNextRaw);
    return static_cast<float>(json_[key].get<double>());
  }

  /// Sizes whose product is no overflow.
  std::vector<int64_t> shape() const {
    std::vector<int64_t> sizes;
    int64_t product = 1;
    bool fits = has("shape") && json_["shape"].is_array() && json_["shape"].size() <= 64;
    for (size_t i = 0; fits && i < json_["shape"].size(); ++i) {
      const auto& size = json_["shape"][i];
      fits = size.is_number_unsigned() && size.get<uint64_t>() <= uint64_t{1} << 60;
      if (fits) {
        sizes.push_back(size.get<int64_t>());
        fits = !c10::mul_overflows(product, std::max<int64_t>(sizes.back(), 1), &product);
      }
    }
    TORCH_CHECK_VALUE(fits, about(), " states shape as ", shown("shape"),
                      ", expected the sizes of a tensor. ", kNextRaw);
    return sizes;
  }

  ScalarType dtype() const {
    const auto name = text("dtype");
    for (const auto& [known, type] :
         {std::pair("float32", ScalarType::Float), std::pair("bfloat16", ScalarType::BFloat16),
          std::pair("float16", ScalarType::Half)}) {
      if (name == known) {
        return type;
      }
    }
    TORCH_CHECK_VALUE(false, about(), " states dtype as ", shown("dtype"),
                      ", expected float32, bfloat16 or float16. ", kNextRaw);
  }

 private:
  std::string about() const { return scan_.about() + in_quotes(tensor_.name); }
  std::string shown(const char* key) const {
    return has(key) ? text::printable(json_[key].dump()) : "nothing";
  }

  const Scan& scan_;
  const RawTensor& tensor_;
  const json json_;
};

std::optional<decode::FourBitCodes::Nested> nested_in(Scan& scan, const State& state,
                                                      const std::string& name) {
  if (!state.has("nested_blocksize") && !state.has("nested_offset")) {
    return std::nullopt;
  }
  TORCH_CHECK_VALUE(state.text("nested_dtype") == "float32", scan.about(), in_quotes(name),
                    " has nested absmax of ", text::printable(state.text("nested_dtype")),
                    ", expected float32. ", kNextRaw);
  decode::FourBitCodes::Nested nested{
      {}, state.block("nested_blocksize"), state.number("nested_offset")};
  const auto& map = scan.part(name + ".nested_quant_map", name);
  TORCH_CHECK_VALUE(
      map.dtype == ScalarType::Float &&
          map.sizes == std::vector<int64_t>{static_cast<int64_t>(nested.values.size())},
      scan.about(), in_quotes(map.name), " has sizes ", c10::IntArrayRef(map.sizes), " of ",
      map.dtype, ", expected [256] of float32. ", kNextRaw);
  const auto bytes = scan.read(map);
  std::memcpy(nested.values.data(), bytes.data(), bytes.size());
  return nested;
}

void add_four_bit(Scan& scan, const RawTensor& state_text) {
  const auto at = state_text.name.find(kState);
  const auto name = state_text.name.substr(0, at);
  const auto kind = state_text.name.substr(at + kState.size());
  TORCH_CHECK_VALUE((kind == "nf4" || kind == "fp4") && state_text.dtype == ScalarType::Byte,
                    scan.about(), in_quotes(state_text.name), " has dtype ", state_text.dtype,
                    ", expected the quant_state of nf4 or fp4 as uint8. ", kNextRaw);
  const State state(scan, state_text);
  TORCH_CHECK_VALUE(state.text("quant_type") == kind, scan.about(), in_quotes(state_text.name),
                    " states quant_type as ", in_quotes(state.text("quant_type")), ", expected ",
                    kind, ". ", kNextRaw);
  const auto& packed = scan.part(name, name);
  const auto& absmax = scan.part(name + ".absmax", name);
  // Of [1, n] the library gives the transposed weight. A folder of torch.distributed.checkpoint has
  // a matrix where ranks had columns of the weight.
  TORCH_CHECK_VALUE(
      packed.sizes.size() == 2 && (packed.sizes[1] == 1 || packed.sizes[0] > 1), scan.about(),
      in_quotes(packed.name), " has sizes ", c10::IntArrayRef(packed.sizes),
      ", expected [n, 1], or one row of codes for each row of the weight. ", kNextRaw);
  auto nested = nested_in(scan, state, name);
  std::vector<std::string> parts = {packed.name, absmax.name};
  std::vector<int64_t> nested_sizes;
  if (nested) {
    const auto& of_nested = scan.part(name + ".nested_absmax", name);
    nested_sizes = of_nested.sizes;
    parts.push_back(of_nested.name);
  }
  const auto dtype = scan.dtype_asked_for().value_or(state.dtype());
  scan.add<decode::FourBitCodes>(name, std::move(parts),
                                 {.kind = kind == "nf4" ? Kind::nf4 : Kind::fp4,
                                  .packed = packed.dtype,
                                  .packed_sizes = packed.sizes,
                                  .absmax_sizes = absmax.sizes,
                                  .nested_sizes = nested_sizes,
                                  .sizes = state.shape(),
                                  .block = state.block("blocksize"),
                                  .output = decode::nearest_output(dtype),
                                  .nested = std::move(nested)},
                                 dtype);
  for (const auto* ending : {".quant_map", ".nested_quant_map"}) {
    scan.spend(name + ending);
  }
  scan.spend(state_text.name);
}

void add_int8(Scan& scan, const RawTensor& scales) {
  const auto layer = scales.name.substr(0, scales.name.size() - kScales.size());
  const auto& weight = scan.part(layer + ".weight", layer + ".weight");
  TORCH_CHECK_VALUE(weight.dtype == ScalarType::Char && weight.sizes.size() == 2 &&
                        scales.dtype == ScalarType::Float,
                    scan.about(), in_quotes(weight.name), " has sizes ",
                    c10::IntArrayRef(weight.sizes), " of ", weight.dtype, " and ",
                    in_quotes(scales.name), " has dtype ", scales.dtype,
                    ", expected a matrix of int8 and scales of float32. ", kNextRaw);
  if (const auto* format = scan.find(layer + ".weight_format")) {
    const auto bytes = scan.read(*format);
    TORCH_CHECK_VALUE(
        std::all_of(bytes.begin(), bytes.end(), [](char byte) { return byte == 0; }), scan.about(),
        in_quotes(format->name),
        " states a GPU layout, expected 0 (rows). Next: save the model again with a version of "
        "bitsandbytes that is 0.45 or later, or pass decode=False.");
    scan.spend(format->name);
  }
  const auto dtype = scan.dtype(ScalarType::Float);
  scan.add<decode::ScaledBytes>(weight.name, {weight.name, scales.name},
                                {.weight = weight.dtype,
                                 .sizes = weight.sizes,
                                 .scales = scales.dtype,
                                 .scale_sizes = scales.sizes,
                                 .block_rows = 1,
                                 .block_columns = std::max<int64_t>(weight.sizes[1], 1),
                                 .output = decode::nearest_output(dtype),
                                 .factor = kInt8Factor},
                                dtype);
}

}  // namespace

void find_bitsandbytes(Scan& scan) {
  for (const auto& tensor : scan.tensors()) {
    if (tensor.name.find(kState) != std::string::npos) {
      add_four_bit(scan, tensor);
    }
  }
  for (const auto& tensor : scan.tensors()) {
    // Without a configuration, of layers whose weight is int8.
    const auto& name = tensor.name;
    if (!name.ends_with(kScales)) {
      continue;
    }
    const auto* weight = scan.find(name.substr(0, name.size() - kScales.size()) + ".weight");
    if (weight != nullptr && weight->dtype == ScalarType::Char) {
      add_int8(scan, tensor);
    }
  }
}

}  // namespace dormant::checkpoint
