// The format of the elements that are quantized.
#pragma once

#include <c10/core/ScalarType.h>

#include "quantize/kernels.h"

namespace dormant::quantization {

/// ValueError but for float32, bfloat16 and float16.
Format source_format(c10::ScalarType dtype);

}  // namespace dormant::quantization
