// The kernels of kernels.h, written once over lanes (lanes_*.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quantize/kernels.h"

namespace dormant::quantize {

template <class Lanes>
class Loops {
 public:
  static constexpr Kernels kernels(const char* name) { return {name, four_bit, int8_rows}; }

 private:
  using Float = typename Lanes::Float;
  static constexpr size_t kFloats = Lanes::kFloats;
  static constexpr size_t kStep = 4 * kFloats;  // elements that are packed together

  template <Format kFormat>
  static constexpr size_t kBytes = kFormat == Format::float32 ? 4 : 2;

  template <Scaling kScaling>
  static Float scaled(Float v, Float by) {
    return kScaling == Scaling::multiply ? Lanes::mul(v, by) : Lanes::div(v, by);
  }

  template <Format kFormat, Scaling kScaling>
  static void four_bit_as(const FourBitTable& table, const unsigned char* from, size_t block_size,
                          size_t blocks, uint8_t* packed, float* absmax) {
    constexpr size_t kVector = kFloats * kBytes<kFormat>;
    const typename Lanes::Buckets buckets(table);
    for (size_t block = 0; block < blocks; ++block) {
      const float largest = Lanes::template largest<kFormat>(from, block_size);
      // NaN compares false, so it stays.
      const float divisor = largest < kSmallestDivisor ? kSmallestDivisor : largest;
      absmax[block] = kScaling == Scaling::multiply ? largest : divisor;
      const Float by = Lanes::set(kScaling == Scaling::multiply ? 1.0f / divisor : divisor);
      const auto bucket = [&](size_t vector) {
        const Float v = Lanes::template load<kFormat>(from + vector * kVector);
        return buckets.of(scaled<kScaling>(v, by));
      };
      size_t vectors = block_size / kFloats;
      for (; vectors >= 4; vectors -= 4) {
        buckets.store(packed, bucket(0), bucket(1), bucket(2), bucket(3));
        from += 4 * kVector;
        packed += kStep / 2;
      }
      if constexpr (kStep > kGroup) {
        static_assert(kStep == 2 * kGroup);
        if (vectors != 0) {
          buckets.store_half(packed, bucket(0), bucket(1));
          from += 2 * kVector;
          packed += kStep / 4;
        }
      }
    }
  }

  template <Scaling kScaling>
  static void four_bit_scaled(const FourBitTable& table, Format format, const void* source,
                              size_t block_size, size_t blocks, uint8_t* packed, float* absmax) {
    const auto* from = static_cast<const unsigned char*>(source);
    switch (format) {
      case Format::float32:
        return four_bit_as<Format::float32, kScaling>(table, from, block_size, blocks, packed,
                                                      absmax);
      case Format::bfloat16:
        return four_bit_as<Format::bfloat16, kScaling>(table, from, block_size, blocks, packed,
                                                       absmax);
      case Format::float16:
        return four_bit_as<Format::float16, kScaling>(table, from, block_size, blocks, packed,
                                                      absmax);
      case Format::float64:
        return;  // excluded by the contract
    }
  }

  static void four_bit(const FourBitTable& table, Scaling scaling, Format format,
                       const void* source, size_t block_size, size_t blocks, uint8_t* packed,
                       float* absmax) {
    if (scaling == Scaling::multiply) {
      four_bit_scaled<Scaling::multiply>(table, format, source, block_size, blocks, packed, absmax);
    } else {
      four_bit_scaled<Scaling::divide>(table, format, source, block_size, blocks, packed, absmax);
    }
  }

  template <Format kFormat>
  static void int8_step(const unsigned char* from, Float scale, int8_t* out) {
    constexpr size_t kVector = kFloats * kBytes<kFormat>;
    const auto product = [&](size_t vector) {
      Float v = Lanes::template load<kFormat>(from + vector * kVector);
      if constexpr (kFormat != Format::float16) {
        v = Lanes::round_to_half(v);
      }
      return Lanes::mul(v, scale);
    };
    Lanes::store_rounded(out, product(0), product(1), product(2), product(3));
  }

  template <Format kFormat>
  static void int8_rows_as(const unsigned char* from, size_t columns, size_t rows, int8_t* out,
                           float* absmax) {
    const size_t rest = columns % kStep;
    const size_t whole = columns - rest;
    const size_t whole_bytes = whole * kBytes<kFormat>;
    const size_t rest_bytes = rest * kBytes<kFormat>;
    // Zeros after the last elements change neither their absmax nor their codes.
    alignas(64) unsigned char padded[kStep * kBytes<kFormat>] = {};
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(padded, from + whole_bytes, rest_bytes);
      float largest = Lanes::template largest<kFormat>(from, whole);
      if (rest != 0) {
        const float last = Lanes::template largest<kFormat>(padded, kStep);
        // Not the other way round: either may be NaN, and NaN it must be then.
        largest = last <= largest || largest != largest ? largest : last;
      }
      if constexpr (kFormat != Format::float16) {
        largest = Lanes::round_to_half(largest);  // monotonic: that of the rounded elements
      }
      absmax[row] = largest;
      if (largest > 0 && largest <= kLargestHalf) {
        // Not 127 / largest, which rounds once.
        const Float scale = Lanes::set(1.0f / largest * 127.0f);
        for (size_t i = 0; i < whole; i += kStep) {
          int8_step<kFormat>(from + i * kBytes<kFormat>, scale, out + i);
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
      from += whole_bytes + rest_bytes;
      out += columns;
    }
  }
  static constexpr float kLargestHalf = 65504.0f;

  static void int8_rows(Format format, const void* source, size_t columns, size_t rows, int8_t* out,
                        float* absmax) {
    const auto* from = static_cast<const unsigned char*>(source);
    switch (format) {
      case Format::float32:
        return int8_rows_as<Format::float32>(from, columns, rows, out, absmax);
      case Format::bfloat16:
        return int8_rows_as<Format::bfloat16>(from, columns, rows, out, absmax);
      case Format::float16:
        return int8_rows_as<Format::float16>(from, columns, rows, out, absmax);
      case Format::float64:
        return;  // excluded by the contract
    }
  }
};

}  // namespace dormant::quantize
