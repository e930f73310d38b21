// GPTQ, AWQ and packed integers of compressed-tensors: which tensors make a weight, by what
// config.json says.

#include "checkpoint/encodings/packed_integers.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/encodings/configuration.h"
#include "checkpoint/encodings/find.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using Tensors = std::vector<RawTensor>;

constexpr auto kInt = ScalarType::Int;
constexpr auto kHalf = ScalarType::Half;

std::string config_of(const std::string& quantization) {
  return R"({"dtype":"bfloat16","quantization_config":)" + quantization + "}";
}

Findings find(Tensors tensors, const std::string& quantization,
              const std::vector<int64_t>& shape = {},
              std::optional<ScalarType> dtype = std::nullopt) {
  return find_encoded(std::move(tensors), {"config.json", config_of(quantization)}, dtype,
                      "model.safetensors", [&](const RawTensor& tensor) {
                        EXPECT_EQ(tensor.name, "a.weight_shape");
                        std::string bytes(shape.size() * sizeof(int64_t), '\0');
                        std::memcpy(bytes.data(), shape.data(), bytes.size());
                        return bytes;
                      });
}

template <class Error = c10::ValueError>
std::string refusal(Tensors tensors, const std::string& quantization,
                    const std::vector<int64_t>& shape = {}) {
  return message_of<Error>([&] { find(std::move(tensors), quantization, shape); });
}

Tensors gptq(bool g_idx = true) {
  Tensors tensors = {{"a.qweight", kInt, {16, 64}, {}},
                     {"a.qzeros", kInt, {4, 8}, {}},
                     {"a.scales", kHalf, {4, 64}, {}},
                     {"a.bias", kHalf, {64}, {}}};
  if (g_idx) {
    tensors.push_back({"a.g_idx", kInt, {128}, {}});
  }
  return tensors;
}

constexpr const char* kGptq = R"({"quant_method":"gptq","bits":4,"group_size":32})";

TEST(GptqEncoding, FindsTheTensorsOfALayer) {
  const auto found = find(gptq(), kGptq);
  ASSERT_EQ(found.encoded.size(), 1u);
  const auto& weight = found.encoded[0];
  EXPECT_EQ(weight.name, "a.weight");
  EXPECT_EQ(weight.parts,
            (std::vector<std::string>{"a.g_idx", "a.qweight", "a.qzeros", "a.scales"}));
  EXPECT_TRUE(weight.transposed);
  EXPECT_EQ(weight.decoder->output().dtype, kHalf);  // the library computes in that of the scales
  EXPECT_EQ(weight.dtype, ScalarType::BFloat16);     // as config.json says
  EXPECT_EQ(weight.decoder->name(), "gptq, 4 bits, g_idx");
  EXPECT_EQ(find(gptq(false), kGptq).encoded.at(0).decoder->name(), "gptq, 4 bits, groups of 32");
}

TEST(GptqEncoding, KnowsBothKindsOfZeros) {
  const auto found = find(
      gptq(), R"({"quant_method":"gptq","bits":4,"group_size":32,"checkpoint_format":"gptq_v2"})");
  EXPECT_EQ(found.encoded.at(0).decoder->name(), "gptq_v2, 4 bits, g_idx");
}

TEST(GptqEncoding, LayersMayHaveBitsOfTheirOwn) {
  auto tensors = gptq();
  tensors.push_back({"b.qweight", kInt, {32, 64}, {}});
  tensors.push_back({"b.qzeros", kInt, {2, 16}, {}});
  tensors.push_back({"b.scales", kHalf, {2, 64}, {}});
  const auto refused = refusal(tensors, kGptq);
  EXPECT_TRUE(contains(refused, "'b.weight' cannot be decoded from")) << refused;
  const auto found = find(
      tensors, R"({"quant_method":"gptq","bits":4,"group_size":32,"dynamic":{"b":{"bits":8}}})");
  ASSERT_EQ(found.encoded.size(), 2u);
  EXPECT_EQ(found.encoded[1].decoder->name(), "gptq, 8 bits, groups of 64");
}

