#include "checkpoint/dcp.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "checkpoint/archive_bytes.h"
#include "checkpoint/catalog.h"
#include "checkpoint/scratch_folder.h"
#include "record/lazy_storage.h"

namespace dormant::checkpoint {
namespace {

using bytes::dict;
using bytes::integer;
using bytes::integers;
using bytes::object;
using bytes::text;

std::string torch_class(const std::string& name) {
  return bytes::global("torch.distributed.checkpoint.metadata", name);
}
std::string size_of(const std::vector<int64_t>& sizes) {
  return bytes::call(bytes::global("torch", "Size"), {integers(sizes)});
}
std::string chunk(const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes) {
  return object(torch_class("ChunkStorageMetadata"),
                {text("offsets"), size_of(offsets), text("sizes"), size_of(sizes)});
}
std::string tensor(const std::vector<int64_t>& sizes, const std::vector<std::string>& chunks,
                   const std::string& dtype = "int16") {
  const auto properties = torch_class("TensorProperties") + ")\x81" +
                          bytes::tuple({bytes::global("torch", dtype), "N", "\x89"}) + "b";
  return object(torch_class("TensorStorageMetadata"),
                {text("properties"), properties, text("size"), size_of(sizes), text("chunks"),
                 bytes::list(chunks)});
}
std::string index(const std::string& name, const std::vector<int64_t>& offset) {
  return object(torch_class("MetadataIndex"),
                {text("fqn"), text(name), text("offset"), size_of(offset)});
}
std::string info(const std::string& path, int64_t offset, int64_t length) {
  return object(bytes::global("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
                {text("relative_path"), text(path), text("offset"), integer(offset), text("length"),
                 integer(length)});
}
std::string metadata(const std::vector<std::string>& tensors,
                     const std::vector<std::string>& storage) {
  return bytes::pickle(object(torch_class("Metadata"),
                              {text("state_dict_metadata"), dict(tensors), text("storage_data"),
                               dict(storage), text("version"), text("1.0.0")}));
}

/// Rows 0 to 2 of a 5 x 3 tensor in one file, the others, turned, behind something in another.
struct Example {
  ScratchFolder folder;
  std::string first = bytes::tensor_archive({2, 3}, {3, 1}, {0, 1, 2, 3, 4, 5});
  std::string second =
      bytes::tensor_archive({3, 3}, {1, 3}, {99, 6, 9, 12, 7, 10, 13, 8, 11, 14}, 1);

  std::string path() const { return folder.path(kDistributedMetadata); }

  Example() {
    folder.write("__0_0.distcp", first);
    folder.write("__1_0.distcp", "something" + second);
    folder.write(
        kDistributedMetadata,
        metadata({text("w"), tensor({5, 3}, {chunk({0, 0}, {2, 3}), chunk({2, 0}, {3, 3})})},
                 storage("w")));
  }

  std::vector<std::string> storage(const std::string& name) const {
    return {index(name, {0, 0}), info("__0_0.distcp", 0, static_cast<int64_t>(first.size())),
            index(name, {2, 0}), info("__1_0.distcp", 9, static_cast<int64_t>(second.size()))};
  }
};

TEST(DistributedCheckpoint, PutsATensorTogether) {
  const Example example;
  const auto checkpoint = read_distributed(example.path());
  ASSERT_EQ(checkpoint.tensors.size(), 1U);
  const auto& tensor = checkpoint.tensors.front();
  EXPECT_EQ(tensor.name, "w");
  EXPECT_EQ(tensor.sizes, (std::vector<int64_t>{5, 3}));
  EXPECT_EQ(tensor.nbytes, 30U);
  EXPECT_EQ(checkpoint.files.size(), 2U);
  EXPECT_EQ(checkpoint.metadata.at("version"), "1.0.0");
  tensor.pieces->check();
  std::vector<int16_t> got(15);
  tensor.pieces->read(tensor.pieces->base(), 30, got.data());
  std::vector<int16_t> expected(15);
  std::iota(expected.begin(), expected.end(), int16_t{0});
  EXPECT_EQ(got, expected);
}

TEST(DistributedCheckpoint, IsOpenedAsACatalog) {
  const Example example;
  for (const auto& path : {example.path(), example.folder.path("")}) {
    const auto catalog = open_catalog(path);
    const auto& found = catalog.tensors.at("w");
    EXPECT_EQ(found.entry.sizes, (std::vector<int64_t>{5, 3}));
    EXPECT_EQ(found.file->path(), example.folder.path("__0_0.distcp"));
    ASSERT_NE(found.view, nullptr);
    const auto whole = found.tensor();
    EXPECT_TRUE(record::is_lazy(whole));
    EXPECT_TRUE(whole.equal(at::arange(15, at::kShort).view({5, 3})));
    const auto part = found.tensor().slice(0, 1, 4).to(at::kFloat);
    EXPECT_TRUE(part.equal(at::arange(3, 12, at::kFloat).view({3, 3})));
  }
}

TEST(DistributedCheckpoint, AFolderWithAnotherCheckpointBesideIsRefused) {
  const Example example;
  example.folder.write("model.safetensors", safetensors_file("{}", ""));
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { open_catalog(example.folder.path("")); }),
                       "holds 2 checkpoints: 'model.safetensors', '.metadata'"));
  EXPECT_EQ(open_catalog(example.path()).tensors.size(), 1U);
}

