#include "checkpoint/catalog.h"

#include <c10/util/Exception.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <string>
#include <system_error>

#include "checkpoint/gguf_bytes.h"
#include "checkpoint/scratch_folder.h"
#include "checkpoint/torch_bytes.h"

namespace dormant::checkpoint {
namespace {

/// A file with tensors of one byte each.
std::string file_of(const std::vector<std::string>& names) {
  std::string header = R"({"__metadata__":{"first":")" + names.front() + "\"}";
  std::string data;
  for (const auto& name : names) {
    const auto begin = std::to_string(data.size());
    data += 'x';
    header += ",\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + begin + "," +
              std::to_string(data.size()) + "]}";
  }
  return safetensors_file(header + "}", data);
}

constexpr const char* kIndexName = "model.safetensors.index.json";

TEST(Catalog, OpensAFile) {
  const ScratchFolder folder;
  const auto path = folder.write("any.name", file_of({"b", "a"}));
  const auto catalog = open_catalog(path);
  ASSERT_EQ(catalog.tensors.size(), 2u);
  EXPECT_EQ(catalog.tensors.at("b").file->path(), path);
  EXPECT_EQ(catalog.metadata.at("first"), "b");
}

TEST(Catalog, OpensTheFilesOfAnIndex) {
  const ScratchFolder folder;
  folder.write("1.safetensors", file_of({"a", "b"}));
  folder.write("2.safetensors", file_of({"c"}));
  folder.write(kIndexName,
               R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}})");
  const auto catalog = open_catalog(folder.path(""));
  EXPECT_EQ(catalog.tensors.size(), 3u);
  EXPECT_EQ(catalog.tensors.at("c").file->path(), folder.path("2.safetensors"));
  EXPECT_EQ(catalog.tensors.at("a").file, catalog.tensors.at("b").file);
  EXPECT_EQ(catalog.metadata.at("first"), "a");
}

TEST(Catalog, FolderPrefersTheSingleFileThenTheIndexThenAnythingAlone) {
  const ScratchFolder folder;
  folder.write("other.safetensors", file_of({"o"}));
  EXPECT_TRUE(open_catalog(folder.path("")).tensors.contains("o"));
  folder.write(kIndexName, R"({"weight_map":{"o":"other.safetensors"}})");
  folder.write("another.safetensors", file_of({"p"}));
  EXPECT_TRUE(open_catalog(folder.path("")).tensors.contains("o"));
  folder.write("model.safetensors", file_of({"m"}));
  EXPECT_TRUE(open_catalog(folder.path("")).tensors.contains("m"));
}

TEST(Catalog, AmbiguousAndEmptyFoldersAreRefused) {
  const ScratchFolder folder;
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { open_catalog(folder.path("")); }),
                       "contains no checkpoint, expected model.safetensors"));
  folder.write("x.safetensors", file_of({"a"}));
  folder.write("y.safetensors", file_of({"a"}));
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { open_catalog(folder.path("")); }),
                       "holds 2 checkpoints: 'x.safetensors', 'y.safetensors', expected one"));
  EXPECT_THROW(open_catalog(folder.path("absent")), std::system_error);
}

TEST(Catalog, IndexAndFilesMustAgree) {
  const ScratchFolder folder;
  folder.write("1.safetensors", file_of({"a", "b"}));
  folder.write("2.safetensors", file_of({"c"}));
  folder.write("3.safetensors", file_of({"c"}));
  const auto refusal = [&](const std::string& weight_map) {
    const auto path = folder.write("i.index.json", "{\"weight_map\":{" + weight_map + "}}");
    return message_of<c10::ValueError>([&] { open_catalog(path); });
  };
  const std::string a = R"("a":"1.safetensors")";
  const std::string b = R"(,"b":"1.safetensors")";
  auto text = refusal(a + b + R"(,"d":"2.safetensors")");
  EXPECT_TRUE(
      contains(text, "tensor 'd' is in no file, expected in " + folder.path("2.safetensors")))
      << text;
  text = refusal(a);
  EXPECT_TRUE(
      contains(text, "tensor 'b' of " + folder.path("1.safetensors") + " is not in the index"))
      << text;
  text = refusal(a + R"(,"b":"2.safetensors")");
  EXPECT_TRUE(contains(text, "tensor 'b' is in " + folder.path("1.safetensors") + ", expected in " +
                                 folder.path("2.safetensors")))
      << text;
  text = refusal(a + b + R"(,"c":"2.safetensors","d":"3.safetensors")");
  EXPECT_TRUE(contains(text, "tensor 'c' is in two files, " + folder.path("2.safetensors") +
                                 " and " + folder.path("3.safetensors")))
      << text;
}

