// Random bits to numbers in [from, to), with the bits of ATen's uniform_
// (ATen/core/TransformationHelper.h, uniform_real; ATen/native/cpu/DistributionTemplates.h,
// uniform_kernel). For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "random/number53.h"
#include "random/stream_kernels.h"

namespace dormant::random {
namespace {

// A map makes kElements elements of kWidth bytes of kWords words. This one takes the low 24 bits of
// each.
template <Format kFormat>
class UniformMap {
 public:
  static constexpr size_t kWords = 64;
  static constexpr size_t kElements = kWords;
  static constexpr size_t kWidth = simd::kWidth<kFormat>;

  UniformMap(double from, double to)
      : scale_(simd::set<Float>(static_cast<float>(to) - static_cast<float>(from))),
        offset_(simd::set<Float>(static_cast<float>(from))),
        excluded_(simd::round<kFormat>(simd::set<Float>(static_cast<float>(to)))),
        instead_(simd::round<kFormat>(offset_)) {}

  void operator()(const uint32_t* words, unsigned char* out) const {
    for (size_t i = 0; i < kWords; i += simd::kCount) {
      const auto low24 = simd::load<simd::Int>(words + i) & 0xffffffu;
      const Float u = simd::to_float(low24) * 0x1p-24f;
      const Float value = simd::round<kFormat>(simd::affine(u, scale_, offset_));
      // Rounding may reach the excluded bound; ATen then gives the lower one.
      simd::store_elements<kFormat>(out + i * kWidth, value == excluded_ ? instead_ : value);
    }
  }

 private:
  using Float = simd::Float;

  Float scale_;
  Float offset_;
  Float excluded_;
  Float instead_;
};

// The same of 53 random bits.
template <>
class UniformMap<Format::float64> {
 public:
  static constexpr size_t kWords = 64;
  static constexpr size_t kElements = kWords / 2;
  static constexpr size_t kWidth = sizeof(double);

  UniformMap(double from, double to)
      : scale_(simd::set<Double>(to - from)),
        offset_(simd::set<Double>(from)),
        excluded_(simd::set<Double>(to)) {}

  void operator()(const uint32_t* words, unsigned char* out) const {
    for (size_t i = 0; i < kWords; i += simd::kCount) {
      const Double u = to_double(number53(words + i)) * 0x1p-53;
      const Double value = simd::affine(u, scale_, offset_);
      simd::store(out + i / 2 * kWidth, value == excluded_ ? offset_ : value);
    }
  }

 private:
  using Double = simd::Double;

  Double scale_;
  Double offset_;
  Double excluded_;
};

}  // namespace
}  // namespace dormant::random
