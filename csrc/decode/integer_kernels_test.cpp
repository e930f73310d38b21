// Every processor level against the contracts, spelled out an element at a time.

#include "decode/integer_kernels.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "simd/kernels.h"

namespace dormant::decode {
namespace {

constexpr Format kFormats[] = {Format::float32, Format::bfloat16, Format::float16};
constexpr uint8_t kGuard = 0xa5;

std::vector<const IntegerKernels*> levels() { return simd::available_kernels<IntegerKernels>(); }

std::vector<uint8_t> random_bytes(size_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> bytes(n);
  for (auto& byte : bytes) {
    byte = static_cast<uint8_t>(engine());
  }
  return bytes;
}

/// Numbers of many sizes, infinities and NaN among them.
std::vector<float> random_scales(size_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> scales(n);
  for (size_t i = 0; i < n; ++i) {
    scales[i] = std::ldexp(normal(engine), static_cast<int>(engine() % 60) - 40);
  }
  scales[n / 2] = std::numeric_limits<float>::infinity();
  scales[n / 3] = std::numeric_limits<float>::quiet_NaN();
  scales[n / 4] = -0.0f;
  return scales;
}

size_t width(Format format) { return format == Format::float32 ? 4 : 2; }

/// The bits of a number in a format; the same for every NaN.
uint32_t rounded(float number, Format format) {
  if (std::isnan(number)) {
    return 0xffffffff;
  }
  switch (format) {
    case Format::float16:
      return c10::Half(number).x;
    case Format::bfloat16:
      return c10::BFloat16(number).x;
    default:
      return std::bit_cast<uint32_t>(number);
  }
}

uint32_t stored(const std::vector<uint8_t>& out, size_t i, Format format) {
  uint32_t bits = 0;
  std::memcpy(&bits, &out[i * width(format)], width(format));
  float number = std::bit_cast<float>(bits);
  if (format == Format::float16) {
    number = c10::Half(static_cast<uint16_t>(bits), c10::Half::from_bits());
  } else if (format == Format::bfloat16) {
    number = c10::BFloat16(static_cast<uint16_t>(bits), c10::BFloat16::from_bits());
  }
  return std::isnan(number) ? 0xffffffff : bits;
}

/// Expects number(i) at each element of `out`, and the guard behind them.
template <class Number>
void expect_numbers(const std::vector<uint8_t>& out, size_t n, Format format, const Number& number,
                    const std::string& where) {
  for (size_t i = 0; i < n; ++i) {
    ASSERT_EQ(stored(out, i, format), rounded(number(i), format)) << where << ", element " << i;
  }
  for (size_t i = n * width(format); i < out.size(); ++i) {
    ASSERT_EQ(out[i], kGuard) << where << ", behind the last element";
  }
}

TEST(IntegerKernels, CodesOfAnyWidthAreUnpacked) {
  for (size_t bits = 1; bits <= 8; ++bits) {
    for (const size_t n : {1, 7, 8, 9, 15, 63, 64, 65, 72, 100, 128, 511, 1000}) {
      // Nothing is read behind the last code.
      const auto packed = random_bytes((n * bits + 7) / 8, static_cast<unsigned>(n));
      for (const auto* level : levels()) {
        std::vector<uint8_t> codes(n + 64, kGuard);
        level->unpack(packed.data(), bits, n, codes.data());
        for (size_t i = 0; i < n; ++i) {
          unsigned code = 0;
          for (size_t bit = 0; bit < bits; ++bit) {
            const size_t at = i * bits + bit;
            code |= (packed[at / 8] >> at % 8 & 1U) << bit;
          }
          ASSERT_EQ(codes[i], code) << level->name << ", " << bits << " bits, code " << i;
        }
        ASSERT_EQ(codes[n], kGuard) << level->name;
      }
    }
  }
}

TEST(IntegerKernels, WordsOfAwqAreUnpackedInTheirOrder) {
  constexpr size_t kOrder[] = {0, 4, 1, 5, 2, 6, 3, 7};  // AWQ_REVERSE_ORDER of AutoAWQ
  for (const size_t count : {1, 2, 7, 8, 9, 100}) {
    const auto words = random_bytes(4 * count, static_cast<unsigned>(count));
    for (const auto* level : levels()) {
      std::vector<uint8_t> codes(8 * count + 64, kGuard);
      level->unpack_awq(words.data(), count, codes.data());
      for (size_t i = 0; i < 8 * count; ++i) {
        uint32_t word = 0;
        std::memcpy(&word, &words[i / 8 * 4], 4);
        ASSERT_EQ(codes[i], word >> 4 * kOrder[i % 8] & 15U) << level->name << ", code " << i;
      }
      ASSERT_EQ(codes[8 * count], kGuard) << level->name;
    }
  }
}

TEST(IntegerKernels, EachCodeHasAZeroAndAScale) {
  for (const size_t n : {1, 3, 16, 17, 100, 515}) {
    const auto codes = random_bytes(n, 1);
    const auto zero_codes = random_bytes(n, 2);
    const auto scales = random_scales(n, 3);
    for (const auto* level : levels()) {
      std::vector<float> zeros(n + 16, -1);
      level->to_floats(zero_codes.data(), n, zeros.data());
      EXPECT_EQ(zeros[n], -1);
      for (const auto format : kFormats) {
        std::vector<uint8_t> out(n * width(format) + 64, kGuard);
        level->scale(codes.data(), zeros.data(), scales.data(), n, format, out.data());
        expect_numbers(
            out, n, format,
            [&](size_t i) { return static_cast<float>(codes[i] - zero_codes[i]) * scales[i]; },
            level->name);
      }
    }
  }
}

TEST(IntegerKernels, FieldsMayLieInTwoWords) {
  constexpr size_t kWords = 77;
  const auto low = random_bytes(4 * kWords, 4);
  const auto high = random_bytes(4 * kWords, 5);
  const auto scales = random_scales(kWords, 6);
  const std::vector<float> zeros(kWords, 3);
  for (const auto* level : levels()) {
    for (unsigned bits = 2; bits <= 8; ++bits) {
      for (unsigned shift = 0; shift < 32; ++shift) {
        const bool crosses = shift + bits > 32;
        const auto format = kFormats[shift % 3];
        std::vector<uint8_t> out(kWords * width(format) + 64, kGuard);
        level->scale_fields(low.data(), crosses ? high.data() : nullptr, shift, bits, zeros.data(),
                            scales.data(), kWords, format, out.data());
        expect_numbers(
            out, kWords, format,
            [&](size_t i) {
              uint64_t below = 0, above = 0;
              std::memcpy(&below, &low[4 * i], 4);
              std::memcpy(&above, &high[4 * i], 4);
              const auto code = (above << 32 | below) >> shift & ((uint64_t{1} << bits) - 1);
              return (static_cast<float>(code) - 3) * scales[i];
            },
            std::string(level->name) + ", shift " + std::to_string(shift));
      }
    }
  }
}

TEST(IntegerKernels, GroupsHaveAZeroAndAScale) {
  constexpr size_t kCodes = 1000;
  const auto codes = random_bytes(kCodes, 7);
  const auto scales = random_scales(kCodes, 8);
  std::vector<float> zeros(kCodes);
  for (size_t i = 0; i < kCodes; ++i) {
    zeros[i] = static_cast<float>(i * 37 % 256);
  }
  for (const auto* level : levels()) {
    for (const size_t group : {1, 5, 16, 32, 128, 4096}) {
      for (const size_t before : {size_t{0}, group / 2, group - 1}) {
        const auto format = kFormats[(group + before) % 3];
        std::vector<uint8_t> out(kCodes * width(format) + 64, kGuard);
        level->scale_groups(codes.data(), before, group, zeros.data(), scales.data(), kCodes,
                            format, out.data());
        expect_numbers(
            out, kCodes, format,
            [&](size_t i) {
              const auto code = static_cast<float>(codes[i]);
              return (code - zeros[(before + i) / group]) * scales[(before + i) / group];
            },
            std::string(level->name) + ", groups of " + std::to_string(group));
      }
    }
  }
}

TEST(IntegerKernels, ElementsAreWidened) {
  const auto numbers = random_scales(101, 9);
  for (const auto* level : levels()) {
    std::vector<c10::Half> halves(numbers.begin(), numbers.end());
    std::vector<c10::BFloat16> bfloats(numbers.begin(), numbers.end());
    std::vector<float> wide(102, -1);
    level->widen(Format::float16, halves.data(), 101, wide.data());
    for (size_t i = 0; i < 101; ++i) {
      ASSERT_EQ(rounded(wide[i], Format::float32), rounded(halves[i], Format::float32)) << i;
    }
    level->widen(Format::bfloat16, bfloats.data(), 101, wide.data());
    for (size_t i = 0; i < 101; ++i) {
      ASSERT_EQ(rounded(wide[i], Format::float32), rounded(bfloats[i], Format::float32)) << i;
    }
    EXPECT_EQ(wide[101], -1);
  }
}

}  // namespace
}  // namespace dormant::decode
