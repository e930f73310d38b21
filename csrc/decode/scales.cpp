#include "decode/scales.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e8m0fnu.h>
#include <c10/util/Half.h>

#include <cmath>

namespace dormant::decode {

bool is_scale(c10::ScalarType dtype) noexcept {
  switch (dtype) {
    case c10::ScalarType::Float:
    case c10::ScalarType::BFloat16:
    case c10::ScalarType::Half:
    case c10::ScalarType::Float8_e8m0fnu:
    case c10::ScalarType::Float8_e4m3fn:
    case c10::ScalarType::Byte:
      return true;
    default:
      return false;
  }
}

float scale(c10::ScalarType dtype, const void* scales, int64_t index) noexcept {
  switch (dtype) {
    case c10::ScalarType::BFloat16:
      return static_cast<const c10::BFloat16*>(scales)[index];
    case c10::ScalarType::Half:
      return static_cast<const c10::Half*>(scales)[index];
    case c10::ScalarType::Float8_e8m0fnu:
      return static_cast<const c10::Float8_e8m0fnu*>(scales)[index];
    case c10::ScalarType::Float8_e4m3fn:
      return static_cast<const c10::Float8_e4m3fn*>(scales)[index];
    case c10::ScalarType::Byte:
      return std::ldexp(1.0f, static_cast<const uint8_t*>(scales)[index] - 127);
    default:
      return static_cast<const float*>(scales)[index];
  }
}

}  // namespace dormant::decode
