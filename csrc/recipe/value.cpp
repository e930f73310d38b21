#include "recipe/value.h"

#include <c10/core/Layout.h>
#include <c10/core/MemoryFormat.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <string>
#include <system_error>
#include <vector>

#include "text/printable.h"

namespace dormant::recipe {
namespace {

using nlohmann::json;

/// PyTorch's iterators keep sets of dimensions in 64 bits (at::dim_bitset_size); a list of padding
/// has two numbers for each.
constexpr size_t kMostDimensions = 64;
constexpr size_t kMostElements = 2 * kMostDimensions;

std::string hexadecimal(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value, std::chars_format::hex).ptr;
  return {text, end};
}

double double_from_json(const json& encoded) {
  TORCH_CHECK_VALUE(encoded.is_string(), "a floating-point number: got ", encoded.type_name(),
                    ", expected hexadecimal text");
  const auto& text = encoded.get_ref<const std::string&>();
  const auto* const end = text.data() + text.size();
  double value = 0;
  const auto parsed = std::from_chars(text.data(), end, value, std::chars_format::hex);
  TORCH_CHECK_VALUE(parsed.ec == std::errc() && parsed.ptr == end, "a floating-point number: got ",
                    text::in_quotes(text), ", expected one like \"1.8p+1\"");
  return value;
}

bool bool_from_json(const json& encoded) {
  TORCH_CHECK_VALUE(encoded.is_boolean(), "a boolean: got ", encoded.type_name());
  return encoded.get<bool>();
}

const std::string& text_from_json(const json& encoded, std::string_view what) {
  TORCH_CHECK_VALUE(encoded.is_string(), what, ": got ", encoded.type_name(), ", expected text");
  return encoded.get_ref<const std::string&>();
}

int64_t any_integer(const json& encoded) {
  return integer_from_json(encoded, "an integer argument", INT64_MIN);
}

/// A Python number. Which kind it is, the kind of JSON tells.
c10::IValue number_from_json(const json& encoded) {
  if (encoded.is_boolean()) {
    return encoded.get<bool>();
  }
  if (encoded.is_string()) {
    return double_from_json(encoded);
  }
  if (encoded.is_array()) {
    TORCH_CHECK_VALUE(encoded.size() == 2, "a complex number of ", encoded.size(), " parts");
    return c10::complex<double>(double_from_json(encoded[0]), double_from_json(encoded[1]));
  }
  return any_integer(encoded);
}

/// The dtypes that tensors with memory on the CPU have, quantized and packed ones apart.
bool is_ordinary(c10::ScalarType dtype) {
  return c10::isIntegralType(dtype, /*includeBool=*/true) || c10::isFloatingType(dtype) ||
         c10::isComplexType(dtype);
}

c10::ScalarType dtype_from_json(const json& encoded) {
  const auto& name = text_from_json(encoded, "a dtype");
  for (int i = 0; i < static_cast<int>(c10::ScalarType::NumOptions); ++i) {
    const auto dtype = static_cast<c10::ScalarType>(i);
    if (is_ordinary(dtype) && name == c10::toString(dtype)) {
      return dtype;
    }
  }
  TORCH_CHECK_VALUE(false, "unknown dtype ", text::in_quotes(name));
}

template <typename T, typename Convert>
c10::List<T> list_from_json(const json& encoded, const Convert& convert) {
  TORCH_CHECK_VALUE(encoded.is_array() && encoded.size() <= kMostElements, "a list: got ",
                    encoded.type_name(), " of ", encoded.size(), " elements, expected an array of ",
                    kMostElements, " at most");
  c10::List<T> list;
  for (const auto& element : encoded) {
    list.push_back(convert(element));
  }
  return list;
}

std::vector<int64_t> dimensions_from_json(const json& encoded, std::string_view what) {
  TORCH_CHECK_VALUE(encoded.is_array() && encoded.size() <= kMostDimensions, what, ": got ",
                    encoded.type_name(), " of ", encoded.size(), " elements, expected an array of ",
                    kMostDimensions, " at most");
  std::vector<int64_t> dimensions;
  for (const auto& element : encoded) {
    dimensions.push_back(integer_from_json(element, what, 0));
  }
  return dimensions;
}

void check_arithmetic(const record::Geometry& geometry) {
  const auto element = static_cast<int64_t>(c10::elementSize(geometry.dtype));
  int64_t numel = element;
  int64_t last = geometry.offset;
  bool overflow = false;
  for (size_t i = 0; i < geometry.sizes.size(); ++i) {
    const auto size = std::max<int64_t>(geometry.sizes[i], 1);
    int64_t reach = 0;
    overflow = overflow || __builtin_mul_overflow(numel, size, &numel) ||
               __builtin_mul_overflow(size, geometry.strides[i], &reach) ||
               __builtin_add_overflow(last, reach, &last);
  }
  overflow = overflow || __builtin_mul_overflow(last, element, &last);
  TORCH_CHECK_VALUE(!overflow, "a tensor of sizes ", at::IntArrayRef(geometry.sizes), ", strides ",
                    at::IntArrayRef(geometry.strides), " and offset ", geometry.offset,
                    " does not fit 64-bit offsets");
}

}  // namespace

