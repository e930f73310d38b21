// What decoders of floating point numbers give.
#pragma once

#include <c10/core/ScalarType.h>

#include "simd/format.h"

namespace dormant::decode {

/// Whether kernels round to `dtype`: float32, bfloat16 or float16. Whatever else is wanted is cast
/// from float32.
bool is_output(c10::ScalarType dtype) noexcept;

/// c10::ValueError for other dtypes.
simd::Format output_format(c10::ScalarType dtype);

/// `dtype` where kernels round to it, else float32.
inline c10::ScalarType nearest_output(c10::ScalarType dtype) noexcept {
  return is_output(dtype) ? dtype : c10::ScalarType::Float;
}

}  // namespace dormant::decode
