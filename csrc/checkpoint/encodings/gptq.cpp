#include "checkpoint/encodings/gptq.h"

#include <c10/util/Exception.h>

#include <utility>

#include "checkpoint/encodings/integer_modules.h"
#include "decode/gptq.h"
#include "decode/integer_parts.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using text::in_quotes;

/// What config.json says of all layers.
decode::Gptq::Config config_in(const Scan& scan) {
  const auto& quantization = scan.configuration().quantization;
  const auto bits = integer_in(scan, quantization, {"bits"});
  TORCH_CHECK_VALUE(bits.has_value(), scan.about(), scan.configured_in(),
                    " does not state the number of bits for GPTQ. ", kNextRaw);
  // GPTQModel writes "checkpoint_format" for others, and "format" for itself.
  const auto format = text_in(scan, quantization, {"checkpoint_format", "format"});
  const auto marlin = quantization.find("is_marlin_format");
  TORCH_CHECK_NOT_IMPLEMENTED(
      (format.empty() || format == "gptq" || format == "gptq_v2") &&
          (marlin == quantization.end() || *marlin != true),
      scan.about(), scan.configured_in(), " states the format ",
      format.empty() ? "marlin" : in_quotes(format),
      " of GPTQ; only gptq and gptq_v2 can be decoded. Next: pass decode=False to get the tensors "
      "as they are stored, or convert them with GPTQModel.");
  const auto words = text_in(scan, quantization, {"pack_dtype"});
  TORCH_CHECK_NOT_IMPLEMENTED(words.empty() || words == "int32", scan.about(), scan.configured_in(),
                              " states pack_dtype ", in_quotes(words),
                              "; only int32 can be decoded. Next: pass decode=False.");
  TORCH_CHECK_VALUE(*bits == 2 || *bits == 3 || *bits == 4 || *bits == 8, scan.about(),
                    scan.configured_in(), " states ", *bits,
                    " bits for GPTQ, expected 2, 3, 4 or 8. ", kNextRaw);
  return {*bits, integer_in(scan, quantization, {"group_size"}).value_or(-1), format != "gptq_v2"};
}

/// Settings of one layer where config.json has some for single layers ("dynamic"): the tensors say
/// which these are.
decode::Gptq::Config config_of(const Scan& scan, decode::Gptq::Config config,
                               const RawTensor& qweight, const RawTensor& qzeros,
                               const RawTensor& scales, const RawTensor* g_idx) {
  const bool matrices =
      qweight.sizes.size() == 2 && qzeros.sizes.size() == 2 && scales.sizes.size() == 2;
  std::optional<int64_t> bits;
  for (const int64_t each : {2, 3, 4, 8}) {
    if (matrices && scales.sizes[1] > 0 && scales.sizes[1] <= decode::kMostElementsOfADimension &&
        decode::words_of(scales.sizes[1], each) == qzeros.sizes[1]) {
      TORCH_CHECK_VALUE(!bits, scan.about(), in_quotes(qzeros.name), " has sizes ",
                        c10::IntArrayRef(qzeros.sizes), ", which fit both ", *bits, " and ", each,
                        " bits. ", kNextRaw);
      bits = each;
    }
  }
  config.bits = bits.value_or(config.bits);
  if (g_idx != nullptr) {
    config.group_size = 0;
  } else if (matrices && scales.sizes[0] > 0 && qweight.sizes[0] > 0 &&
             qweight.sizes[0] <= decode::kMostElementsOfADimension) {
    config.group_size = qweight.sizes[0] * 32 / config.bits / scales.sizes[0];
  }
  return config;
}

}  // namespace

void find_gptq(Scan& scan) {
  if (scan.configuration().method != "gptq") {
    return;
  }
  const auto config = config_in(scan);
  const auto& quantization = scan.configuration().quantization;
  const auto dynamic = quantization.find("dynamic");
  const bool single_layers =
      dynamic != quantization.end() && dynamic->is_object() && !dynamic->empty();
  for (const auto& qweight : scan.tensors()) {
    const auto module = before(qweight.name, ".qweight");
    if (!module) {
      continue;
    }
    const auto weight = *module + ".weight";
    const auto& qzeros = scan.part(*module + ".qzeros", weight);
    const auto& scales = scan.part(*module + ".scales", weight);
    const auto* g_idx = scan.find(*module + ".g_idx");
    std::vector<std::string> parts = {qweight.name, qzeros.name, scales.name};
    if (g_idx != nullptr) {
      parts.insert(parts.begin(), g_idx->name);
    }
    scan.add<decode::Gptq>(
        weight, std::move(parts),
        {single_layers ? config_of(scan, config, qweight, qzeros, scales, g_idx) : config,
         {*module, geometry_of(qweight), geometry_of(qzeros), geometry_of(scales),
          g_idx == nullptr ? std::nullopt : std::optional(geometry_of(*g_idx))}},
        scan.dtype(scales.dtype), /*transposed=*/true);
  }
}

}  // namespace dormant::checkpoint
