#include "checkpoint/encodings/compressed_fp4.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <optional>
#include <string>

#include "checkpoint/encodings/compressed_groups.h"
#include "checkpoint/encodings/module_patterns.h"
#include "decode/packed_fp4.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

constexpr std::string_view kPacked = "_packed";

void check_scheme(const Scan& scan, const CompressedScheme& scheme, const RawTensor& packed,
                  int64_t block) {
  const auto type = scheme.weights.value("type", nlohmann::json("int"));
  const auto bits = scheme.weights.value("num_bits", nlohmann::json(8));
  const auto group = scheme.positive(scan, "group_size");
  TORCH_CHECK_VALUE(
      type == "float" && bits == 4 && (!group || *group == block), scan.about(),
      in_quotes(packed.name), " and its scales are 4-bit numbers in blocks of ", block, ", but ",
      scan.configured_in(), " states type ", text::printable(type.dump()), ", num_bits ",
      text::printable(bits.dump()), " and group_size ",
      text::printable(scheme.weights.value("group_size", nlohmann::json()).dump()), ". ", kNextRaw);
}

void add_weight(Scan& scan, const CompressedGroups& groups, const RawTensor& packed) {
  const auto name = packed.name.substr(0, packed.name.size() - kPacked.size());
  const auto& scales = scan.part(name + "_scale", name);
  const bool is_nvfp4 = scales.dtype == ScalarType::Float8_e4m3fn;
  TORCH_CHECK_VALUE(is_nvfp4 || scales.dtype == ScalarType::Byte, scan.about(),
                    in_quotes(scales.name), " has dtype ", scales.dtype, " beside ",
                    in_quotes(packed.name), ", which is uint8; expected uint8 or float8_e4m3fn. ",
                    kNextRaw);
  const int64_t block = is_nvfp4 ? 16 : 32;
  auto sizes = packed.sizes;
  TORCH_CHECK_VALUE(
      sizes.size() == 2 && !c10::mul_overflows(sizes[1], int64_t{2}, &sizes[1]) &&
          sizes[1] % block == 0,
      scan.about(), in_quotes(packed.name), " has sizes ", c10::IntArrayRef(packed.sizes),
      ", expected a matrix whose rows are multiples of ", block / 2, " bytes. ", kNextRaw);
  if (const auto* scheme = groups.find(scan, module_of(packed.name))) {
    check_scheme(scan, *scheme, packed, block);
  }
  std::vector<std::string> parts = {packed.name, scales.name};
  std::optional<std::vector<int64_t>> global_sizes;
  if (is_nvfp4) {
    const auto& global = scan.part(name + "_global_scale", name);
    // Of a number without dimensions the library would compute in bfloat16; it writes none.
    TORCH_CHECK_VALUE(global.sizes == std::vector<int64_t>{1} && global.dtype == ScalarType::Float,
                      scan.about(), in_quotes(global.name), " has sizes ",
                      c10::IntArrayRef(global.sizes), " of ", global.dtype,
                      ", expected [1] of float32. ", kNextRaw);
    parts.push_back(global.name);
    global_sizes = global.sizes;
  }
  // The library decodes to bfloat16, whatever the model is of (compressors/nvfp4/helpers.py).
  scan.add<decode::PackedFp4>(name, std::move(parts),
                              {.packed = packed.dtype,
                               .packed_sizes = packed.sizes,
                               .sizes = sizes,
                               .scales = scales.dtype,
                               .scale_sizes = scales.sizes,
                               .block_rows = 1,
                               .block_columns = block,
                               .output = ScalarType::BFloat16,
                               .global_sizes = global_sizes},
                              scan.dtype(ScalarType::BFloat16));
  scan.spend(name + "_zero_point");  // which the library does not look at
  spend_activation_settings(scan, module_of(packed.name));
}

}  // namespace

void find_compressed_fp4(Scan& scan) {
  const CompressedGroups groups(scan);
  for (const auto& packed : scan.tensors()) {
    if (packed.dtype == ScalarType::Byte && packed.name.ends_with(".weight_packed")) {
      add_weight(scan, groups, packed);
    }
  }
}

}  // namespace dormant::checkpoint
