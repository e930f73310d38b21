#include "quantize/source_format.h"

#include <c10/util/Exception.h>

#include <optional>

#include "random/typed_kernels.h"

namespace dormant::quantization {

Format source_format(c10::ScalarType dtype) {
  const std::optional<Format> format = random::format_of(dtype);
  TORCH_CHECK_VALUE(format.has_value() && *format != Format::float64, "quantize: got elements of ",
                    dtype, "; expected float32, bfloat16 or float16. Convert them first");
  return *format;
}

}  // namespace dormant::quantization
