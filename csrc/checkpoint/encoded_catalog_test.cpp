// Encoded tensors through the public C++ interface.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <dormant/checkpoint.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

constexpr const char* kConfig =
    R"({"dtype":"bfloat16","quantization_config":{"quant_method":"fp8","weight_block_size":[2,4]}})";

/// A weight of 3 x 6 bytes with 2 x 2 scales, a norm, and the scale of its activations.
std::string encoded_file() {
  std::string data;
  for (int i = 0; i < 18; ++i) {
    data.push_back(static_cast<char>(0x30 + i));
  }
  data.append(2, '\0');  // the norm, uint8
  const float scales[] = {1, 2, 0.5f, -4};
  data.append(reinterpret_cast<const char*>(scales), sizeof scales);
  const float activation = 1;
  data.append(reinterpret_cast<const char*>(&activation), sizeof activation);
  return safetensors_file(
      R"({"a.weight":{"dtype":"F8_E4M3","shape":[3,6],"data_offsets":[0,18]},)"
      R"("norm":{"dtype":"U8","shape":[2],"data_offsets":[18,20]},)"
      R"("a.weight_scale_inv":{"dtype":"F32","shape":[2,2],"data_offsets":[20,36]},)"
      R"("a.activation_scale":{"dtype":"F32","shape":[1],"data_offsets":[36,40]}})",
      data);
}

at::Tensor expected() {
  auto codes = at::arange(0x30, 0x30 + 18).to(at::kByte).view(at::kFloat8_e4m3fn);
  auto scales = at::tensor({1.0f, 2.0f, 0.5f, -4.0f}).view({2, 2});
  auto spread = scales.repeat_interleave(2, 0).repeat_interleave(4, 1);
  return codes.view({3, 6}).to(at::kFloat) * spread.narrow(0, 0, 3).narrow(1, 0, 6);
}

TEST(EncodedCatalog, ShowsPlainTensors) {
  const ScratchFolder folder;
  folder.write("model.safetensors", encoded_file());
  folder.write("config.json", kConfig);
  const auto checkpoint = open_checkpoint(folder.path(""));
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a.weight", "norm"}));
  const auto entry = checkpoint.entry("a.weight");
  EXPECT_EQ(entry.encoding, "fp8 e4m3, blocks of 2x4");
  EXPECT_EQ(entry.dtype, at::kBFloat16);
  EXPECT_EQ(entry.nbytes, 36u);
  ASSERT_EQ(entry.parts.size(), 2u);
  EXPECT_EQ(entry.parts[0].file, folder.path("model.safetensors"));
  auto tensor = checkpoint["a.weight"];
  auto part = checkpoint["a.weight"].narrow(0, 1, 2).narrow(1, 3, 2).clone();
  EXPECT_TRUE(is_lazy(tensor));
  materialize({tensor, part});
  const auto all = expected().to(at::kBFloat16);
  EXPECT_TRUE(at::equal(tensor, all)) << tensor;
  EXPECT_TRUE(at::equal(part, all.narrow(0, 1, 2).narrow(1, 3, 2))) << part;
}

TEST(EncodedCatalog, GivesTheDtypeAskedForOrTheFilesAsTheyAre) {
  const ScratchFolder folder;
  folder.write("model.safetensors", encoded_file());
  folder.write("config.json", kConfig);
  auto tensor = open_checkpoint(folder.path(""), {.dtype = at::kDouble})["a.weight"];
  materialize({tensor});
  EXPECT_TRUE(at::equal(tensor, expected().to(at::kDouble))) << tensor;
  const auto raw = open_checkpoint(folder.path(""), {.decode = false});
  EXPECT_EQ(raw.names().size(), 4u);
  EXPECT_EQ(raw.entry("a.weight").dtype, at::kFloat8_e4m3fn);
}

TEST(EncodedCatalog, LoadsIntoAModule) {
  const ScratchFolder folder;
  folder.write("model.safetensors", encoded_file());
  folder.write("config.json", kConfig);
  auto weight = at::zeros({3, 6});
  LoadOptions options;
  options.unexpected = Unexpected::ignore;
  const auto checkpoint = open_checkpoint(folder.path(""), {.dtype = at::kFloat});
  load(NamedTensors{{"a.weight", weight}}, checkpoint, options);
  EXPECT_TRUE(at::equal(weight, expected())) << weight;
  auto other = at::zeros({3, 5});
  const auto text = message_of<c10::IndexError>(
      [&] { load(NamedTensors{{"a.weight", other}}, checkpoint, options); });
  EXPECT_TRUE(contains(text, "fp8 e4m3, blocks of 2x4")) << text;
}

TEST(EncodedCatalog, RefusesAWeightWithoutItsScales) {
  const ScratchFolder folder;
  folder.write(
      "model.safetensors",
      safetensors_file(R"({"a.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}})",
                       "abcd"));
  folder.write("config.json", kConfig);
  const auto text = message_of<c10::ValueError>([&] { open_checkpoint(folder.path("")); });
  EXPECT_TRUE(contains(text, "'a.weight_scale_inv'")) << text;
}

}  // namespace
}  // namespace dormant::checkpoint
