#include "random/typed_kernels.h"

namespace dormant::random {

std::optional<Format> format_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return Format::float32;
    case c10::ScalarType::BFloat16:
      return Format::bfloat16;
    case c10::ScalarType::Half:
      return Format::float16;
    case c10::ScalarType::Double:
      return Format::float64;
    default:
      return std::nullopt;
  }
}

One one_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return {4, 0x3f800000};
    case c10::ScalarType::BFloat16:
      return {2, 0x3f80};
    case c10::ScalarType::Half:
      return {2, 0x3c00};
    case c10::ScalarType::Double:
      return {8, 0x3ff0000000000000};
    case c10::ScalarType::Bool:
    case c10::ScalarType::Byte:
    case c10::ScalarType::Char:
      return {1, 1};
    case c10::ScalarType::Short:
      return {2, 1};
    case c10::ScalarType::Int:
      return {4, 1};
    case c10::ScalarType::Long:
      return {8, 1};
    default:
      return {0, 0};
  }
}

bool kernel_uniform(const StreamKernels& kernels, EngineBlock& block, c10::ScalarType dtype,
                    void* out, size_t n, double from, double to) {
  const std::optional<Format> format = format_of(dtype);
  if (!format) {
    return false;
  }
  kernels.uniform(block, *format, out, n, from, to);
  return true;
}

bool kernel_block_normal(const StreamKernels& kernels, EngineBlock& block, c10::ScalarType dtype,
                         void* out, size_t n, double mean, double std) {
  const std::optional<Format> format = format_of(dtype);
  if (!format || *format == Format::float64 || kernels.block_normal == nullptr) {
    return false;
  }
  kernels.block_normal(block, *format, out, n, mean, std);
  return true;
}

bool kernel_bernoulli(const StreamKernels& kernels, EngineBlock& block, c10::ScalarType dtype,
                      void* out, size_t n, double p) {
  const One one = one_of(dtype);
  if (one.width == 0) {
    return false;
  }
  kernels.bernoulli(block, one.width, one.bits, out, n, p);
  return true;
}

}  // namespace dormant::random
