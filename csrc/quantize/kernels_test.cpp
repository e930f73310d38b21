// Every processor level against the portable one.

#include "quantize/kernels.h"

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

namespace dormant::quantization {
namespace {

const Kernels& portable() { return simd::kernels<Kernels>(simd::Level::portable); }

std::vector<const Kernels*> levels() { return simd::available_kernels<Kernels>(); }

// Middles 1/8 apart, but for three that lie close together, and a permutation of the codes.
FourBitTable table() {
  FourBitTable table = {};
  for (size_t i = 0; i < 15; ++i) {
    table.middle[i] = (static_cast<float>(i) - 7) / 8;
  }
  table.middle[6] = -0x1p-10f;
  table.middle[8] = 0x1p-10f;
  for (size_t i = 0; i < 16; ++i) {
    table.code[i] = static_cast<uint8_t>(i * 7 % 16);
  }
  return table;
}

// Numbers of many sizes, with what is special among them: blocks of zeros, NaN, infinities,
// subnormal numbers, exact ties (where the largest is 1).
std::vector<float> numbers(size_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (size_t i = 0; i < n; ++i) {
    const size_t part = i / 4096 % 8;
    float v = normal(engine);
    switch (part) {
      case 1:
        v = i % 512 < 256 ? 0.0f : -0.0f;
        break;
      case 2:
        v = i % 1023 == 0 ? std::numeric_limits<float>::quiet_NaN() : v;
        break;
      case 3:
        v = i % 777 == 0 ? -std::numeric_limits<float>::infinity() : v;
        break;
      case 4:
        v *= 1e-39f;
        break;
      case 5:
        v = i % 32 == 0 ? 1.0f : table().middle[engine() % 15];
        break;
      case 6:
        v *= std::exp2(static_cast<float>(static_cast<int>(engine() % 200)) - 100);
        break;
      default:
        break;
    }
    out[i] = v;
  }
  return out;
}

std::vector<unsigned char> as_format(Format format, const std::vector<float>& values) {
  std::vector<unsigned char> bytes(values.size() * (format == Format::float32 ? 4 : 2));
  for (size_t i = 0; i < values.size(); ++i) {
    if (format == Format::float32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const uint16_t bits =
          format == Format::bfloat16 ? c10::BFloat16(values[i]).x : c10::Half(values[i]).x;
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}

constexpr Format kFormats[] = {Format::float32, Format::bfloat16, Format::float16};

std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) {
    bits.push_back(std::isnan(value) ? 0x7fc00000 : std::bit_cast<uint32_t>(value));
  }
  return bits;
}

TEST(QuantizeKernels, FourBitIsTheSameAtEveryLevel) {
  const auto source = numbers(16 * 4096, 1);
  for (const Format format : kFormats) {
    const auto bytes = as_format(format, source);
    for (const Scaling scaling : {Scaling::multiply, Scaling::divide}) {
      for (const size_t block_size : {32, 64, 96, 128, 256, 512, 1024, 2048, 4096}) {
        const size_t blocks = source.size() / block_size;
        std::vector<uint8_t> expected(blocks * block_size / 2);
        std::vector<float> expected_absmax(blocks);
        portable().four_bit(table(), scaling, format, bytes.data(), block_size, blocks,
                            expected.data(), expected_absmax.data());
        for (const Kernels* level : levels()) {
          std::vector<uint8_t> packed(expected.size(), 0xa5);
          std::vector<float> absmax(blocks, -1.0f);
          level->four_bit(table(), scaling, format, bytes.data(), block_size, blocks, packed.data(),
                          absmax.data());
          const std::string where = std::string(level->name) + ", format " +
                                    std::to_string(static_cast<int>(format)) + ", blocks of " +
                                    std::to_string(block_size);
          EXPECT_EQ(packed, expected) << where;
          EXPECT_EQ(bits_of(absmax), bits_of(expected_absmax)) << where;
        }
      }
    }
  }
}

// What FourBitTable says, without a kernel.
TEST(QuantizeKernels, AnElementTakesTheCodeOfTheMiddlesBelowIt) {
  const FourBitTable codes = table();
  const auto source = numbers(16 * 4096, 2);
  constexpr size_t kBlock = 64;
  std::vector<uint8_t> packed(source.size() / 2);
  std::vector<float> absmax(source.size() / kBlock);
  portable().four_bit(codes, Scaling::divide, Format::float32, source.data(), kBlock, absmax.size(),
                      packed.data(), absmax.data());
  for (size_t i = 0; i < source.size(); ++i) {
    const float scaled = source[i] / absmax[i / kBlock];
    size_t below = 0;
    while (below < 15 && !(codes.middle[below] >= scaled)) {
      ++below;
    }
    const unsigned code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
    ASSERT_EQ(code, codes.code[below]) << "element " << i << ", " << scaled;
  }
}

TEST(QuantizeKernels, Int8RowsAreTheSameAtEveryLevel) {
  const auto source = numbers(8 * 4096, 3);
  for (const Format format : kFormats) {
    const auto bytes = as_format(format, source);
    for (const size_t columns : {1, 7, 31, 32, 33, 63, 64, 65, 100, 127, 1000, 4096}) {
      const size_t rows = source.size() / columns;
      std::vector<int8_t> expected(rows * columns);
      std::vector<float> expected_absmax(rows);
      portable().int8_rows(format, bytes.data(), columns, rows, expected.data(),
                           expected_absmax.data());
      for (const Kernels* level : levels()) {
        // What lies behind the last row stays as it was.
        std::vector<int8_t> codes(expected.size() + 64, 0x55);
        std::vector<float> absmax(rows, -1.0f);
        level->int8_rows(format, bytes.data(), columns, rows, codes.data(), absmax.data());
        const std::string where = std::string(level->name) + ", format " +
                                  std::to_string(static_cast<int>(format)) + ", " +
                                  std::to_string(columns) + " columns";
        EXPECT_EQ(std::vector<int8_t>(64, 0x55), std::vector<int8_t>(codes.end() - 64, codes.end()))
            << where;
        codes.resize(expected.size());
        EXPECT_EQ(codes, expected) << where;
        EXPECT_EQ(bits_of(absmax), bits_of(expected_absmax)) << where;
      }
    }
  }
}

// float32 to float16 as the library of c10 rounds it: all exponents, and all mantissas of one.
TEST(QuantizeKernels, Int8RoundsToFloat16First) {
  std::vector<float> source(4096 * 64);
  std::mt19937 engine(4);
  for (size_t i = 0; i < source.size(); ++i) {
    source[i] = std::ldexp(1.0f + static_cast<float>(i % (1 << 13)) * 0x1p-13f,
                           static_cast<int>(engine() % 42) - 26);
    source[i] = engine() % 2 == 0 ? source[i] : -source[i];
  }
  std::vector<float> rounded(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    rounded[i] = c10::Half(source[i]);
  }
  const size_t rows = source.size() / 64;
  for (const Kernels* level : levels()) {
    std::vector<int8_t> codes(source.size()), expected(source.size());
    std::vector<float> absmax(rows), expected_absmax(rows);
    level->int8_rows(Format::float32, source.data(), 64, rows, codes.data(), absmax.data());
    level->int8_rows(Format::float16, as_format(Format::float16, rounded).data(), 64, rows,
                     expected.data(), expected_absmax.data());
    EXPECT_EQ(codes, expected) << level->name;
    EXPECT_EQ(absmax, expected_absmax) << level->name;
  }
}

}  // namespace
}  // namespace dormant::quantization
