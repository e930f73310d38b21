// Every processor level against the portable one; the values themselves are compared with gguf's
// in tests/checkpoint/test_gguf_file.py.

#include "decode/gguf_kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "decode/gguf_types.h"
#include "simd/kernels.h"

namespace dormant::decode {
namespace {

std::vector<const GgufType*> decoded_types() {
  std::vector<const GgufType*> found;
  for (uint32_t number = 0; number < 64; ++number) {
    const auto* type = find_gguf_type(number);
    if (type != nullptr && type->code) {
      found.push_back(type);
    }
  }
  return found;
}

std::vector<uint32_t> decoded(const GgufKernels& kernels, const GgufType& type,
                              const uint8_t* blocks, size_t count) {
  // One more, which must stay as it is.
  std::vector<float> out(count * static_cast<size_t>(type.elements) + 1, 7.0F);
  kernels.decode[static_cast<size_t>(*type.code)](blocks, count, out.data());
  EXPECT_EQ(out.back(), 7.0F) << type.name;
  std::vector<uint32_t> bits(out.size());
  std::memcpy(bits.data(), out.data(), out.size() * sizeof(float));
  return bits;
}

TEST(GgufKernels, GiveTheSameBitsAtEveryLevel) {
  constexpr size_t kBlocks = 3000;
  const auto& portable = simd::kernels<GgufKernels>(simd::Level::portable);
  EXPECT_EQ(decoded_types().size(), kBlockCodes);
  for (const auto* type : decoded_types()) {
    // Any bytes: scales that are NaN, infinite, subnormal, of either sign.
    std::mt19937 random(type->number);
    std::vector<uint8_t> bytes(kBlocks * static_cast<size_t>(type->bytes) + 1);
    for (auto& byte : bytes) {
      byte = static_cast<uint8_t>(random());
    }
    for (const size_t shift : {0, 1}) {
      const auto expected = decoded(portable, *type, bytes.data() + shift, kBlocks);
      for (const auto* level : simd::available_kernels<GgufKernels>()) {
        EXPECT_EQ(decoded(*level, *type, bytes.data() + shift, kBlocks), expected)
            << type->name << " at level " << level->name << ", shifted by " << shift;
      }
    }
  }
}

TEST(GgufKernels, DecodeEachBlockAlone) {
  const auto& kernels = simd::kernels<GgufKernels>();
  for (const auto* type : decoded_types()) {
    std::mt19937 random(type->number);
    const auto size = static_cast<size_t>(type->bytes);
    const auto elements = static_cast<size_t>(type->elements);
    std::vector<uint8_t> bytes(5 * size);
    for (auto& byte : bytes) {
      byte = static_cast<uint8_t>(random());
    }
    const auto all = decoded(kernels, *type, bytes.data(), 5);
    for (size_t i = 0; i < 5; ++i) {
      const auto one = decoded(kernels, *type, bytes.data() + i * size, 1);
      EXPECT_TRUE(std::equal(one.begin(), one.end() - 1, all.begin() + i * elements)) << type->name;
    }
  }
}

TEST(GgufKernels, OfTwoNaNsTheOffsetGivesWay) {
  // Scale and offset of Q4_1, both NaN with payloads of their own; then an infinite scale, whose
  // product with zero is NaN.
  const uint8_t nan[20] = {0x01, 0x7e, 0x02, 0x7e, 0x11};
  const uint8_t infinite[20] = {0x00, 0x7c, 0x02, 0x7e, 0x01};
  for (const auto* level : simd::available_kernels<GgufKernels>()) {
    const auto* type = find_gguf_type(3);
    EXPECT_EQ(decoded(*level, *type, nan, 1)[0], 0x7fc02000U) << level->name;
    EXPECT_EQ(decoded(*level, *type, infinite, 1)[0], 0x7fc04000U) << level->name;
    EXPECT_TRUE(std::isnan(std::bit_cast<float>(decoded(*level, *type, infinite, 1)[16])));
  }
}

}  // namespace
}  // namespace dormant::decode
