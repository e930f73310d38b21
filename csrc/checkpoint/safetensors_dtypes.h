// The dtypes of safetensors files.
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

namespace dormant::checkpoint {

struct SafetensorsDtype {
  std::string_view name;
  c10::ScalarType type;
  /// Numbers in an element of `type`, along the last dimension: the format counts numbers of 4
  /// bits, PyTorch pairs of them.
  int64_t packed = 1;
};

/// In the order in which the format's own library lays tensors out, so that the same tensors give
/// the same file. Wider elements come first, so all are aligned.
inline constexpr std::array kSafetensorsDtypes = {
    SafetensorsDtype{"U64", c10::ScalarType::UInt64},
    SafetensorsDtype{"I64", c10::ScalarType::Long},
    SafetensorsDtype{"F64", c10::ScalarType::Double},
    SafetensorsDtype{"C64", c10::ScalarType::ComplexFloat},
    SafetensorsDtype{"F32", c10::ScalarType::Float},
    SafetensorsDtype{"U32", c10::ScalarType::UInt32},
    SafetensorsDtype{"I32", c10::ScalarType::Int},
    SafetensorsDtype{"BF16", c10::ScalarType::BFloat16},
    SafetensorsDtype{"F16", c10::ScalarType::Half},
    SafetensorsDtype{"U16", c10::ScalarType::UInt16},
    SafetensorsDtype{"I16", c10::ScalarType::Short},
    SafetensorsDtype{"F8_E5M2FNUZ", c10::ScalarType::Float8_e5m2fnuz},
    SafetensorsDtype{"F8_E4M3FNUZ", c10::ScalarType::Float8_e4m3fnuz},
    SafetensorsDtype{"F8_E8M0", c10::ScalarType::Float8_e8m0fnu},
    SafetensorsDtype{"F8_E4M3", c10::ScalarType::Float8_e4m3fn},
    SafetensorsDtype{"F8_E5M2", c10::ScalarType::Float8_e5m2},
    SafetensorsDtype{"I8", c10::ScalarType::Char},
    SafetensorsDtype{"U8", c10::ScalarType::Byte},
    SafetensorsDtype{"F4", c10::ScalarType::Float4_e2m1fn_x2, 2},
    SafetensorsDtype{"BOOL", c10::ScalarType::Bool},
};

/// The dtype of that name; null where there is none.
constexpr const SafetensorsDtype* find_safetensors_dtype(std::string_view name) {
  const auto* found = std::find_if(kSafetensorsDtypes.begin(), kSafetensorsDtypes.end(),
                                   [&](const auto& dtype) { return dtype.name == name; });
  return found == kSafetensorsDtypes.end() ? nullptr : found;
}

/// What a dtype of PyTorch is in a file; null where the format has nothing for it.
constexpr const SafetensorsDtype* find_safetensors_dtype(c10::ScalarType type) {
  const auto* found = std::find_if(kSafetensorsDtypes.begin(), kSafetensorsDtypes.end(),
                                   [&](const auto& dtype) { return dtype.type == type; });
  return found == kSafetensorsDtypes.end() ? nullptr : found;
}

}  // namespace dormant::checkpoint
