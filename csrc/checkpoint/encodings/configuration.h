// What the config.json beside a checkpoint's files says about how their tensors are encoded.
#pragma once

#include <c10/core/ScalarType.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "system/export.h"

namespace dormant::checkpoint {

/// No configuration of a model is longer.
inline constexpr uint64_t kLongestConfiguration = 1 << 24;

struct Configuration {
  std::string file;             ///< printable; empty where there is none
  nlohmann::json quantization;  ///< "quantization_config", an object; null where there is none
  std::string method;           ///< its "quant_method"; empty where it names none
  std::optional<c10::ScalarType> dtype;  ///< that of the model's plain weights
};

/// Parses the text of a config.json. `file` is printable. What is no JSON object says nothing:
/// config.json is not the checkpoint, and its other readers have their own errors. Infinity and
/// NaN, which Python writes, are allowed. c10::ValueError where "quantization_config" is there and
/// can't be what a library writes.
DORMANT_BINDINGS_API Configuration parse_configuration(std::string_view text,
                                                       const std::string& file);

/// That of the config.json in `folder`; an empty one where there is no such file.
Configuration read_configuration(const std::string& folder);

}  // namespace dormant::checkpoint
