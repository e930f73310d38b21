#include "checkpoint/encodings/scaled_blocks.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

#include "checkpoint/encodings/compressed_groups.h"
#include "checkpoint/encodings/module_patterns.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

int64_t blocks_of(int64_t size, int64_t block) {
  return size / block + (size % block != 0 ? 1 : 0);
}

}  // namespace

bool is_float8(ScalarType dtype) noexcept {
  return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2;
}

std::optional<Blocks> configured_blocks(const Scan& scan, const nlohmann::json& object,
                                        const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || found->is_null()) {
    return std::nullopt;
  }
  const auto fits = [](const nlohmann::json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() >= 1 &&
           value.get<uint64_t>() <= uint64_t{1} << 40;
  };
  TORCH_CHECK_VALUE(
      found->is_array() && found->size() == 2 && fits((*found)[0]) && fits((*found)[1]),
      scan.about(), scan.configured_in(), " states ", key, " as ", text::printable(found->dump()),
      ", expected two positive integers. ", kNextRaw);
  return Blocks((*found)[0].get<int64_t>(), (*found)[1].get<int64_t>());
}

Blocks blocks_for(const Scan& scan, const RawTensor& weight, c10::IntArrayRef sizes,
                  const RawTensor& scales, const std::optional<Blocks>& configured) {
  const int64_t rows = sizes[sizes.size() - 2];
  const int64_t columns = sizes.back();
  if (sizes.size() == 2 && scales.sizes == std::vector<int64_t>{rows} && rows > 1) {
    return {1, std::max<int64_t>(columns, 1)};  // rows, as a vector
  }
  // One scale for each matrix of a stack, as a vector.
  const bool grid = scales.sizes.size() >= 2;
  const int64_t down = grid ? scales.sizes[scales.sizes.size() - 2] : 1;
  const int64_t across = grid ? scales.sizes.back() : 1;
  const auto fits = [&](const Blocks& blocks) {
    return blocks_of(rows, blocks.first) == down && blocks_of(columns, blocks.second) == across;
  };
  if (configured && fits(*configured)) {
    return *configured;
  }
  constexpr Blocks kUsual = {128, 128};
  const bool divides = down > 0 && across > 0 && rows % down == 0 && columns % across == 0;
  const Blocks derived =
      divides ? Blocks(std::max<int64_t>(rows / down, 1), std::max<int64_t>(columns / across, 1))
              : kUsual;
  TORCH_CHECK_VALUE(divides || (!configured && fits(kUsual)), scan.about(), in_quotes(weight.name),
                    " has sizes ", sizes, " and ", in_quotes(scales.name), " has sizes ",
                    c10::IntArrayRef(scales.sizes), ", which do not fit blocks of ",
                    configured ? c10::str(configured->first, "x", configured->second, ", as ",
                                          scan.configured_in(), " states")
                               : std::string("one size"),
                    ". ", kNextRaw);
  TORCH_CHECK_VALUE(configured || !fits(kUsual) || derived == kUsual || (down == 1 && across == 1),
                    scan.about(), in_quotes(weight.name), " has sizes ", sizes, " and ",
                    in_quotes(scales.name), " sizes ", c10::IntArrayRef(scales.sizes),
                    ": blocks may be of 128x128 or of ", derived.first, "x", derived.second,
                    ". Next: put the config.json that states weight_block_size beside the files, "
                    "or pass decode=False.");
  return derived;
}

void refuse_unscaled(const Scan& scan) {
  const auto& method = scan.configuration().method;
  const bool compressed = method == "compressed-tensors";
  const bool found = std::any_of(
      scan.encoded().begin(), scan.encoded().end(),
      [](const Encoded& encoded) { return is_float8(encoded.decoder->parts().front().dtype); });
  if (!found && !compressed && method != "fp8" && method != "fbgemm_fp8") {
    return;
  }
  const CompressedGroups groups(scan);
  const auto excluded = excluded_modules(scan);
  const std::string ending = compressed || method == "fbgemm_fp8" ? "_scale" : "_scale_inv";
  for (const auto& tensor : scan.tensors()) {
    const auto module = module_of(tensor.name);
    if (is_float8(tensor.dtype) && tensor.name.ends_with(".weight") && !scan.taken(tensor.name) &&
        !excluded.match(module) && !groups.ignores(module)) {
      static_cast<void>(scan.part(tensor.name + ending, tensor.name));
    }
  }
}

}  // namespace dormant::checkpoint
