// Plain operator arguments (no tensors) as JSON and back.
#pragma once

#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>

#include <nlohmann/json.hpp>

namespace dormant::record {

/// {"i": 3}, {"d": "0x1.8p+1"}, {"b": true}, {"s": "sum"}, {"c": [re, im]}, {"n": null}, {"l":
/// [...]}. Doubles are hexadecimal strings: JSON has no infinities, and decimal digits would depend
/// on the writer.
nlohmann::json value_to_json(const c10::IValue& value);

/// The inverse; `type` is the schema's type of the argument, which a list needs. ValueError where
/// they disagree.
c10::IValue value_from_json(const nlohmann::json& json, const c10::TypePtr& type);

}  // namespace dormant::record
