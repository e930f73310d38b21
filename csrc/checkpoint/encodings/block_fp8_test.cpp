#include "checkpoint/encodings/block_fp8.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "checkpoint/encodings/find.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;

constexpr auto kFp8 = ScalarType::Float8_e4m3fn;
constexpr const char* kConfig =
    R"({"dtype":"bfloat16","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}})";

Findings find(std::vector<RawTensor> tensors, const std::string& config = {},
              std::optional<ScalarType> dtype = std::nullopt) {
  return find_encoded(std::move(tensors), {config.empty() ? "" : "config.json", config, {}}, dtype,
                      "model.safetensors", [](const RawTensor&) { return std::string(); });
}

std::string refusal(std::vector<RawTensor> tensors, const std::string& config = {}) {
  return message_of<c10::ValueError>([&] { find(std::move(tensors), config); });
}

TEST(BlockFp8Encoding, PairsWeightsWithTheirScales) {
  const auto found = find({{"norm", ScalarType::BFloat16, {200}, {}},
                           {"a.weight", kFp8, {256, 200}, {}},
                           {"a.weight_scale_inv", ScalarType::Float, {2, 2}, {}}},
                          kConfig);
  ASSERT_EQ(found.encoded.size(), 1u);
  EXPECT_EQ(found.encoded[0].name, "a.weight");
  EXPECT_EQ(found.encoded[0].parts, (std::vector<std::string>{"a.weight", "a.weight_scale_inv"}));
  EXPECT_EQ(found.encoded[0].dtype, ScalarType::BFloat16);
  EXPECT_EQ(found.encoded[0].decoder->name(), "fp8 e4m3, blocks of 128x128");
  EXPECT_TRUE(found.warnings.empty());
}

TEST(BlockFp8Encoding, KnowsTheOtherNamesOfScales) {
  const auto found = find({{"a.weight", kFp8, {128, 128}, {}},
                           {"a.scale", ScalarType::Float8_e8m0fnu, {1, 1}, {}},
                           {"b.weight", kFp8, {128, 128}, {}},
                           {"b.qscale_weight", ScalarType::Float, {}, {}},
                           {"b.qscale_act", ScalarType::Float, {}, {}},
                           {"c.up_proj", kFp8, {3, 128, 128}, {}},
                           {"c.up_proj_scale_inv", ScalarType::Float, {3, 1, 1}, {}},
                           {"norm.weight", ScalarType::Float, {4}, {}},
                           {"norm.scale", ScalarType::Float, {4}, {}}});
  ASSERT_EQ(found.encoded.size(), 3u);
  EXPECT_EQ(found.encoded[0].dtype, ScalarType::BFloat16);  // as the library, from e8m0
  EXPECT_EQ(found.encoded[1].dtype, ScalarType::Float);
  EXPECT_EQ(found.encoded[2].name, "c.up_proj");
  EXPECT_EQ(found.spent, std::set<std::string>{"b.qscale_act"});
}

TEST(BlockFp8Encoding, TakesTheDtypeAskedFor) {
  const auto found = find(
      {{"a.weight", kFp8, {128, 128}, {}}, {"a.weight_scale_inv", ScalarType::Float, {1, 1}, {}}},
      kConfig, ScalarType::Half);
  EXPECT_EQ(found.encoded.at(0).dtype, ScalarType::Half);
  EXPECT_EQ(found.encoded.at(0).decoder->output().dtype, ScalarType::Half);
}

TEST(BlockFp8Encoding, RefusesAWeightWithoutItsScale) {
  const auto text = refusal({{"a.weight", kFp8, {128, 128}, {}}}, kConfig);
  EXPECT_TRUE(contains(text, "'a.weight'")) << text;
  EXPECT_TRUE(contains(text, "'a.weight_scale_inv'")) << text;
  // What nobody calls encoded is a tensor of float8.
  EXPECT_TRUE(find({{"a.weight", kFp8, {128, 128}, {}}}).encoded.empty());
}

TEST(BlockFp8Encoding, LeavesWhatTheConfigurationLeavesOut) {
  const std::string config =
      R"({"quantization_config":{"quant_method":"fp8","modules_to_not_convert":["head"]}})";
  const auto found = find({{"head.weight", kFp8, {128, 128}, {}},
                           {"a.weight", kFp8, {128, 128}, {}},
                           {"a.weight_scale_inv", ScalarType::Float, {1, 1}, {}}},
                          config);
  EXPECT_EQ(found.encoded.size(), 1u);
}

TEST(BlockFp8Encoding, RefusesScalesOfAnotherShape) {
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{2, 3}, {3, 2}, {0, 0}, {7}}) {
    const auto text = refusal(
        {{"a.weight", kFp8, {256, 200}, {}}, {"a.weight_scale_inv", ScalarType::Float, sizes, {}}},
        kConfig);
    EXPECT_TRUE(contains(text, "'a.weight_scale_inv'")) << text;
  }
}

TEST(BlockFp8Encoding, RefusesToGuessTheSizeOfBlocks) {
  const auto text = refusal(
      {{"a.weight", kFp8, {192, 128}, {}}, {"a.weight_scale_inv", ScalarType::Float, {2, 1}, {}}});
  EXPECT_TRUE(contains(text, "128x128 or of 96x128")) << text;
}

TEST(BlockFp8Encoding, RefusesAPlainWeightBesideScales) {
  const auto text = refusal({{"a.weight", ScalarType::BFloat16, {128, 128}, {}},
                             {"a.weight_scale_inv", ScalarType::Float, {1, 1}, {}}},
                            kConfig);
  EXPECT_TRUE(contains(text, "BFloat16")) << text;
}

TEST(BlockFp8Encoding, WarnsWhereTheConfigurationSaysOtherwise) {
  const auto found = find({{"a.weight", ScalarType::BFloat16, {128, 128}, {}}}, kConfig);
  ASSERT_EQ(found.warnings.size(), 1u);
  EXPECT_TRUE(contains(found.warnings[0], "config.json")) << found.warnings[0];
}

}  // namespace
}  // namespace dormant::checkpoint
