// Scales as checkpoints keep them, as float32.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace dormant::decode {

/// Whether `scale` reads this dtype: float32, bfloat16, float16, float8_e8m0fnu, float8_e4m3fn, or
/// uint8 for the exponent of a power of two plus 127, of which 255 is 2^128, infinity.
bool is_scale(c10::ScalarType dtype) noexcept;

/// Number `index` of `scales`.
float scale(c10::ScalarType dtype, const void* scales, int64_t index) noexcept;

}  // namespace dormant::decode