int64_t integer_from_json(const json& encoded, std::string_view what, int64_t low, int64_t high) {
  TORCH_CHECK_VALUE(encoded.is_number_integer() && !(encoded.is_number_unsigned() &&
                                                     encoded.get<uint64_t>() > uint64_t{INT64_MAX}),
                    what, ": got ", encoded.type_name(), ", expected a signed 64-bit integer");
  const auto value = encoded.get<int64_t>();
  TORCH_CHECK_VALUE(low <= value && value <= high, what, ": got ", value, ", expected ", low,
                    " to ", high);
  return value;
}

void check_fields(const json& encoded, std::string_view what,
                  std::initializer_list<std::string_view> required,
                  std::initializer_list<std::string_view> optional) {
  TORCH_CHECK_VALUE(encoded.is_object(), what, ": got ", encoded.type_name(),
                    ", expected an object");
  for (const auto name : required) {
    TORCH_CHECK_VALUE(encoded.contains(name), what, ": field \"", name, "\" is missing");
  }
  for (const auto& [name, value] : encoded.items()) {
    const auto is_it = [&name = name](std::string_view known) { return known == name; };
    TORCH_CHECK_VALUE(std::any_of(required.begin(), required.end(), is_it) ||
                          std::any_of(optional.begin(), optional.end(), is_it),
                      what, ": unknown field ", text::in_quotes(name));
  }
}

json to_json(const c10::IValue& value) {
  if (value.isNone()) {
    return nullptr;
  }
  if (value.isBool()) {
    return value.toBool();
  }
  if (value.isInt()) {
    return value.toInt();
  }
  if (value.isDouble()) {
    return hexadecimal(value.toDouble());
  }
  if (value.isComplexDouble()) {
    const auto number = value.toComplexDouble();
    return json::array({hexadecimal(number.real()), hexadecimal(number.imag())});
  }
  if (value.isString()) {
    return value.toStringRef();
  }
  if (value.isDevice()) {
    return value.toDevice().str();
  }
  if (value.isList()) {
    auto elements = json::array();
    for (const auto& element : value.toListRef()) {
      elements.push_back(to_json(element));
    }
    return elements;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "recipe: an argument of type ", value.tagKind(),
                              " cannot be written. Next: dormant.materialize the tensor first.");
}

