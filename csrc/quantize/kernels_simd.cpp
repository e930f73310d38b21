#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quantize/buckets.h"
#include "quantize/kernels.h"
#include "simd/lanes.h"

namespace dormant::quantization {
namespace {

using simd::Float;
using simd::Int;
using simd::kCount;

constexpr size_t kStep = 4 * kCount;  // elements that are packed together
static_assert(kStep <= 2 * kGroup);

// The largest magnitude of n elements, a multiple of kGroup; NaN if one is. Without the sign,
// floats are ordered as their bits are, and NaN is above infinity.
template <Format kFormat>
float largest(const unsigned char* from, size_t n) {
  using Lane = simd::Unsigned<simd::kWidth<kFormat>>;
  using Lanes = simd::Vector<Lane>;
  constexpr auto kMagnitude = static_cast<Lane>(Lane{0} - 1) >> 1;
  Lanes most = {};
  for (size_t i = 0; i < n * sizeof(Lane); i += simd::kBytes) {
    most = simd::larger(most, simd::load<Lanes>(from + i) & Lane{kMagnitude});
  }
  return simd::first_element<kFormat>(simd::largest<Lane, simd::kBytes / sizeof(Lane)>(most));
}

template <Scaling kScaling>
Float scaled(Float v, Float by) {
  return kScaling == Scaling::multiply ? v * by : v / by;
}

template <Format kFormat, Scaling kScaling>
void four_bit_as(const FourBitTable& table, const unsigned char* from, size_t block_size,
                 size_t blocks, uint8_t* packed, float* absmax) {
  constexpr size_t kVector = kCount * simd::kWidth<kFormat>;
  const Buckets buckets(table);
  for (size_t block = 0; block < blocks; ++block) {
    const float most = largest<kFormat>(from, block_size);
    // NaN compares false, so it stays.
    const float divisor = most < kSmallestDivisor ? kSmallestDivisor : most;
    absmax[block] = kScaling == Scaling::multiply ? most : divisor;
    const auto by = simd::set<Float>(kScaling == Scaling::multiply ? 1.0f / divisor : divisor);
    const auto bucket = [&](size_t vector) {
      const Float v = simd::load_elements<kFormat>(from + vector * kVector);
      return buckets.of(scaled<kScaling>(v, by));
    };
    size_t vectors = block_size / kCount;
    for (; vectors >= 4; vectors -= 4) {
      simd::store(packed, buckets.packed(bucket(0), bucket(1), bucket(2), bucket(3)));
      from += 4 * kVector;
      packed += kStep / 2;
    }
    if constexpr (kStep > kGroup) {
      if (vectors != 0) {
        const Int first = bucket(0), second = bucket(1);
        const auto both = buckets.packed(first, second, first, second);
        std::memcpy(packed, &both, kStep / 4);
        from += 2 * kVector;
        packed += kStep / 4;
      }
    }
  }
}

void four_bit(const FourBitTable& table, Scaling scaling, Format format, const void* source,
              size_t block_size, size_t blocks, uint8_t* packed, float* absmax) {
  const auto* from = static_cast<const unsigned char*>(source);
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {  // excluded by the contract
      const auto kernel = scaling == Scaling::multiply ? four_bit_as<kFormat, Scaling::multiply>
                                                       : four_bit_as<kFormat, Scaling::divide>;
      kernel(table, from, block_size, blocks, packed, absmax);
    }
  });
}

Float round_to_half(Float v) { return simd::round<Format::float16>(v); }

// Rounds kStep products to nearest even, as int8.
template <Format kFormat>
void int8_step(const unsigned char* from, Float scale, int8_t* out) {
  const auto rounded = [&](size_t vector) {
    Float v = simd::load_elements<kFormat>(from + vector * kCount * simd::kWidth<kFormat>);
    if constexpr (kFormat != Format::float16) {
      v = round_to_half(v);
    }
    return simd::to_nearest(v * scale);
  };
  simd::store(out, simd::narrow(rounded(0), rounded(1), rounded(2), rounded(3)));
}

template <Format kFormat>
void int8_rows_as(const unsigned char* from, size_t columns, size_t rows, int8_t* out,
                  float* absmax) {
  constexpr float kLargestHalf = 65504.0f;
  constexpr size_t kWidth = simd::kWidth<kFormat>;
  const size_t rest = columns % kStep;
  const size_t whole = columns - rest;
  // Zeros after the last elements change neither their absmax nor their codes.
  alignas(64) unsigned char padded[kStep * kWidth] = {};
  for (size_t row = 0; row < rows; ++row) {
    std::memcpy(padded, from + whole * kWidth, rest * kWidth);
    float most = largest<kFormat>(from, whole);
    if (rest != 0) {
      const float last = largest<kFormat>(padded, kStep);
      // Not the other way round: either may be NaN, and NaN it must be then.
      most = last <= most || most != most ? most : last;
    }
    if constexpr (kFormat != Format::float16) {
      most = round_to_half(simd::set<Float>(most))[0];  // monotonic: that of the rounded elements
    }
    absmax[row] = most;
    if (most > 0 && most <= kLargestHalf) {
      // Not 127 / most, which rounds once.
      const auto scale = simd::set<Float>(1.0f / most * 127.0f);
      for (size_t i = 0; i < whole; i += kStep) {
        int8_step<kFormat>(from + i * kWidth, scale, out + i);
      }
      if (rest != 0) {
        int8_t last[kStep];
        int8_step<kFormat>(padded, scale, last);
        std::memcpy(out + whole, last, rest);
      }
    } else {
      // 0 * inf, inf * 0 and NaN are NaN, whose int8 is zero; so is a number times 1 / inf.
      std::memset(out, 0, columns);
    }
    from += columns * kWidth;
    out += columns;
  }
}

void int8_rows(Format format, const void* source, size_t columns, size_t rows, int8_t* out,
               float* absmax) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {  // excluded by the contract
      int8_rows_as<kFormat>(static_cast<const unsigned char*>(source), columns, rows, out, absmax);
    }
  });
}

constexpr Kernels kKernels = {simd::kLevelName, four_bit, int8_rows};

}  // namespace

const Kernels& Kernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::quantization
