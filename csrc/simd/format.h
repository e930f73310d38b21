// How the elements of a kernel are stored.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dormant::simd {

// Bits are those of the C++ types float, at::BFloat16, at::Half and double.
enum class Format : uint8_t { float32, bfloat16, float16, float64 };

template <Format kFormat>
constexpr size_t kWidth = kFormat == Format::float64   ? 8
                          : kFormat == Format::float32 ? 4
                                                       : 2;

// Calls kernel.operator()<format>(): what a caller asks for at run time becomes a constant of the
// kernel's loop.
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

}  // namespace dormant::simd
