#include "checkpoint/torch_names.h"

#include <algorithm>
#include <array>

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;

struct Name {
  std::string_view dtype;
  std::string_view storage;  ///< empty where there is no such class (torch/storage.py)
  ScalarType type;
};

constexpr std::array kNames{
    Name{"float64", "DoubleStorage", ScalarType::Double},
    Name{"float32", "FloatStorage", ScalarType::Float},
    Name{"float16", "HalfStorage", ScalarType::Half},
    Name{"bfloat16", "BFloat16Storage", ScalarType::BFloat16},
    Name{"int64", "LongStorage", ScalarType::Long},
    Name{"int32", "IntStorage", ScalarType::Int},
    Name{"int16", "ShortStorage", ScalarType::Short},
    Name{"int8", "CharStorage", ScalarType::Char},
    Name{"uint8", "ByteStorage", ScalarType::Byte},
    Name{"bool", "BoolStorage", ScalarType::Bool},
    Name{"complex64", "ComplexFloatStorage", ScalarType::ComplexFloat},
    Name{"complex128", "ComplexDoubleStorage", ScalarType::ComplexDouble},
    Name{"complex32", {}, ScalarType::ComplexHalf},
    Name{"uint16", {}, ScalarType::UInt16},
    Name{"uint32", {}, ScalarType::UInt32},
    Name{"uint64", {}, ScalarType::UInt64},
    Name{"float8_e4m3fn", {}, ScalarType::Float8_e4m3fn},
    Name{"float8_e5m2", {}, ScalarType::Float8_e5m2},
    Name{"float8_e4m3fnuz", {}, ScalarType::Float8_e4m3fnuz},
    Name{"float8_e5m2fnuz", {}, ScalarType::Float8_e5m2fnuz},
    Name{"float8_e8m0fnu", {}, ScalarType::Float8_e8m0fnu},
    Name{"float4_e2m1fn_x2", {}, ScalarType::Float4_e2m1fn_x2},
};

std::optional<ScalarType> find(std::string_view Name::* member, std::string_view name) {
  const auto* found = std::find_if(kNames.begin(), kNames.end(), [&](const Name& each) {
    return !name.empty() && each.*member == name;
  });
  return found == kNames.end() ? std::nullopt : std::make_optional(found->type);
}

}  // namespace

std::optional<ScalarType> dtype_of(std::string_view name) { return find(&Name::dtype, name); }

std::optional<ScalarType> storage_dtype_of(std::string_view name) {
  return find(&Name::storage, name);
}

}  // namespace dormant::checkpoint
