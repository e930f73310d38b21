// What tests of recorded operators share: one build run lazily and eagerly under one seed, and
// equality of bits.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

namespace dormant::record {

using Build = std::function<at::Tensor()>;

constexpr uint64_t kSeed = 20;

inline at::Tensor eagerly(const Build& build) {
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(kSeed);
  return build();
}

/// The same, recorded. Only the tensor that `build` returns lives on.
inline at::Tensor lazily(const Build& build) {
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(kSeed);
  const LazyInit guard;
  return build();
}

/// Equality of bits: NaN equals itself, 0 does not equal -0.
inline ::testing::AssertionResult same_bits(const at::Tensor& got, const at::Tensor& expected) {
  if (got.sizes() != expected.sizes() || got.strides() != expected.strides() ||
      got.scalar_type() != expected.scalar_type()) {
    return ::testing::AssertionFailure()
           << "got " << got.scalar_type() << " of sizes " << got.sizes() << " and strides "
           << got.strides() << ", expected " << expected.scalar_type() << " of sizes "
           << expected.sizes() << " and strides " << expected.strides();
  }
  const auto a = got.contiguous();
  const auto b = expected.contiguous();
  const auto width = a.element_size();
  const auto* left = static_cast<const char*>(a.const_data_ptr());
  const auto* right = static_cast<const char*>(b.const_data_ptr());
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(left + i * width, right + i * width, width) != 0) {
      return ::testing::AssertionFailure() << "element " << i << " of " << a.numel() << " differs";
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace dormant::record
