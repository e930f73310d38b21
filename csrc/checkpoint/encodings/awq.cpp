#include "checkpoint/encodings/awq.h"

#include <c10/util/Exception.h>

#include "checkpoint/encodings/integer_modules.h"
#include "decode/awq.h"
#include "text/printable.h"

namespace dormant::checkpoint {

void find_awq(Scan& scan) {
  if (scan.configuration().method != "awq") {
    return;
  }
  // AutoAWQ's own names for them are the second ones.
  const auto& quantization = scan.configuration().quantization;
  const auto bits = integer_in(scan, quantization, {"bits", "w_bit"}).value_or(4);
  const auto group = integer_in(scan, quantization, {"group_size", "q_group_size"}).value_or(128);
  const auto version = text_in(scan, quantization, {"version", "format"});
  TORCH_CHECK_NOT_IMPLEMENTED(
      bits == 4 && (version.empty() || version == "gemm"), scan.about(), scan.configured_in(),
      " states AWQ with ", bits, " bits and version ", text::in_quotes(version),
      "; only 4 bits with version gemm can be decoded. Next: pass decode=False to get the tensors "
      "as they are stored.");
  for (const auto& qweight : scan.tensors()) {
    const auto module = before(qweight.name, ".qweight");
    if (!module) {
      continue;
    }
    const auto weight = *module + ".weight";
    const auto& qzeros = scan.part(*module + ".qzeros", weight);
    const auto& scales = scan.part(*module + ".scales", weight);
    scan.add<decode::Awq>(
        weight, {qweight.name, qzeros.name, scales.name},
        {group, {*module, geometry_of(qweight), geometry_of(qzeros), geometry_of(scales)}},
        scan.dtype(scales.dtype), /*transposed=*/true);
  }
}

}  // namespace dormant::checkpoint
