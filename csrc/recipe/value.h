// What the steps of a recipe hold, as JSON and back. Reading checks everything that can be checked
// without the storages; what is wrong is a ValueError that says only what: the reader knows where.
#pragma once

#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>

#include "random/position.h"
#include "record/geometry.h"

namespace dormant::recipe {

/// A plain argument, no tensor: numbers, booleans, text, null, and lists of them. Floating-point
/// numbers are hexadecimal text ("1.8p+1", "inf"), since JSON has no infinities and decimal digits
/// would depend on the writer; complex numbers are two of them. NotImplementedError for other
/// kinds.
nlohmann::json to_json(const c10::IValue& value);

/// The inverse; `type` is what the operator's schema takes there (Argument::real_type), which JSON
/// alone does not tell.
c10::IValue value_from_json(const nlohmann::json& encoded, const c10::TypePtr& type);

/// The fields of a tensor without the one that says where its elements are.
nlohmann::json to_json(const record::Geometry& geometry);

/// The inverse, other fields ignored. Neither its elements nor their offsets in bytes overflow 64
/// bits; whether it fits a storage is the caller's question.
record::Geometry geometry_from_json(const nlohmann::json& encoded);

/// Hexadecimal digits of Position::serialize().
nlohmann::json to_json(const random::Position& position);
random::Position position_from_json(const nlohmann::json& encoded);

/// An integer in [low, high].
int64_t integer_from_json(const nlohmann::json& encoded, std::string_view what, int64_t low,
                          int64_t high = INT64_MAX);

/// Checks that `encoded` is an object with all `required` fields and no others than `optional`
/// ones.
void check_fields(const nlohmann::json& encoded, std::string_view what,
                  std::initializer_list<std::string_view> required,
                  std::initializer_list<std::string_view> optional = {});

}  // namespace dormant::recipe
