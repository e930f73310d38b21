#include "checkpoint/encodings/compressed_groups.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "checkpoint/encodings/module_patterns.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using nlohmann::json;
using text::in_quotes;

constexpr std::string_view kExpression = "re:";

std::string text_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

}  // namespace

std::optional<int64_t> CompressedScheme::positive(const Scan& scan, const char* key) const {
  const auto found = weights.find(key);
  // -1 stands for none in settings of groups.
  if (found == weights.end() || found->is_null() || *found == -1) {
    return std::nullopt;
  }
  TORCH_CHECK_VALUE(found->is_number_unsigned() && found->get<uint64_t>() >= 1 &&
                        found->get<uint64_t>() <= uint64_t{1} << 40,
                    scan.about(), scan.configured_in(), " states ", key, " as ",
                    text::printable(found->dump()), ", expected a positive integer. ", kNextRaw);
  return found->get<int64_t>();
}

CompressedGroups::CompressedGroups(const Scan& scan) {
  const auto& configuration = scan.configuration();
  if (configuration.method != "compressed-tensors") {
    return;
  }
  const auto& config = configuration.quantization;
  const auto groups = config.find("config_groups");
  if (groups == config.end() || groups->is_null()) {
    return;
  }
  TORCH_CHECK_VALUE(groups->is_object(), scan.about(), scan.configured_in(),
                    " states config_groups as ", groups->type_name(), ", expected an object. ",
                    kNextRaw);
  for (const auto& [name, group] : groups->items()) {
    const bool has_weights = group.is_object() && group.contains("weights");
    if (group.is_object() && (!has_weights || group["weights"].is_null())) {
      continue;  // one for activations only
    }
    TORCH_CHECK_VALUE(has_weights && group["weights"].is_object(), scan.about(),
                      scan.configured_in(), ": group ", in_quotes(name),
                      " of config_groups has no object \"weights\". ", kNextRaw);
    auto format = text_in(group, "format");
    format = format.empty() ? text_in(config, "format") : format;
    groups_.push_back(
        {name, {std::move(format), group["weights"]}, targets_in(scan, group, "targets")});
  }
  ignored_ = targets_in(scan, config, "ignore");
}

std::vector<CompressedGroups::Target> CompressedGroups::targets_in(const Scan& scan,
                                                                   const json& object,
                                                                   const char* key) {
  std::vector<Target> targets;
  for (auto& text : listed(scan, object, key)) {
    Target target{std::move(text), std::nullopt};
    if (target.text.starts_with(kExpression)) {
      try {
        target.pattern.emplace(std::string_view(target.text).substr(kExpression.size()));
      } catch (const c10::ValueError& error) {
        TORCH_CHECK_VALUE(false, scan.about(), scan.configured_in(), ": ", key, ": ",
                          error.what_without_backtrace(), ". ", kNextRaw);
      }
    }
    targets.push_back(std::move(target));
  }
  return targets;
}

bool CompressedGroups::Target::match(std::string_view module) const {
  return pattern ? !pattern->ends(module).empty() : text == module;
}

const CompressedScheme* CompressedGroups::find(const Scan& scan, std::string_view module) const {
  const auto only = [&](auto&& fits) -> const CompressedScheme* {
    const Group* found = nullptr;
    for (const auto& group : groups_) {
      if (!std::any_of(group.targets.begin(), group.targets.end(), fits)) {
        continue;
      }
      TORCH_CHECK_VALUE(found == nullptr || found->scheme.weights == group.scheme.weights,
                        scan.about(), in_quotes(module), " matches the groups ",
                        in_quotes(found->name), " and ", in_quotes(group.name), " of ",
                        scan.configured_in(), ", which have different settings. ", kNextRaw);
      found = &group;
    }
    return found == nullptr ? nullptr : &found->scheme;
  };
  if (const auto* named =
          only([&](const Target& target) { return !target.pattern && target.match(module); })) {
    return named;
  }
  if (const auto* matched =
          only([&](const Target& target) { return target.pattern && target.match(module); })) {
    return matched;
  }
  return only([](const Target& target) {
    return !target.pattern && target.text.find('.') == std::string::npos;
  });
}

bool CompressedGroups::ignores(std::string_view module) const {
  return std::any_of(ignored_.begin(), ignored_.end(),
                     [&](const Target& target) { return target.match(module); });
}

}  // namespace dormant::checkpoint
