// What the encodings of packed integers share: settings in a quantization_config, and names.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/encodings/encoding.h"
#include "record/geometry.h"

namespace dormant::checkpoint {

/// An integer under the first of `keys` that `object` has; std::nullopt where it has none, or null.
/// c10::ValueError for anything else, and beyond 2^40.
std::optional<int64_t> integer_in(const Scan& scan, const nlohmann::json& object,
                                  std::initializer_list<const char*> keys);

/// The same of a text, in lower case; empty where there is none.
std::string text_in(const Scan& scan, const nlohmann::json& object,
                    std::initializer_list<const char*> keys);

record::Geometry geometry_of(const RawTensor& tensor);

/// `name` without `ending`; std::nullopt where it has another, or nothing before it.
std::optional<std::string> before(const std::string& name, std::string_view ending);

}  // namespace dormant::checkpoint
