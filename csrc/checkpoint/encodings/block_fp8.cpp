#include "checkpoint/encodings/block_fp8.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <utility>

#include "checkpoint/encodings/module_patterns.h"
#include "decode/output_format.h"
#include "decode/scaled_fp8.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

constexpr std::string_view kWeight = ".weight";

bool is_fp8(ScalarType dtype) {
  return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2;
}

using Blocks = std::pair<int64_t, int64_t>;

int64_t blocks_of(int64_t size, int64_t block) {
  return size / block + (size % block != 0 ? 1 : 0);
}

/// The block size that config.json states.
std::optional<Blocks> configured_blocks(const Scan& scan) {
  const auto& quantization = scan.configuration().quantization;
  const auto found =
      quantization.is_object() ? quantization.find("weight_block_size") : quantization.end();
  if (found == quantization.end() || found->is_null()) {
    return std::nullopt;
  }
  const auto fits = [](const nlohmann::json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() >= 1 &&
           value.get<uint64_t>() <= uint64_t{1} << 40;
  };
  TORCH_CHECK_VALUE(
      found->is_array() && found->size() == 2 && fits((*found)[0]) && fits((*found)[1]),
      scan.about(), scan.configured_in(), " states weight_block_size ",
      text::printable(found->dump()), ", expected two positive integers. ", kNextRaw);
  return Blocks((*found)[0].get<int64_t>(), (*found)[1].get<int64_t>());
}

/// The block size of a weight. Where config.json states one that fits the scales, that is it;
/// else the library derives it from their number, which has to divide the weight's.
Blocks blocks_for(const Scan& scan, const RawTensor& weight, const RawTensor& scales,
                  const std::optional<Blocks>& configured) {
  const size_t rank = weight.sizes.size();
  const int64_t rows = weight.sizes[rank - 2];
  const int64_t columns = weight.sizes[rank - 1];
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
                    " has sizes ", c10::IntArrayRef(weight.sizes), " and ", in_quotes(scales.name),
                    " sizes ", c10::IntArrayRef(scales.sizes),
                    ", which are no scales for blocks of ",
                    configured ? c10::str(configured->first, "x", configured->second, ", as ",
                                          scan.configured_in(), " states")
                               : std::string("one size"),
                    ". ", kNextRaw);
  TORCH_CHECK_VALUE(configured || !fits(kUsual) || derived == kUsual || (down == 1 && across == 1),
                    scan.about(), in_quotes(weight.name), " has sizes ",
                    c10::IntArrayRef(weight.sizes), " and ", in_quotes(scales.name), " sizes ",
                    c10::IntArrayRef(scales.sizes), ": blocks may be of 128x128 or of ",
                    derived.first, "x", derived.second,
                    ". Next: put the config.json that states weight_block_size beside the files, "
                    "or pass decode=False.");
  return derived;
}

/// What transformers decodes to where no parameter says it: Fp8Dequantize._dequantize_one.
ScalarType library_dtype(ScalarType scales) {
  return decode::is_output(scales) ? scales : ScalarType::BFloat16;
}

void add_weight(Scan& scan, const RawTensor& weight, const RawTensor& scales,
                const std::optional<Blocks>& configured) {
  TORCH_CHECK_VALUE(is_fp8(weight.dtype), scan.about(), in_quotes(weight.name), " is of ",
                    weight.dtype, ", although ", in_quotes(scales.name),
                    " is there to scale it; expected float8_e4m3fn. Cause: the weight was decoded "
                    "and its scales were kept, or it is encoded otherwise. ",
                    kNextRaw);
  TORCH_CHECK_VALUE(weight.sizes.size() >= 2, scan.about(), in_quotes(weight.name), " has sizes ",
                    c10::IntArrayRef(weight.sizes), ", expected a matrix. ", kNextRaw);
  const auto dtype = scan.dtype(library_dtype(scales.dtype));
  const auto blocks = blocks_for(scan, weight, scales, configured);
  std::shared_ptr<const record::Decoder> decoder;
  try {
    decoder = std::make_shared<decode::ScaledFp8>(weight.dtype, weight.sizes, scales.dtype,
                                                  scales.sizes, blocks.first, blocks.second,
                                                  decode::nearest_output(dtype));
  } catch (const c10::ValueError& error) {
    TORCH_CHECK_VALUE(false, scan.about(), in_quotes(weight.name), " and ", in_quotes(scales.name),
                      ": ", error.what_without_backtrace(), ". ", kNextRaw);
  }
  scan.add({.name = weight.name,
            .parts = {weight.name, scales.name},
            .decoder = std::move(decoder),
            .dtype = dtype});
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

/// Scales of activations, which a plain layer has no use for.
void spend_activation_scales(Scan& scan, const std::string& weight) {
  if (weight.ends_with(kWeight)) {
    const auto layer = weight.substr(0, weight.size() - kWeight.size());
    scan.spend(layer + ".activation_scale");
    scan.spend(layer + ".input_scale");
    scan.spend(layer + ".qscale_act");
  } else {
    scan.spend(weight + "_activation_scale");
  }
}

}  // namespace

void find_block_fp8(Scan& scan) {
  const auto configured = configured_blocks(scan);
  const bool expected = scan.configuration().method == "fp8";
  bool found_any = expected;
  for (const auto& scales : scan.tensors()) {
    const auto name = scaled_by(scales.name);
    const auto* weight = name.empty() ? nullptr : scan.find(name);
    const bool surely = scales.name.ends_with("_scale_inv");
    // Other tensors are called ".scale", too.
    if (weight == nullptr || (!surely && !is_fp8(weight->dtype))) {
      continue;
    }
    add_weight(scan, *weight, scales, configured);
    spend_activation_scales(scan, name);
    found_any = true;
  }
  if (!found_any) {
    return;
  }
  const auto plain = expected ? excluded_modules(scan) : ModulePatterns();
  for (const auto& tensor : scan.tensors()) {
    if (!is_fp8(tensor.dtype) || scan.taken(tensor.name) || plain.match(module_of(tensor.name))) {
      continue;
    }
    // Another encoding may know it, such as float8 scales.
    if (!tensor.name.ends_with(kWeight)) {
      continue;
    }
    static_cast<void>(scan.part(tensor.name + "_scale_inv", tensor.name));
  }
}

}  // namespace dormant::checkpoint
