#include "checkpoint/torch_archive.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>

#include "checkpoint/memory_file.h"
#include "checkpoint/scratch_folder.h"
#include "checkpoint/torch_bytes.h"

namespace dormant::checkpoint {
namespace {

const std::string kBytes(12, 'x');
const std::string kState = pickled_dict({{"a", PickledTensor{}.bytes()}});

std::unique_ptr<const TorchArchive> read(const std::string& bytes) {
  EXPECT_TRUE(is_torch_file(std::string_view(bytes).substr(0, 512)));
  return read_torch_archive(MemoryFile(bytes));
}

TEST(TorchArchive, ReadsBothLayouts) {
  for (const auto& bytes :
       {torch_zip(kState, {{"0", kBytes}}), torch_legacy(kState, {{"0", kBytes}})}) {
    const auto archive = read(bytes);
    const auto value = *archive->pickle.find(archive->pickle.root(), "a");
    ASSERT_TRUE(archive->objects.is_tensor(value));
    const auto tensor = archive->objects.tensor(value, "a");
    EXPECT_EQ(tensor.dtype, c10::ScalarType::Float);
    EXPECT_EQ(tensor.sizes, std::vector<int64_t>{3});
    const auto& run = archive->storages.at("0");
    EXPECT_EQ(bytes.substr(run.offset, run.nbytes), kBytes);
    EXPECT_EQ(run.nbytes, 12U);
  }
}

TEST(TorchArchive, RefusesEveryPartOfAFile) {
  for (const auto& bytes :
       {torch_zip(kState, {{"0", kBytes}}), torch_legacy(kState, {{"0", kBytes}})}) {
    for (size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_THROW(read_torch_archive(MemoryFile(bytes.substr(0, size))), c10::ValueError) << size;
    }
  }
}

TEST(TorchArchive, ChecksEveryStorage) {
  const auto refusal = [](const std::string& bytes) {
    return message_of<c10::ValueError>([&] { read_torch_archive(MemoryFile(bytes)); });
  };
  EXPECT_TRUE(contains(refusal(torch_zip(kState, {})), "storage '0' has no record 'data/0'"));
  EXPECT_TRUE(contains(refusal(torch_zip(kState, {{"0", "short"}})), "has 5 bytes, expected 12"));
  EXPECT_TRUE(contains(refusal(torch_legacy(kState, {{"0", kBytes}, {"1", ""}})),
                       "only one of the two has ['1']"));
  EXPECT_TRUE(contains(refusal(torch_legacy(kState, {{"0", kBytes + kBytes}})),
                       "has 6 elements, but its tensors expect 3"));
}

TEST(TorchArchive, NamesTheOldestLayout) {
  const std::string tar = "storages" + std::string(249, '\0') + "ustar" + std::string(250, '\0');
  EXPECT_THROW(read(tar), c10::NotImplementedError);
}

struct Geometry {
  const char* name;
  PickledTensor tensor;
  const char* says;  ///< "" where it is accepted
};

void PrintTo(const Geometry& geometry, std::ostream* out) { *out << geometry.name; }

class TorchTensorGeometry : public testing::TestWithParam<Geometry> {};

TEST_P(TorchTensorGeometry, LiesInItsStorageOrIsRefused) {
  const auto& [name, tensor, says] = GetParam();
  const auto archive = read(torch_zip(pickled_dict({{"a", tensor.bytes()}}), {{"0", kBytes}}));
  const auto value = *archive->pickle.find(archive->pickle.root(), "a");
  if (*says == '\0') {
    EXPECT_EQ(archive->objects.tensor(value, "a").sizes.size(), tensor.sizes.size());
    return;
  }
  const auto text = message_of<c10::ValueError>([&] { archive->objects.tensor(value, "a"); });
  EXPECT_TRUE(contains(text, says)) << text;
}

INSTANTIATE_TEST_SUITE_P(
    All, TorchTensorGeometry,
    testing::Values(Geometry{"Whole", {}, ""},
                    Geometry{"Scalar", {.sizes = {}, .strides = {}, .offset = 2}, ""},
                    Geometry{"Expanded", {.sizes = {9, 9}, .strides = {0, 0}}, ""},
                    Geometry{"EmptyAtTheEnd", {.sizes = {0}, .offset = 3}, ""},
                    Geometry{"TooLong", {.sizes = {4}}, "end at byte 16"},
                    Geometry{"TooFar", {.strides = {2}}, "end at byte 20"},
                    Geometry{"TooLate", {.sizes = {1}, .offset = 3}, "end at byte 16"},
                    Geometry{"EmptyBehind", {.sizes = {0}, .offset = 4}, "end at byte 16"},
                    Geometry{"Ranks", {.sizes = {3}, .strides = {1, 1}}, "1 sizes and 2 strides"},
                    Geometry{"ConjugateOfReal",
                             {.metadata = pickled_dict({{"conj", "\x88"}})},
                             "a conjugate with dtype Float"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace dormant::checkpoint
