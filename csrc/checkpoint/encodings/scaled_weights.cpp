#include "checkpoint/encodings/scaled_weights.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string>

#include "checkpoint/encodings/compressed_groups.h"
#include "checkpoint/encodings/module_patterns.h"
#include "checkpoint/encodings/scaled_blocks.h"
#include "decode/output_format.h"
#include "decode/scaled_bytes.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

constexpr std::string_view kScale = "_scale";

/// What the settings of a group say about the scales of its weights.
std::optional<Blocks> blocks_of(const Scan& scan, const CompressedScheme& scheme) {
  if (const auto group = scheme.positive(scan, "group_size")) {
    return Blocks(1, *group);
  }
  return configured_blocks(scan, scheme.weights, "block_structure");
}

void check_scheme(const Scan& scan, const CompressedScheme& scheme, const RawTensor& weight) {
  const auto type = scheme.weights.value("type", nlohmann::json("int"));
  const auto* expected = weight.dtype == ScalarType::Char ? "int" : "float";
  const auto bits = scheme.weights.value("num_bits", nlohmann::json(8));
  TORCH_CHECK_VALUE(type == expected && bits == 8, scan.about(), in_quotes(weight.name),
                    " has dtype ", weight.dtype, ", but ", scan.configured_in(), " states type ",
                    text::printable(type.dump()), " and num_bits ", text::printable(bits.dump()),
                    " for it. ", kNextRaw);
}

struct Settings {
  bool compressed;  ///< by compressed-tensors
  CompressedGroups groups;
};

void add_weight(Scan& scan, const Settings& settings, const RawTensor& weight,
                const RawTensor& scales) {
  const bool is_int8 = weight.dtype == ScalarType::Char;
  TORCH_CHECK_VALUE(weight.sizes.size() >= 2, scan.about(), in_quotes(weight.name), " has sizes ",
                    c10::IntArrayRef(weight.sizes), ", expected a matrix. ", kNextRaw);
  std::optional<Blocks> configured;
  if (const auto* scheme = settings.groups.find(scan, module_of(weight.name))) {
    check_scheme(scan, *scheme, weight);
    configured = blocks_of(scan, *scheme);
  }
  const auto blocks = blocks_for(scan, weight, weight.sizes, scales, configured);
  // compressed-tensors multiplies in the dtype of the scales; those that are exponents, in bfloat16
  // (compressors/mx_utils.py).
  const auto arithmetic = decode::is_output(scales.dtype) ? scales.dtype : ScalarType::BFloat16;
  const auto dtype = scan.dtype(arithmetic);
  std::vector<std::string> parts = {weight.name, scales.name};
  std::optional<ScalarType> zeros;
  if (const auto* found = scan.find(weight.name + "_zero_point"); found != nullptr && is_int8) {
    parts.push_back(found->name);
    zeros = found->dtype;
  }
  scan.add<decode::ScaledBytes>(
      weight.name, std::move(parts),
      {.weight = weight.dtype,
       .sizes = weight.sizes,
       .scales = scales.dtype,
       .scale_sizes = scales.sizes,
       .block_rows = blocks.first,
       .block_columns = blocks.second,
       .output = settings.compressed ? arithmetic : decode::nearest_output(dtype),
       .zeros = zeros},
      dtype);
}

}  // namespace

void find_scaled_weights(Scan& scan) {
  const auto& method = scan.configuration().method;
  const Settings settings{method == "compressed-tensors", CompressedGroups(scan)};
  const bool expected = settings.compressed || method == "fbgemm_fp8";
  for (const auto& scales : scan.tensors()) {
    if (!scales.name.ends_with(".weight_scale")) {
      continue;
    }
    const auto* weight = scan.find(scales.name.substr(0, scales.name.size() - kScale.size()));
    if (weight == nullptr || scan.taken(weight->name)) {
      continue;  // of another encoding, such as X.weight_packed
    }
    const bool is_int8 = weight->dtype == ScalarType::Char;
    TORCH_CHECK_VALUE(is_float8(weight->dtype) || is_int8 || !expected, scan.about(),
                      in_quotes(weight->name), " has dtype ", weight->dtype, ", although ",
                      in_quotes(scales.name),
                      " has scales for it; expected float8_e4m3fn or int8. Cause: the weight "
                      "was decoded and its scales were kept, or it has another encoding. ",
                      kNextRaw);
    // Other tensors of bytes may have a scale without a configuration that says what it is for.
    if (is_float8(weight->dtype) || (is_int8 && settings.compressed)) {
      add_weight(scan, settings, *weight, scales);
      spend_activation_settings(scan, module_of(weight->name));
    }
  }
}

}  // namespace dormant::checkpoint