TEST(GptqEncoding, RefusesWhatContradictsTheConfiguration) {
  EXPECT_TRUE(contains(refusal(gptq(), R"({"quant_method":"gptq","bits":8,"group_size":32})"),
                       "qweight has shape [16, 64]"));
  EXPECT_TRUE(contains(refusal(gptq(), R"({"quant_method":"gptq","bits":4,"group_size":64})"),
                       "scales has shape [4, 64]"));
  EXPECT_TRUE(
      contains(refusal(gptq(), R"({"quant_method":"gptq"})"), "does not state the number of bits"));
  EXPECT_TRUE(contains(refusal(gptq(), R"({"quant_method":"gptq","bits":"4"})"), "states bits"));
  EXPECT_TRUE(contains(refusal(gptq(), R"({"quant_method":"gptq","bits":1e300})"), "states bits"));
  for (const auto* format :
       {R"("checkpoint_format":"marlin")", R"("format":"gptq_p")", R"("is_marlin_format":true)"}) {
    const auto text = refusal<c10::NotImplementedError>(
        gptq(), R"({"quant_method":"gptq","bits":4,"group_size":32,)" + std::string(format) + "}");
    EXPECT_TRUE(contains(text, "gptq and gptq_v2 can be decoded")) << text;
  }
}

TEST(GptqEncoding, RefusesALayerThatIsNotWhole) {
  for (size_t missing : {1, 2}) {
    auto tensors = gptq();
    const auto name = tensors[missing].name;
    tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(missing));
    EXPECT_TRUE(contains(refusal(tensors, kGptq), "'" + name + "'"));
  }
  auto twice = gptq();
  twice.push_back({"a.weight", kHalf, {64, 128}, {}});
  EXPECT_TRUE(contains(refusal(twice, kGptq), "in the checkpoint twice"));
}

TEST(GptqEncoding, ReadsTheFileOfAutoGptq) {
  auto configuration = parse_configuration(R"({"model_type":"llama"})", "config.json");
  add_quantization(configuration, R"({"bits":4,"group_size":32,"desc_act":false})",
                   "quantize_config.json");
  EXPECT_EQ(configuration.method, "gptq");
  EXPECT_EQ(configuration.file, "quantize_config.json");
  add_quantization(configuration, R"({"w_bit":4})", "quant_config.json");
  EXPECT_EQ(configuration.method, "gptq");
  auto other = Configuration{};
  for (const auto* text : {"", "[1]", R"({"a":1})", "{"}) {
    add_quantization(other, text, "quant_config.json");
    EXPECT_EQ(other.method, "");
  }
  add_quantization(other, R"({"zero_point":true,"q_group_size":128,"w_bit":4})",
                   "quant_config.json");
  EXPECT_EQ(other.method, "awq");
}

Tensors awq() {
  return {{"a.qweight", kInt, {128, 8}, {}},
          {"a.qzeros", kInt, {4, 8}, {}},
          {"a.scales", kHalf, {4, 64}, {}}};
}

TEST(AwqEncoding, FindsTheTensorsOfALayer) {
  for (const auto* config :
       {R"({"quant_method":"awq","bits":4,"group_size":32,"version":"gemm","zero_point":true})",
        R"({"quant_method":"awq","w_bit":4,"q_group_size":32,"version":"GEMM"})",
        R"({"quant_method":"awq","bits":4,"group_size":32,"format":"gemm","zero_point":false})"}) {
    const auto found = find(awq(), config);
    ASSERT_EQ(found.encoded.size(), 1u);
    EXPECT_EQ(found.encoded[0].name, "a.weight");
    EXPECT_TRUE(found.encoded[0].transposed);
    EXPECT_EQ(found.encoded[0].decoder->name(), "awq gemm, 4 bits, groups of 32");
  }
}

TEST(AwqEncoding, RefusesOtherVersions) {
  for (const auto* version : {"gemv", "gemv_fast", "marlin", "llm-awq"}) {
    const auto text = refusal<c10::NotImplementedError>(
        awq(), R"({"quant_method":"awq","bits":4,"group_size":32,"version":")" +
                   std::string(version) + "\"}");
    EXPECT_TRUE(contains(text, version)) << text;
  }
  EXPECT_TRUE(contains(
      refusal<c10::NotImplementedError>(awq(), R"({"quant_method":"awq","bits":8})"), "8 bits"));
  EXPECT_TRUE(contains(refusal(awq(), R"({"quant_method":"awq","bits":4,"group_size":48})"),
                       "AWQ in groups of 48"));
}

