// Pairs of 32-bit words to pairs of normal numbers, with the bits of ATen's normal_fill
// (ATen/native/cpu/DistributionTemplates.h). For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "random/box_muller.h"
#include "random/stream_kernels.h"

namespace dormant::random {
namespace {

// A map as those of uniform_map.h. Words j and j + 8 of a block of 16 give elements j and j + 8.
template <Format kFormat>
class NormalMap {
 public:
  static constexpr size_t kWords = 64;
  static constexpr size_t kElements = kWords;
  static constexpr size_t kWidth = simd::kWidth<kFormat>;

  NormalMap(double mean, double std)
      : offset_(simd::set<Float>(static_cast<float>(mean))),
        scale_(simd::set<Float>(static_cast<float>(std))) {}

  void operator()(const uint32_t* words, unsigned char* out) const {
    const auto store = [&](size_t at, Float v) {
      simd::store_elements<kFormat>(out + at * kWidth, v);
    };
    if constexpr (simd::kCount <= kHalf) {
      for (size_t i = 0; i < kElements / 2; i += simd::kCount) {
        const size_t at = i / kHalf * 2 * kHalf + i % kHalf;
        Float first, second;
        pair(simd::load<Int>(words + at), simd::load<Int>(words + at + kHalf), first, second);
        store(at, first);
        store(at + kHalf, second);
      }
    } else {
      // Two blocks: their first halves make a vector, and their second halves.
      const auto firsts = [](auto a, auto b) {
        return simd::permute(a, b, [](size_t lane) { return lane < kHalf ? lane : lane + kHalf; });
      };
      const auto seconds = [](auto a, auto b) {
        return simd::permute(
            a, b, [](size_t lane) { return (lane < kHalf ? lane : lane + kHalf) + kHalf; });
      };
      for (size_t at = 0; at < kElements; at += 2 * simd::kCount) {
        const auto low = simd::load<Int>(words + at);
        const auto high = simd::load<Int>(words + at + simd::kCount);
        Float first, second;
        pair(firsts(low, high), seconds(low, high), first, second);
        store(at, firsts(first, second));
        store(at + simd::kCount, seconds(first, second));
      }
    }
  }

 private:
  using Int = simd::Int;
  using Float = simd::Float;
  static constexpr size_t kHalf = 8;  // of a block
  static_assert(simd::kCount <= 2 * kHalf);

  void pair(Int radius_word, Int angle_word, Float& first, Float& second) const {
    box_muller(radius_word, angle_word, first, second);
    first = simd::round<kFormat>(simd::fma(first, scale_, offset_));
    second = simd::round<kFormat>(simd::fma(second, scale_, offset_));
  }

  Float offset_;
  Float scale_;
};

}  // namespace
}  // namespace dormant::random
