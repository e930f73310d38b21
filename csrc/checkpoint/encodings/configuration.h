// What the config.json beside a checkpoint's files says about how their tensors are encoded.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
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

/// Parses the text of a config.json. `file` is printable. What is no JSON object says nothing:
/// config.json is not the checkpoint, and its other readers have their own errors. Infinity and
/// NaN, which Python writes, are allowed. c10::ValueError where "quantization_config" is there and
/// can't be what a library writes.
<<<<<<< HEAD
DORMANT_BINDINGS_API Configuration parse_configuration(std::string_view text,
                                                       const std::string& file);

/// Files in which libraries state what "quantization_config" states elsewhere, in the order in
/// which they are looked at: AutoGPTQ's and AutoAWQ's, from the time before transformers knew them.
inline constexpr std::array<const char*, 2> kQuantizationFiles = {"quantize_config.json",
                                                                  "quant_config.json"};

/// Takes the text of such a file for what config.json lacks. What is no JSON object says nothing.
DORMANT_BINDINGS_API void add_quantization(Configuration& configuration, std::string_view text,
                                           const std::string& file);

/// That of config.json in `folder`, and of the other files; an empty one where there are none.
Configuration read_configuration(const std::string& folder);
=======
Configuration parse_configuration(std::string_view text, const std::string& file);
>>>>>>> floats

}  // namespace dormant::checkpoint
