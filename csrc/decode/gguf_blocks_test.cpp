#include "decode/gguf_blocks.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <vector>

namespace dormant::decode {
namespace {

const GgufType& type(uint32_t number) { return *find_gguf_type(number); }

TEST(GgufBlocks, AreMadeOfTheBytesOfTheirBlocks) {
  const GgufBlocks decoder(type(12), {3, 2, 512});
  EXPECT_EQ(decoder.name(), "GGUF Q4_K");
  EXPECT_EQ(decoder.unit(), 256);
  EXPECT_EQ(decoder.output(), record::Geometry::contiguous({3, 2, 512}, c10::ScalarType::Float));
  ASSERT_EQ(decoder.parts().size(), 1u);
  EXPECT_EQ(decoder.parts()[0], record::Geometry::contiguous({3, 2, 288}, c10::ScalarType::Byte));
  std::vector<record::ElementRun> runs;
  decoder.wanted(0, 256, 1024, {}, runs);
  EXPECT_EQ(runs, (std::vector<record::ElementRun>{{144, 576}}));
}

TEST(GgufBlocks, RunMakesARangeOfTheElements) {
  const GgufBlocks decoder(type(8), {2, 64});
  // A scale of 1, 2, 3 and 4 for codes that count.
  const uint16_t scales[] = {0x3c00, 0x4000, 0x4200, 0x4400};
  std::vector<uint8_t> bytes;
  for (const auto scale : scales) {
    bytes.push_back(static_cast<uint8_t>(scale));
    bytes.push_back(static_cast<uint8_t>(scale >> 8));
    for (int i = 0; i < 32; ++i) {
      bytes.push_back(static_cast<uint8_t>(i - 16));
    }
  }
  std::vector<record::ElementRun> runs;
  decoder.wanted(0, 32, 64, {}, runs);
  const void* part = bytes.data() + runs.at(0).begin;
  std::vector<float> out(64);
  decoder.run(32, 64, part, out.data());
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(out[static_cast<size_t>(i)], static_cast<float>((i % 32 - 16) * (2 + i / 32)));
  }
}

TEST(GgufBlocks, OfTypesThatNobodyDecodesAreNotImplemented) {
  const GgufBlocks decoder(type(16), {2, 256});
  EXPECT_EQ(decoder.parts()[0], record::Geometry::contiguous({2, 66}, c10::ScalarType::Byte));
  std::vector<record::ElementRun> runs;
  EXPECT_THROW(decoder.wanted(0, 0, 256, {}, runs), c10::NotImplementedError);
  EXPECT_THROW(decoder.run(0, 256, {}, nullptr), c10::NotImplementedError);
}

TEST(GgufBlocks, OfRowsThatAreNoWholeBlocksAreRefused) {
  EXPECT_THROW(GgufBlocks(type(8), {2, 48}), c10::ValueError);
  EXPECT_THROW(GgufBlocks(type(8), {}), c10::ValueError);
  EXPECT_THROW(GgufBlocks(type(0), {32}), c10::ValueError);
  EXPECT_THROW(GgufBlocks(type(8), {int64_t{1} << 40, int64_t{1} << 40}), c10::ValueError);
}

}  // namespace
}  // namespace dormant::decode
