// The encodings that are known: a row for each.
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/encodings/awq.h"
#include "checkpoint/encodings/bitsandbytes.h"
#include "checkpoint/encodings/block_fp8.h"
#include "checkpoint/encodings/compressed_fp4.h"
#include "checkpoint/encodings/encoding.h"
#include "checkpoint/encodings/gguf_blocks.h"
#include "checkpoint/encodings/gptq.h"
#include "checkpoint/encodings/mxfp4.h"
#include "checkpoint/encodings/packed_integers.h"
#include "checkpoint/encodings/scaled_blocks.h"
#include "checkpoint/encodings/scaled_weights.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

struct Encoding {
  std::string_view name;
  /// What config.json calls it ("quant_method"). Where it says nothing of that, the encoding is
  /// looked for by the names of tensors alone.
  std::vector<std::string_view> methods;
  void (*find)(Scan& scan);
};

const std::vector<Encoding>& encodings() {
  static const std::vector<Encoding> rows = {
      {"scaled weights", {"compressed-tensors", "fbgemm_fp8", "fp8"}, find_scaled_weights},
      {"block fp8", {"fp8"}, find_block_fp8},
      {"gptq", {"gptq"}, find_gptq},
      {"awq", {"awq"}, find_awq},
      {"packed integers", {"compressed-tensors"}, find_packed_integers},
      {"blocks of GGUF", {}, find_gguf_blocks},
      {"mxfp4", {"mxfp4"}, find_mxfp4},
      {"compressed fp4", {"compressed-tensors"}, find_compressed_fp4},
      {"bitsandbytes", {"bitsandbytes"}, find_bitsandbytes},
  };
  return rows;
}

}  // namespace

Findings find_encoded(std::vector<RawTensor> tensors, const ConfigurationText& configuration,
                      std::optional<c10::ScalarType> dtype, const std::string& where,
                      ReadSmall read) {
  auto parsed = configuration.path.empty()
                    ? Configuration{}
                    : parse_configuration(configuration.text, text::printable(configuration.path));
  for (const auto& [path, contents] : configuration.quantization_files) {
    add_quantization(parsed, contents, text::printable(path));
  }
  Scan scan(std::move(tensors), std::move(parsed), dtype, text::printable(where), std::move(read));
  const auto& method = scan.configuration().method;
  bool known = method.empty();
  for (const auto& encoding : encodings()) {
    const auto& methods = encoding.methods;
    const bool is_it = std::find(methods.begin(), methods.end(), method) != methods.end();
    // Encodings without a method are those that a file's format knows.
    if (method.empty() || methods.empty() || is_it) {
      encoding.find(scan);
    }
    known = known || is_it;
  }
  refuse_unscaled(scan);
  std::map<std::string_view, size_t> order;
  for (const auto& tensor : scan.tensors()) {
    order.emplace(tensor.name, order.size());
  }
  const bool says_so = known && !method.empty();
  const auto file = scan.configuration().file;
  const auto said = method;
  const auto about = scan.about();
  auto findings = std::move(scan).finish();
  if (says_so && findings.encoded.empty()) {
    findings.warnings.push_back(
        about + "no tensor has the encoding that " + file + " states (quant_method " +
        text::in_quotes(said) +
        "), so all tensors are read as they are stored. Remove quantization_config from "
        "that file if they are plain weights.");
  }
  std::sort(findings.encoded.begin(), findings.encoded.end(),
            [&](const Encoded& a, const Encoded& b) {
              return order.at(a.parts.front()) < order.at(b.parts.front());
            });
  return findings;
}

}  // namespace dormant::checkpoint
