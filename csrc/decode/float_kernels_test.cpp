#include "decode/float_kernels.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "simd/kernels.h"

namespace dormant::decode {
namespace {

constexpr float kScales[] = {1.0f,
                             -0.37f,
                             3e38f,
                             1e-40f,
                             0.0f,
                             std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN()};

/// Every byte, a few times, and some more.
std::vector<uint8_t> bytes() {
  std::vector<uint8_t> all(3 * 256 + 37);
  std::iota(all.begin(), all.end(), uint8_t{0});
  return all;
}

/// The bits of what is stored; all NaN have the same.
std::vector<uint32_t> stored(Format format, const std::vector<char>& memory, size_t count) {
  std::vector<uint32_t> found;
  for (size_t i = 0; i < count; ++i) {
    float value = 0;
    uint32_t bits = 0;
    if (format == Format::float32) {
      std::memcpy(&value, &memory[4 * i], 4);
      bits = std::bit_cast<uint32_t>(value);
    } else {
      uint16_t half = 0;
      std::memcpy(&half, &memory[2 * i], 2);
      bits = half;
      value = format == Format::bfloat16
                  ? static_cast<float>(c10::BFloat16(half, c10::BFloat16::from_bits()))
                  : static_cast<float>(c10::Half(half, c10::Half::from_bits()));
    }
    found.push_back(std::isnan(value) ? 0xffffffffu : bits);
  }
  return found;
}

/// What is expected: c10's own conversions, one number at a time.
std::vector<uint32_t> expected(Format format, const std::vector<float>& values) {
  std::vector<uint32_t> found;
  for (const float value : values) {
    const uint32_t bits = format == Format::float32    ? std::bit_cast<uint32_t>(value)
                          : format == Format::bfloat16 ? c10::BFloat16(value).x
                                                       : c10::Half(value).x;
    found.push_back(std::isnan(value) ? 0xffffffffu : bits);
  }
  return found;
}

template <class Decode, class Value>
void check_all(size_t count, Decode&& decode, Value&& value) {
  for (const auto* kernels : simd::available_kernels<FloatKernels>()) {
    for (const auto format : {Format::float32, Format::bfloat16, Format::float16}) {
      for (const float scale : kScales) {
        for (const size_t n : {count, count - 1, size_t{17}, size_t{2}, size_t{1}}) {
          std::vector<char> memory(4 * count + 4, '\x55');
          decode(*kernels, format, n, scale, memory.data());
          std::vector<float> values;
          for (size_t i = 0; i < n; ++i) {
            values.push_back(value(i, scale));
          }
          ASSERT_EQ(stored(format, memory, n), expected(format, values))
              << kernels->name << ", format " << static_cast<int>(format) << ", scale " << scale
              << ", " << n;
          const size_t width = format == Format::float32 ? 4 : 2;
          ASSERT_EQ(memory[n * width], '\x55') << "written too far";
        }
      }
    }
  }
}

TEST(FloatKernels, Fp8AsTorch) {
  const auto codes = bytes();
  check_all(
      codes.size() - 1,
      [&](const FloatKernels& kernels, Format format, size_t n, float scale, void* out) {
        kernels.fp8(Fp8::e4m3, format, codes.data(), n, scale, out);
      },
      [&](size_t i, float scale) {
        return static_cast<float>(c10::Float8_e4m3fn(codes[i], c10::Float8_e4m3fn::from_bits())) *
               scale;
      });
  check_all(
      codes.size() - 1,
      [&](const FloatKernels& kernels, Format format, size_t n, float scale, void* out) {
        kernels.fp8(Fp8::e5m2, format, codes.data(), n, scale, out);
      },
      [&](size_t i, float scale) {
        return static_cast<float>(c10::Float8_e5m2(codes[i], c10::Float8_e5m2::from_bits())) *
               scale;
      });
}

TEST(FloatKernels, Int8InTwoProducts) {
  const auto codes = bytes();
  constexpr float kFactor = 7.874015718698502e-3f;
  const auto* integers = reinterpret_cast<const int8_t*>(codes.data());
  check_all(
      codes.size() - 1,
      [&](const FloatKernels& kernels, Format format, size_t n, float scale, void* out) {
        kernels.int8(format, integers, n, -3.0f, scale, kFactor, out);
      },
      [&](size_t i, float scale) {
        const float product = (static_cast<float>(integers[i]) + 3.0f) * scale;
        return product * kFactor;
      });
}

TEST(FloatKernels, FourBitInEitherOrder) {
  const auto codes = bytes();
  FourBitValues values{};
  for (size_t i = 0; i < 16; ++i) {
    values.value[i] = 0.7f - 0.1f * static_cast<float>(i);
  }
  for (const auto order : {Nibbles::low_first, Nibbles::high_first}) {
    check_all(
        2 * codes.size() - 1,
        [&](const FloatKernels& kernels, Format format, size_t n, float scale, void* out) {
          kernels.four_bit(values, order, format, codes.data(), n, scale, out);
        },
        [&](size_t i, float scale) {
          const bool low = (i % 2 == 0) == (order == Nibbles::low_first);
          return values.value[low ? codes[i / 2] & 15 : codes[i / 2] >> 4] * scale;
        });
  }
}

}  // namespace
}  // namespace dormant::decode
