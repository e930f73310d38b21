#include "checkpoint/encodings/packed_integers.h"

#include <c10/util/Exception.h>

#include <cstring>
#include <utility>

#include "checkpoint/encodings/compressed_groups.h"
#include "checkpoint/encodings/integer_modules.h"
#include "checkpoint/encodings/module_patterns.h"
#include "decode/packed_integers.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

/// What a layer's group of config.json says of its weights.
struct Settings {
  int64_t bits;
  int64_t group_size = 0;  ///< 0: channels
  bool one_scale = false;
  bool symmetric = true;
};

Settings settings_of(const Scan& scan, const CompressedScheme& scheme, const std::string& weight) {
  const auto& weights = scheme.weights;
  const auto type = text_in(scan, weights, {"type"});
  const auto bits = integer_in(scan, weights, {"num_bits"});
  TORCH_CHECK_VALUE((type.empty() || type == "int") && bits, scan.about(), scan.configured_in(),
                    " states num_bits ", bits.value_or(0), " of type ", in_quotes(type), " for ",
                    in_quotes(weight), ", which is packed; expected integers. ", kNextRaw);
  const auto group = integer_in(scan, weights, {"group_size"}).value_or(0);
  auto strategy = text_in(scan, weights, {"strategy"});
  if (strategy.empty()) {  // as QuantizationArgs of the library
    strategy = group > 0 ? "group" : group == -1 ? "channel" : "tensor";
  }
  Settings settings{.bits = *bits};
  if (strategy == "group") {
    TORCH_CHECK_VALUE(group > 0, scan.about(), scan.configured_in(), " states group_size ", group,
                      " for ", in_quotes(weight), ", expected a positive integer. ", kNextRaw);
    settings.group_size = group;
  } else if (strategy == "tensor") {
    settings.one_scale = true;
  } else {
    TORCH_CHECK_NOT_IMPLEMENTED(strategy == "channel", scan.about(), scan.configured_in(),
                                " states the strategy ", in_quotes(strategy), " for ",
                                in_quotes(weight),
                                ", which is packed; only group, channel and tensor can be decoded. "
                                "Next: pass decode=False.");
  }
  const auto symmetric = weights.find("symmetric");
  settings.symmetric = symmetric == weights.end() || *symmetric != false;
  return settings;
}

/// The sizes of the weight. Those of groups follow from the scales, and the decoder compares them
/// with weight_shape; for others the few bytes of weight_shape are read now.
std::vector<int64_t> sizes_of(const Scan& scan, int64_t group_size, const RawTensor& packed,
                              const RawTensor& scale, const RawTensor* shape,
                              const std::string& weight) {
  auto sizes = packed.sizes;
  const auto columns = scale.sizes.empty() ? 0 : scale.sizes.back();
  constexpr int64_t kMost = int64_t{1} << 31;
  if (group_size != 0 && columns > 0 && columns <= kMost && group_size <= kMost && !sizes.empty()) {
    sizes.back() = columns * group_size;
    return sizes;
  }
  const auto& values = shape != nullptr ? *shape : scan.part(weight + "_shape", weight);
  const auto bytes = scan.read(values);
  TORCH_CHECK_VALUE(
      values.dtype == ScalarType::Long && bytes.size() == sizes.size() * sizeof(int64_t),
      scan.about(), in_quotes(values.name), " has sizes ", c10::IntArrayRef(values.sizes), " of ",
      values.dtype, ", expected ", sizes.size(), " integers of int64. ", kNextRaw);
  std::memcpy(sizes.data(), bytes.data(), bytes.size());
  return sizes;
}

std::optional<record::Geometry> geometry_or_none(const RawTensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::optional(geometry_of(*tensor));
}

void add_weight(Scan& scan, const CompressedGroups& groups, const RawTensor& packed,
                const std::string& module) {
  const auto weight = module + ".weight";
  const auto* scheme = groups.find(scan, module);
  TORCH_CHECK_VALUE(
      scheme != nullptr, scan.about(), in_quotes(packed.name), " is packed, but no group in ",
      scan.configured_in(),
      " describes how. Next: put the config.json of the checkpoint beside the files, or "
      "pass decode=False.");
  const auto settings = settings_of(scan, *scheme, weight);
  const auto& scale = scan.part(weight + "_scale", weight);
  const auto* zero = settings.symmetric ? scan.find(weight + "_zero_point")
                                        : &scan.part(weight + "_zero_point", weight);
  const auto* g_idx = scan.find(weight + "_g_idx");
  const auto* shape = scan.find(weight + "_shape");
  std::vector<std::string> parts;
  for (const auto* part : {shape, g_idx, &packed, &scale, zero}) {
    if (part != nullptr) {
      parts.push_back(part->name);
    }
  }
  scan.add<decode::PackedIntegers>(
      weight, std::move(parts),
      {.module = module,
       .sizes = sizes_of(scan, settings.group_size, packed, scale, shape, weight),
       .bits = settings.bits,
       .group_size = settings.group_size,
       .one_scale = settings.one_scale,
       .packed = geometry_of(packed),
       .scale = geometry_of(scale),
       .zero = geometry_or_none(zero),
       .g_idx = geometry_or_none(g_idx),
       .shape = geometry_or_none(shape)},
      scan.dtype(scale.dtype));
  spend_activation_settings(scan, module);
}

}  // namespace

void find_packed_integers(Scan& scan) {
  if (scan.configuration().method != "compressed-tensors") {
    return;
  }
  const CompressedGroups groups(scan);
  for (const auto& tensor : scan.tensors()) {
    const auto module = before(tensor.name, ".weight_packed");
    // Packed bytes are floating point numbers.
    if (module && tensor.dtype == ScalarType::Int) {
      add_weight(scan, groups, tensor, *module);
    }
  }
}

}  // namespace dormant::checkpoint