c10::IValue value_from_json(const json& encoded, const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::OptionalType:
      return encoded.is_null()
                 ? c10::IValue()
                 : value_from_json(encoded, type->expectRef<c10::OptionalType>().getElementType());
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return any_integer(encoded);
    case c10::TypeKind::FloatType:
      return double_from_json(encoded);
    case c10::TypeKind::BoolType:
      return bool_from_json(encoded);
    case c10::TypeKind::NumberType:
      return number_from_json(encoded);
    case c10::TypeKind::StringType:
      return text_from_json(encoded, "a text argument");
    case c10::TypeKind::ScalarTypeType: {
      const auto dtype = static_cast<c10::ScalarType>(integer_from_json(
          encoded, "a dtype argument", 0, static_cast<int64_t>(c10::ScalarType::NumOptions) - 1));
      TORCH_CHECK_VALUE(is_ordinary(dtype), "a dtype argument: got ", dtype);
      return dtype;
    }
    case c10::TypeKind::LayoutType:
      static_assert(static_cast<int>(c10::kStrided) == 0);
      return integer_from_json(encoded, "a layout", 0, 0);
    case c10::TypeKind::MemoryFormatType:
      return integer_from_json(encoded, "a memory format", 0,
                               static_cast<int64_t>(c10::MemoryFormat::NumOptions) - 1);
    case c10::TypeKind::DeviceObjType: {
      const auto& device = text_from_json(encoded, "a device");
      TORCH_CHECK_VALUE(device == "cpu", "a device: got ", text::in_quotes(device),
                        ", expected \"cpu\"");
      return c10::Device(c10::kCPU);
    }
    case c10::TypeKind::ListType: {
      const auto& element = type->expectRef<c10::ListType>().getElementType();
      switch (element->kind()) {
        case c10::TypeKind::IntType:
        case c10::TypeKind::SymIntType:
          return list_from_json<int64_t>(encoded, any_integer);
        case c10::TypeKind::FloatType:
          return list_from_json<double>(encoded, double_from_json);
        case c10::TypeKind::BoolType:
          return list_from_json<bool>(encoded, bool_from_json);
        default:
          break;
      }
      break;
    }
    default:
      break;
  }
  TORCH_CHECK_VALUE(false, "an argument of type ", type->str(), " cannot be in a recipe");
}

json to_json(const record::Geometry& geometry) {
  json encoded = {{"sizes", at::IntArrayRef(geometry.sizes).vec()},
                  {"strides", at::IntArrayRef(geometry.strides).vec()},
                  {"offset", geometry.offset},
                  {"dtype", c10::toString(geometry.dtype)}};
  if (geometry.conjugate) {
    encoded["conjugate"] = true;
  }
  if (geometry.negative) {
    encoded["negative"] = true;
  }
  return encoded;
}

record::Geometry geometry_from_json(const json& encoded) {
  record::Geometry geometry;
  const auto sizes = dimensions_from_json(encoded.at("sizes"), "sizes");
  const auto strides = dimensions_from_json(encoded.at("strides"), "strides");
  TORCH_CHECK_VALUE(sizes.size() == strides.size(), "a tensor of ", sizes.size(), " sizes and ",
                    strides.size(), " strides");
  geometry.sizes.assign(sizes.begin(), sizes.end());
  geometry.strides.assign(strides.begin(), strides.end());
  geometry.offset = integer_from_json(encoded.at("offset"), "an offset", 0);
  geometry.dtype = dtype_from_json(encoded.at("dtype"));
  geometry.conjugate = encoded.contains("conjugate") && bool_from_json(encoded["conjugate"]);
  geometry.negative = encoded.contains("negative") && bool_from_json(encoded["negative"]);
  TORCH_CHECK_VALUE(!geometry.conjugate || c10::isComplexType(geometry.dtype), "a tensor of ",
                    geometry.dtype, " is marked as conjugate");
  TORCH_CHECK_VALUE(!geometry.negative || geometry.dtype != c10::ScalarType::Bool,
                    "a tensor of booleans is marked as negative");
  check_arithmetic(geometry);
  return geometry;
}

json to_json(const random::Position& position) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const char c : position.serialize()) {
    const auto byte = static_cast<unsigned char>(c);
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

random::Position position_from_json(const json& encoded) {
  const auto& text = text_from_json(encoded, "a random position");
  TORCH_CHECK_VALUE(text.size() % 2 == 0, "a random position of ", text.size(),
                    " hexadecimal digits, expected an even number");
  std::string bytes;
  for (size_t i = 0; i < text.size(); i += 2) {
    uint8_t byte = 0;
    const auto* const end = text.data() + i + 2;
    const auto parsed = std::from_chars(text.data() + i, end, byte, 16);
    TORCH_CHECK_VALUE(parsed.ec == std::errc() && parsed.ptr == end,
                      "a random position contains characters that are not hexadecimal digits");
    bytes.push_back(static_cast<char>(byte));
  }
  return random::Position::deserialize(bytes);
}

}  // namespace dormant::recipe
