// Turns what a caller asks for at run time into constants of the kernel's loop.
#pragma once

#include <cstddef>
#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {

// Calls kernel.operator()<format>().
template <class Kernel>
void with_format(Format format, Kernel&& kernel) {
  switch (format) {
    case Format::float32:
      return kernel.template operator()<Format::float32>();
    case Format::bfloat16:
      return kernel.template operator()<Format::bfloat16>();
    case Format::float16:
      return kernel.template operator()<Format::float16>();
    case Format::float64:
      return kernel.template operator()<Format::float64>();
  }
}

// Calls kernel.operator()<width>() for an element of 1, 2, 4 or 8 bytes.
template <class Kernel>
void with_width(size_t width, Kernel&& kernel) {
  switch (width) {
    case 1:
      return kernel.template operator()<1>();
    case 2:
      return kernel.template operator()<2>();
    case 4:
      return kernel.template operator()<4>();
    default:
      return kernel.template operator()<8>();
  }
}

}  // namespace dormant::random