Tensors packed(int64_t groups = 4, bool zero = false) {
  Tensors tensors = {{"a.weight_packed", kInt, {40, 16}, {}},
                     {"a.weight_scale", ScalarType::BFloat16, {40, groups}, {}},
                     {"a.weight_shape", ScalarType::Long, {2}, {}},
                     {"a.input_scale", ScalarType::Float, {1}, {}}};
  if (zero) {
    tensors.push_back({"a.weight_zero_point", kInt, {5, groups}, {}});
  }
  return tensors;
}

std::string compressed(const std::string& weights, const std::string& more = {}) {
  return R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{)"
         R"("group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int",)" +
         weights + "}}}" + more + "}";
}

constexpr const char* kGroup = R"("strategy":"group","group_size":32,"symmetric":true)";

TEST(PackedIntegersEncoding, GroupsSayHowManyColumnsThereAre) {
  const auto found = find(packed(), compressed(kGroup));  // without a look at weight_shape
  ASSERT_EQ(found.encoded.size(), 1u);
  EXPECT_EQ(found.encoded[0].name, "a.weight");
  EXPECT_EQ(found.encoded[0].dtype, ScalarType::BFloat16);
  EXPECT_EQ(found.encoded[0].parts,
            (std::vector<std::string>{"a.weight_shape", "a.weight_packed", "a.weight_scale"}));
  EXPECT_FALSE(found.encoded[0].transposed);
  EXPECT_EQ(found.encoded[0].decoder->output().sizes, (c10::SmallVector<int64_t, 5>{40, 128}));
  EXPECT_EQ(found.spent, std::set<std::string>{"a.input_scale"});
}

TEST(PackedIntegersEncoding, ChannelsAndTensorsReadTheShape) {
  const auto sizes = [](const Findings& found) {
    return found.encoded.at(0).decoder->output().sizes;
  };
  EXPECT_EQ(sizes(find(packed(1), compressed(R"("strategy":"channel")"), {40, 125})),
            (c10::SmallVector<int64_t, 5>{40, 125}));
  EXPECT_EQ(sizes(find(packed(1), compressed(R"("group_size":-1)"), {40, 127})),
            (c10::SmallVector<int64_t, 5>{40, 127}));
  auto one = packed();
  one[1].sizes = {1};
  EXPECT_EQ(sizes(find(one, compressed(R"("strategy":"tensor")"), {40, 128})),
            (c10::SmallVector<int64_t, 5>{40, 128}));
}

TEST(PackedIntegersEncoding, ZerosAreThereWhereTheyShould) {
  const std::string asymmetric = R"("strategy":"group","group_size":32,"symmetric":false)";
  EXPECT_EQ(find(packed(4, true), compressed(asymmetric)).encoded.at(0).parts.size(), 4u);
  EXPECT_TRUE(contains(refusal(packed(), compressed(asymmetric)), "'a.weight_zero_point'"));
}

TEST(PackedIntegersEncoding, RefusesWhatContradictsTheConfiguration) {
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_TRUE(contains(text, part)) << text;
  };
  expect(refusal(packed(), compressed(R"("strategy":"group","group_size":64)")),
         "weight_packed has shape [40, 16]");
  expect(refusal(packed(), compressed(R"("strategy":"group")")), "states group_size 0");
  expect(refusal(packed(), compressed(R"("strategy":"group","group_size":[1])")),
         "states group_size as [1]");
  expect(refusal(packed(1), compressed(R"("strategy":"channel")"), {39, 128}),
         "weight_packed has shape [40, 16]");
  expect(refusal(packed(1), compressed(R"("strategy":"channel")"), {40, -1}),
         "weight has shape [40, -1]");
  expect(refusal(packed(), R"({"quant_method":"compressed-tensors"})"), "no group in config.json");
  expect(refusal<c10::NotImplementedError>(packed(), compressed(R"("strategy":"block")")),
         "'block'");
  auto none = packed();
  none.erase(none.begin() + 1);
  expect(refusal(none, compressed(kGroup)), "'a.weight_scale'");
  auto scalar = packed();
  scalar[1].sizes = {};
  expect(refusal(scalar, compressed(kGroup), {40, 128}), "weight_scale has shape []");
}

}  // namespace
}  // namespace dormant::checkpoint
