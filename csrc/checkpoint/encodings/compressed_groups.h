// The groups of layers in a quantization_config of compressed-tensors, which have settings of their
// own.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/encodings/encoding.h"
#include "text/pattern.h"

namespace dormant::checkpoint {

/// How the weights of a layer are encoded.
struct CompressedScheme {
  std::string format;      ///< such as "pack-quantized"; empty where none is stated
  nlohmann::json weights;  ///< QuantizationArgs: an object

  /// A positive integer, or what `weights` has instead; std::nullopt where it is null or missing.
  /// c10::ValueError for anything else.
  std::optional<int64_t> positive(const Scan& scan, const char* key) const;
};

/// "config_groups" and "ignore".
class CompressedGroups {
 public:
  /// Of a configuration whose method is compressed-tensors; without one there are no groups.
  /// c10::ValueError where it can't be what the library writes.
  explicit CompressedGroups(const Scan& scan);

  /// The scheme of a module by name: of the group that names it, else of one whose expression
  /// matches it, else of the only one that is for a class of modules (files do not say of which
  /// class a module is). Null where no group is for it. c10::ValueError where that is not decided.
  const CompressedScheme* find(const Scan& scan, std::string_view module) const;

  /// Whether "ignore" names a module.
  bool ignores(std::string_view module) const;

 private:
  struct Target {
    std::string text;
    std::optional<text::Pattern> pattern;  ///< of "re:..."

    bool match(std::string_view module) const;
  };
  struct Group {
    std::string name;
    CompressedScheme scheme;
    std::vector<Target> targets;
  };

  static std::vector<Target> targets_in(const Scan& scan, const nlohmann::json& object,
                                        const char* key);

  std::vector<Group> groups_;
  std::vector<Target> ignored_;
};

}  // namespace dormant::checkpoint
