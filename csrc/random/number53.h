// Numbers of 53 random bits. For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/lanes.h"

namespace dormant::random {
namespace {

// One of each pair of words, the first word being the high one.
inline simd::Long number53(const uint32_t* words) {
  const auto pairs = simd::load<simd::Int>(words);
  const auto swapped = simd::permute(pairs, pairs, [](size_t lane) { return lane ^ 1; });
  return simd::bits<simd::Long>(swapped) & ((uint64_t{1} << 53) - 1);
}

// Each half becomes the mantissa of a double, by way of which it is converted; the difference and
// the sum are exact since the result has 53 bits.
inline simd::Double to_double(simd::Long number) {
  if constexpr (simd::kLevel == simd::Level::avx512) {
    return simd::convert<simd::Double>(simd::bits<simd::Vector<int64_t>>(number));
  }
  constexpr uint64_t kExponent52 = 0x4330000000000000;
  constexpr uint64_t kExponent84 = 0x4530000000000000;
  const auto low = simd::bits<simd::Double>((number & uint64_t{0xffffffff}) | kExponent52);
  const auto high = simd::bits<simd::Double>((number >> 32) | kExponent84);
  return (high - (0x1p84 + 0x1p52)) + low;
}

}  // namespace
}  // namespace dormant::random
