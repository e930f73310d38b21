#include "checkpoint/encodings/module_patterns.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "text/printable.h"

namespace dormant::checkpoint {

ModulePatterns::ModulePatterns(const std::vector<std::string>& patterns) {
  for (const auto& each : patterns) {
    One one{each, std::nullopt};
    try {
      one.pattern.emplace(each);
    } catch (const c10::ValueError&) {
      // It still is the end of a name.
    }
    patterns_.push_back(std::move(one));
  }
}

bool ModulePatterns::match(std::string_view module) const {
  return std::any_of(patterns_.begin(), patterns_.end(), [&](const One& one) {
    if (module.ends_with(one.text)) {
      return true;
    }
    const auto ends = one.pattern ? one.pattern->ends(module) : std::vector<size_t>();
    return std::any_of(ends.begin(), ends.end(), [&](size_t end) {
      return end == module.size() || module[end] == '.' || (end > 0 && module[end - 1] == '.');
    });
  });
}

ModulePatterns excluded_modules(const Scan& scan) {
  const auto& quantization = scan.configuration().quantization;
  auto patterns = listed(scan, quantization, "modules_to_not_convert");
  return ModulePatterns(patterns.empty() ? listed(scan, quantization, "ignored_layers") : patterns);
}

std::vector<std::string> listed(const Scan& scan, const nlohmann::json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || found->is_null()) {
    return {};
  }
  const bool is_list =
      found->is_array() &&
      std::all_of(found->begin(), found->end(), [](const auto& e) { return e.is_string(); });
  TORCH_CHECK_VALUE(is_list, scan.about(), scan.configured_in(), " states ", key, " as ",
                    text::printable(found->dump()), ", expected a list of names. ", kNextRaw);
  return found->get<std::vector<std::string>>();
}

std::string_view module_of(std::string_view tensor) {
  const auto dot = tensor.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : tensor.substr(0, dot);
}

void spend_activation_settings(Scan& scan, std::string_view module) {
  for (const auto* name :
       {"activation_scale", "input_scale", "input_scale_ub", "input_zero_point",
        "input_global_scale", "output_scale", "output_zero_point", "qscale_act"}) {
    scan.spend(std::string(module) + "." + name);
  }
}

}  // namespace dormant::checkpoint