TEST(DistributedCheckpoint, AKeyThatLeadsToNoTensorsIsAnError) {
  const Example example;
  EXPECT_EQ(open_catalog(example.path(), {.key = ""}).tensors.size(), 1U);
  EXPECT_TRUE(
      contains(message_of<c10::IndexError>([&] { open_catalog(example.path(), {.key = "model"}); }),
               "has no mapping 'model'"));
}

TEST(DistributedCheckpoint, TwoNamesOfTheSameBytesAreOneStorage) {
  const Example example;
  const auto described = tensor({5, 3}, {chunk({0, 0}, {2, 3}), chunk({2, 0}, {3, 3})});
  auto storage = example.storage("w");
  const auto more = example.storage("v");
  storage.insert(storage.end(), more.begin(), more.end());
  example.folder.write(kDistributedMetadata,
                       metadata({text("w"), described, text("v"), described}, storage));
  const auto checkpoint = read_distributed(example.path());
  ASSERT_EQ(checkpoint.tensors.size(), 2U);
  EXPECT_EQ(checkpoint.tensors[0].storage, checkpoint.tensors[1].storage);
}

TEST(DistributedCheckpoint, RefusesAGapWhenItIsOpenedAndAnotherDtypeWhenItIsRead) {
  const Example example;
  example.folder.write(
      kDistributedMetadata,
      metadata({text("w"), tensor({6, 3}, {chunk({0, 0}, {2, 3}), chunk({2, 0}, {3, 3})})},
               example.storage("w")));
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { read_distributed(example.path()); }),
                       "no piece with elements [5:6, 0:3]"));
  example.folder.write(
      kDistributedMetadata,
      metadata(
          {text("w"), tensor({5, 3}, {chunk({0, 0}, {2, 3}), chunk({2, 0}, {3, 3})}, "bfloat16")},
          example.storage("w")));
  const auto checkpoint = read_distributed(example.path());
  const auto message =
      message_of<c10::ValueError>([&] { checkpoint.tensors.front().pieces->check(); });
  EXPECT_TRUE(contains(message, "got a tensor of Short")) << message;
}

TEST(DistributedCheckpoint, EveryCutOfTheMetadataIsRefused) {
  const Example example;
  std::string document;
  {
    const auto file = File::open(example.path());
    document.resize(file->size());
    file->read(0, document.size(), document.data());
  }
  for (size_t length = 0; length < document.size(); ++length) {
    example.folder.write(kDistributedMetadata, document.substr(0, length));
    message_of<c10::ValueError>([&] { read_distributed(example.path()); });
  }
}

}  // namespace
}  // namespace dormant::checkpoint
