#include "record/recipe_value.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace dormant::record {
namespace {

using nlohmann::json;

std::string hexadecimal(double value) {
  char text[64];
  std::snprintf(text, sizeof(text), "%a", value);
  return text;
}

double from_hexadecimal(const json& text) {
  TORCH_CHECK_VALUE(text.is_string(),
                    "dormant: recipe: a floating-point argument must be a string, got ",
                    text.dump());
  const auto& digits = text.get_ref<const std::string&>();
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  TORCH_CHECK_VALUE(!digits.empty() && end == digits.c_str() + digits.size(),
                    "dormant: recipe: not a floating-point number: \"", digits, "\"");
  return value;
}

template <typename T, typename F>
c10::IValue typed_list(const json& elements, const F& convert) {
  c10::List<T> list;
  for (const auto& element : elements) {
    list.push_back(convert(element));
  }
  return list;
}

c10::IValue scalar_from_json(const std::string& tag, const json& value) {
  if (tag == "i") {
    TORCH_CHECK_VALUE(value.is_number_integer(), "dormant: recipe: not an integer: ", value.dump());
    return value.get<int64_t>();
  }
  if (tag == "d") {
    return from_hexadecimal(value);
  }
  if (tag == "b") {
    TORCH_CHECK_VALUE(value.is_boolean(), "dormant: recipe: not a boolean: ", value.dump());
    return value.get<bool>();
  }
  if (tag == "s") {
    TORCH_CHECK_VALUE(value.is_string(), "dormant: recipe: not a string: ", value.dump());
    return value.get<std::string>();
  }
  if (tag == "c") {
    TORCH_CHECK_VALUE(value.is_array() && value.size() == 2,
                      "dormant: recipe: not a complex number: ", value.dump());
    return c10::IValue(
        c10::complex<double>(from_hexadecimal(value[0]), from_hexadecimal(value[1])));
  }
  if (tag == "v") {
    TORCH_CHECK_VALUE(value.is_string(), "dormant: recipe: not a device: ", value.dump());
    return c10::Device(value.get<std::string>());
  }
  TORCH_CHECK_VALUE(tag == "n", "dormant: recipe: unknown argument tag \"", tag, "\"");
  return {};
}

c10::TypePtr without_optional(c10::TypePtr type) {
  while (const auto optional = type->cast<c10::OptionalType>()) {
    type = optional->getElementType();
  }
  return type;
}

c10::IValue list_from_json(const json& elements, const c10::TypePtr& type) {
  TORCH_CHECK_VALUE(elements.is_array(), "dormant: recipe: not a list: ", elements.dump());
  const auto list_type = without_optional(type)->cast<c10::ListType>();
  TORCH_CHECK_VALUE(list_type, "dormant: recipe: a list where the operator takes ", type->str());
  const auto element_type = without_optional(list_type->getElementType());
  const auto element = [&](const json& e) { return value_from_json(e, element_type); };
  switch (element_type->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return typed_list<int64_t>(elements, [&](const json& e) { return element(e).toInt(); });
    case c10::TypeKind::FloatType:
      return typed_list<double>(elements, [&](const json& e) { return element(e).toDouble(); });
    case c10::TypeKind::BoolType:
      return typed_list<bool>(elements, [&](const json& e) { return element(e).toBool(); });
    default:
      TORCH_CHECK_VALUE(false, "dormant: recipe: lists of ", element_type->str(),
                        " are not supported");
  }
}

}  // namespace

json value_to_json(const c10::IValue& value) {
  if (value.isNone()) {
    return {{"n", nullptr}};
  }
  if (value.isInt()) {
    return {{"i", value.toInt()}};
  }
  if (value.isDouble()) {
    return {{"d", hexadecimal(value.toDouble())}};
  }
  if (value.isBool()) {
    return {{"b", value.toBool()}};
  }
  if (value.isString()) {
    return {{"s", value.toStringRef()}};
  }
  if (value.isComplexDouble()) {
    const auto number = value.toComplexDouble();
    return {{"c", json::array({hexadecimal(number.real()), hexadecimal(number.imag())})}};
  }
  if (value.isDevice()) {
    return {{"v", value.toDevice().str()}};
  }
  if (value.isList()) {
    auto elements = json::array();
    for (const auto& element : value.toListRef()) {
      elements.push_back(value_to_json(element));
    }
    return {{"l", std::move(elements)}};
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "dormant: recipe: an argument of type ", value.tagKind(),
                              " cannot be written. Next: materialize the tensor before saving it.");
}

c10::IValue value_from_json(const json& encoded, const c10::TypePtr& type) {
  TORCH_CHECK_VALUE(encoded.is_object() && encoded.size() == 1,
                    "dormant: recipe: an argument must be an object with one tag, got ",
                    encoded.dump());
  const auto& tag = encoded.begin().key();
  if (tag == "l") {
    return list_from_json(encoded.begin().value(), type);
  }
  return scalar_from_json(tag, encoded.begin().value());
}

}  // namespace dormant::record
