#include "checkpoint/encodings/block_fp8.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <array>
#include <optional>
#include <utility>

#include "checkpoint/encodings/module_patterns.h"
#include "checkpoint/encodings/scaled_blocks.h"
#include "decode/output_format.h"
#include "decode/packed_fp4.h"
#include "decode/scaled_bytes.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

constexpr std::string_view kWeight = ".weight";

/// What transformers decodes to where no parameter says it: Fp8Dequantize._dequantize_one.
ScalarType library_dtype(ScalarType scales) {
  return decode::is_output(scales) ? scales : ScalarType::BFloat16;
}

void add_weight(Scan& scan, const RawTensor& weight, const RawTensor& scales,
                const std::optional<Blocks>& configured) {
  const bool packed = weight.dtype == ScalarType::Char;
  TORCH_CHECK_VALUE(is_float8(weight.dtype) || packed, scan.about(), in_quotes(weight.name),
                    " has dtype ", weight.dtype, ", although ", in_quotes(scales.name),
                    " has scales for it; expected float8_e4m3fn. Cause: the weight was decoded "
                    "and its scales were kept, or it has another encoding. ",
                    kNextRaw);
  TORCH_CHECK_VALUE(weight.sizes.size() >= 2, scan.about(), in_quotes(weight.name), " has sizes ",
                    c10::IntArrayRef(weight.sizes), ", expected a matrix. ", kNextRaw);
  const auto dtype = scan.dtype(library_dtype(scales.dtype));
  const auto output = decode::nearest_output(dtype);
  auto sizes = weight.sizes;
  if (packed) {
    TORCH_CHECK_VALUE(!c10::mul_overflows(sizes.back(), int64_t{2}, &sizes.back()), scan.about(),
                      in_quotes(weight.name), " has sizes ", c10::IntArrayRef(weight.sizes),
                      ", which are too large. ", kNextRaw);
  }
  const auto [rows, columns] = blocks_for(scan, weight, sizes, scales, configured);
  if (packed) {
    // Experts of DeepSeek-V4: two numbers of four bits in a byte.
    scan.add<decode::PackedFp4>(weight.name, {weight.name, scales.name},
                                {.packed = weight.dtype,
                                 .packed_sizes = weight.sizes,
                                 .sizes = sizes,
                                 .scales = scales.dtype,
                                 .scale_sizes = scales.sizes,
                                 .block_rows = rows,
                                 .block_columns = columns,
                                 .output = output},
                                dtype);
  } else {
    scan.add<decode::ScaledBytes>(weight.name, {weight.name, scales.name},
                                  {.weight = weight.dtype,
                                   .sizes = sizes,
                                   .scales = scales.dtype,
                                   .scale_sizes = scales.sizes,
                                   .block_rows = rows,
                                   .block_columns = columns,
                                   .output = output},
                                  dtype);
  }
}

/// The weight that a tensor called `name` may scale; empty where it scales none.
std::string scaled_by(const std::string& name) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kEndings = {{
      {"_scale_inv", ""},
      {".scale", kWeight},
      {".qscale_weight", kWeight},
  }};
  for (const auto& [ending, instead] : kEndings) {
    if (name.ends_with(ending)) {
      return name.substr(0, name.size() - ending.size()) + std::string(instead);
    }
  }
  return {};
}

}  // namespace

void find_block_fp8(Scan& scan) {
  const auto configured =
      configured_blocks(scan, scan.configuration().quantization, "weight_block_size");
  for (const auto& scales : scan.tensors()) {
    const auto name = scaled_by(scales.name);
    const auto* weight = name.empty() ? nullptr : scan.find(name);
    const bool surely = scales.name.ends_with("_scale_inv");
    // Other tensors are called ".scale", too.
    if (weight == nullptr || (!surely && !is_float8(weight->dtype))) {
      continue;
    }
    add_weight(scan, *weight, scales, configured);
    spend_activation_settings(scan, module_of(name));
    scan.spend(name + "_activation_scale");
  }
}

}  // namespace dormant::checkpoint
