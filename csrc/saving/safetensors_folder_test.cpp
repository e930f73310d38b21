#include "saving/safetensors_folder.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace dormant::saving {
namespace {

std::vector<std::vector<size_t>> divided(const std::vector<uint64_t>& sizes, uint64_t limit) {
  std::vector<std::vector<size_t>> shards;
  const SafetensorsFolder folder(std::vector<std::string>(sizes.size()), sizes, limit);
  for (const auto& file : folder.files()) {
    shards.push_back(file.tensors);
  }
  return shards;
}

using Shards = std::vector<std::vector<size_t>>;

TEST(SafetensorsFolder, FilesAreFilledInOrder) {
  EXPECT_EQ(divided({4, 4, 4, 4, 4}, 8), (Shards{{0, 1}, {2, 3}, {4}}));
  EXPECT_EQ(divided({4, 4, 4}, 12), (Shards{{0, 1, 2}}));
  EXPECT_EQ(divided({}, 12), (Shards{{}}));
  EXPECT_EQ(divided({0, 0}, 1), (Shards{{0, 1}}));
}

TEST(SafetensorsFolder, ALargerTensorHasAFileOfItsOwnAndTheCurrentOneGoesOn) {
  EXPECT_EQ(divided({4, 100, 4, 4}, 8), (Shards{{1}, {0, 2}, {3}}));
  EXPECT_EQ(divided({100}, 8), (Shards{{0}}));
}

TEST(SafetensorsFolder, TheIndexIsSortedAsciiText) {
  const SafetensorsFolder folder({"\xc3\xa9\x7f", "b", "a"}, {1, 1, 1}, 2);
  EXPECT_EQ(folder.index({{"model-00002-of-00002.safetensors", "other"}}),
            "{\n  \"metadata\": {\n    \"total_size\": 3\n  },\n  \"weight_map\": {\n"
            "    \"a\": \"other\",\n"
            "    \"b\": \"model-00001-of-00002.safetensors\",\n"
            "    \"\\u00e9\\u007f\": \"model-00001-of-00002.safetensors\"\n  }\n}\n");
}

}  // namespace
}  // namespace dormant::saving
