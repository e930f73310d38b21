// What the config.json beside a checkpoint's files says about how their tensors are encoded.
#pragma once

#include <c10/core/ScalarType.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace dormant::checkpoint {

struct Configuration {
  std::string file;             ///< printable; empty where there is none
  nlohmann::json quantization;  ///< "quantization_config", an object; null where there is none
  std::string method;           ///< its "quant_method"; empty where it names none
  std::optional<c10::ScalarType> dtype;  ///< that of the model's plain weights
};

/// A JSON value from a stranger's file; one that is_discarded() where the text is none.
/// c10::ValueError, which begins with `about`, where it is an object nested so deep that copying or
/// printing it, which recurse, could take all of the stack.
nlohmann::json parse_json(std::string_view text, const std::string& about);

/// Parses the text of a config.json. `file` is printable. What is not a JSON object says nothing:
/// config.json is not the checkpoint, and its other readers have their own errors. Infinity and
/// NaN, which Python writes, are allowed. c10::ValueError where "quantization_config" is there and
/// can't be what a library writes, or where parse_json has one.
Configuration parse_configuration(std::string_view text, const std::string& file);

/// Takes the text of one of kQuantizationFiles for what config.json lacks. What is not a JSON
/// object says nothing.
void add_quantization(Configuration& configuration, std::string_view text, const std::string& file);

}  // namespace dormant::checkpoint
