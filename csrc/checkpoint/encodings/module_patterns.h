// Lists of modules in a quantization_config: those that stay as they are.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "checkpoint/encodings/encoding.h"
#include "text/pattern.h"

namespace dormant::checkpoint {

/// Names, or regular expressions, of modules, as transformers reads such lists
/// (should_convert_module in transformers/quantizers/quantizers_utils.py).
class ModulePatterns {
 public:
  ModulePatterns() = default;
  explicit ModulePatterns(const std::vector<std::string>& patterns);

  /// Whether a module is in the list, or in a module that is.
  bool match(std::string_view module) const;

 private:
  struct One {
    std::string text;
    std::optional<text::Pattern> pattern;  ///< none where it is no expression that we know
  };
  std::vector<One> patterns_;
};

/// The modules that config.json leaves out: "modules_to_not_convert", "ignored_layers".
/// c10::ValueError where that is no list of names.
ModulePatterns excluded_modules(const Scan& scan);

/// What is under `key` in quantization_config; empty where nothing is. c10::ValueError where it is
/// no list of names.
std::vector<std::string> listed(const Scan& scan, const nlohmann::json& object, const char* key);

/// The name of the module that a tensor belongs to.
std::string_view module_of(std::string_view tensor);

/// Leaves out the scales and the like of a module's activations, which a plain module has no use
/// for.
void spend_activation_settings(Scan& scan, std::string_view module);

}  // namespace dormant::checkpoint
