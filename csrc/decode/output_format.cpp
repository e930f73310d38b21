#include "decode/output_format.h"

#include <c10/util/Exception.h>

namespace dormant::decode {

bool is_output(c10::ScalarType dtype) noexcept {
  return dtype == c10::ScalarType::Float || dtype == c10::ScalarType::BFloat16 ||
         dtype == c10::ScalarType::Half;
}

simd::Format output_format(c10::ScalarType dtype) {
  TORCH_CHECK_VALUE(is_output(dtype), "decode: got ", dtype,
                    " for the result; expected float32, bfloat16 or float16");
  return dtype == c10::ScalarType::Float      ? simd::Format::float32
         : dtype == c10::ScalarType::BFloat16 ? simd::Format::bfloat16
                                              : simd::Format::float16;
}

}  // namespace dormant::decode