TEST(Catalog, OpensFilesOfTorchSave) {
  const ScratchFolder folder;
  const auto value = pickled_dict(
      {{"model", pickled_module({{"w", PickledTensor{}.bytes()},
                                 {"t", PickledTensor{.sizes = {2}, .strides = {2}}.bytes()}})},
       {"step", "K\x01"}});
  const std::vector<float> numbers = {1, 2, 3};
  const std::string bytes(reinterpret_cast<const char*>(numbers.data()), 12);
  for (const auto& file : {torch_zip(value, {{"0", bytes}}), torch_legacy(value, {{"0", bytes}})}) {
    folder.write("pytorch_model.bin", file);
    const auto catalog = open_catalog(folder.path(""));
    ASSERT_EQ(catalog.tensors.size(), 2U);
    auto whole = catalog.tensors.at("w").tensor();
    auto strided = catalog.tensors.at("t").tensor();
    EXPECT_TRUE(whole.is_alias_of(strided));
    EXPECT_EQ(strided.strides(), at::IntArrayRef({2}));
    EXPECT_EQ(strided.select(0, 1).item<float>(), 3);
    EXPECT_EQ(open_catalog(folder.path("pytorch_model.bin"), {.key = "model"}).tensors.size(), 2U);
    EXPECT_THROW(open_catalog(folder.path("pytorch_model.bin"), {.key = "ema"}), c10::IndexError);
  }
}

/// A GGUF file with a tensor of two rows of Q8_0, whose codes are their places, scaled by a half.
std::string blocks_file(std::string_view name, const std::vector<std::string>& pairs) {
  auto bytes = gguf_bytes::gguf(pairs, {gguf_bytes::tensor(name, {32, 2}, 8, 0)}, 0);
  for (int row = 0; row < 2; ++row) {
    bytes += std::string("\x00\x38", 2);
    for (int i = 0; i < 32; ++i) {
      bytes += static_cast<char>(i);
    }
  }
  return bytes;
}

TEST(Catalog, DecodesTheBlocksOfAGgufFile) {
  const ScratchFolder folder;
  folder.write(
      "model.gguf",
      blocks_file("w", {gguf_bytes::pair("general.architecture", 8, gguf_bytes::text("llama")),
                        gguf_bytes::pair("llama.block_count", 4, gguf_bytes::u32(7))}));
  const auto catalog = open_catalog(folder.path(""));
  EXPECT_EQ(catalog.metadata.at("general.architecture"), "llama");
  EXPECT_EQ(catalog.metadata.at("llama.block_count"), "7");
  const auto& found = catalog.tensors.at("w");
  EXPECT_EQ(found.entry.sizes, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(found.entry.dtype, c10::ScalarType::Float);
  auto tensor = found.tensor();
  ASSERT_TRUE(is_lazy(tensor));
  materialize({tensor});
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(tensor.const_data_ptr<float>()[i], static_cast<float>(i % 32) / 2);
  }
  const auto raw =
      open_catalog(folder.path("model.gguf"), {.decode = false, .dtype = std::nullopt});
  EXPECT_EQ(raw.tensors.at("w").entry.sizes, (std::vector<int64_t>{2, 34}));
}

TEST(Catalog, OpensAllPartsOfAGgufFileThatWasSplit) {
  const ScratchFolder folder;
  const auto part = [](uint16_t number) {
    return std::vector{gguf_bytes::pair("split.no", 2, gguf_bytes::number(number)),
                       gguf_bytes::pair("split.count", 2, gguf_bytes::number<uint16_t>(2))};
  };
  folder.write("m-00001-of-00002.gguf", blocks_file("a", part(0)));
  folder.write("m-00002-of-00002.gguf", blocks_file("b", part(1)));
  for (const auto* path : {"", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}) {
    EXPECT_EQ(open_catalog(folder.path(path)).tensors.size(), 2u) << path;
  }
  folder.write("m-00002-of-00002.gguf", blocks_file("b", part(0)));
  EXPECT_TRUE(contains(
      message_of<c10::ValueError>([&] { open_catalog(folder.path("m-00001-of-00002.gguf")); }),
      "split.no and split.count are '0' and '2', expected 1 and 2"));
}

}  // namespace
}  // namespace dormant::checkpoint
