#include "record/digest.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "record/node.h"
#include "record/source_node.h"

namespace dormant::record {
namespace {

std::optional<uint64_t> digest_of(uint64_t seed, const std::function<at::Tensor()>& build) {
  at::manual_seed(seed);
  const LazyInit guard;
  return digest(build());
}

at::Tensor drawn() { return at::randn({8, 6}); }

TEST(Digest, IsTheSameWhereTheSameWasRecorded) {
  EXPECT_TRUE(digest_of(1, drawn));
  EXPECT_EQ(digest_of(1, drawn), digest_of(1, drawn));
  EXPECT_EQ(digest_of(1, [] { return at::full({3}, 2.5); }),
            digest_of(2, [] { return at::full({3}, 2.5); }));
}

TEST(Digest, DiffersBySeedPositionDistributionSizeAndConstant) {
  const auto expected = digest_of(1, drawn);
  EXPECT_NE(expected, digest_of(2, drawn));
  EXPECT_NE(expected, digest_of(1, [] {
              at::randn({1});
              return drawn();
            }));
  EXPECT_NE(expected, digest_of(1, [] { return at::rand({8, 6}); }));
  EXPECT_NE(expected, digest_of(1, [] { return at::randn({8, 7}); }));
  EXPECT_NE(expected, digest_of(1, [] { return drawn().add_(at::full({6}, 0.5)); }));
  EXPECT_NE(digest_of(1, [] { return at::full({3}, 2.5); }),
            digest_of(1, [] { return at::full({3}, 3.5); }));
}

TEST(Digest, IsThatOfTheWholeForEachPartPaddedOrNot) {
  const auto expected = digest_of(1, drawn);
  for (int64_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(digest_of(1,
                        [&] {
                          const auto part = drawn().chunk(3, 0)[rank];
                          auto padded = at::zeros({3, 6});
                          padded.narrow(0, 0, part.size(0)).copy_(part);
                          return padded;
                        }),
              expected);
  }
}

TEST(Digest, IsNothingOfWhatHasMemoryOrOnlyZeros) {
  EXPECT_FALSE(digest(at::ones({2})));
  EXPECT_FALSE(digest_of(1, [] { return at::zeros({3}); }));
}

/// Bytes that nobody reads.
class Named final : public Source {
 public:
  explicit Named(std::string name) : name_(std::move(name)) {}
  void read(uint64_t, size_t, void*) const override {}
  const std::string& name() const override { return name_; }

 private:
  const std::string name_;
};

at::Tensor bytes_of(const std::string& name, uint64_t offset) {
  return make_read_tensor(std::make_shared<Named>(name), offset, {8, 6}, at::kFloat);
}

uint64_t history_of_rows(const at::Tensor& rows, double factor = 2) {
  const LazyInit guard;
  return history_digest(rows.narrow(0, 2, 3).clone().mul_(factor));
}

TEST(HistoryDigest, IsTheSameWhateverTheFolder) {
  EXPECT_EQ(history_digest(bytes_of("a/model", 64)), history_digest(bytes_of("b/c/model", 64)));
  EXPECT_EQ(history_of_rows(bytes_of("model", 64)), history_of_rows(bytes_of("model", 64)));
}

TEST(HistoryDigest, DiffersByFilePlaceElementsOperatorAndArgument) {
  const auto file = bytes_of("model", 64);
  const auto expected = history_of_rows(file);
  EXPECT_NE(history_digest(file), history_digest(bytes_of("other", 64)));
  EXPECT_NE(history_digest(file), history_digest(bytes_of("model", 128)));
  EXPECT_NE(history_digest(file), expected);
  EXPECT_NE(history_of_rows(file, 3), expected);
  EXPECT_NE(history_of_rows(file, 2 + 1e-15), expected);
  const LazyInit guard;
  EXPECT_NE(history_digest(file.narrow(0, 1, 3).clone().mul_(2.0)), expected);
  EXPECT_NE(history_digest(file.narrow(0, 2, 3).clone().div_(2.0)), expected);
}

TEST(HistoryDigest, DiffersByDrawsAndCapturedNumbers) {
  const auto drawn_from = [](uint64_t seed) {
    at::manual_seed(seed);
    const LazyInit guard;
    return history_digest(bytes_of("model", 0).clone().add_(drawn()));
  };
  EXPECT_EQ(drawn_from(1), drawn_from(1));
  EXPECT_NE(drawn_from(1), drawn_from(2));
  const auto added = [](float number) {
    const auto real = at::full({6}, number);
    const LazyInit guard;
    return history_digest(bytes_of("model", 0).clone().add_(real));
  };
  EXPECT_EQ(added(1), added(1));
  EXPECT_NE(added(1), added(2));
}

TEST(HistoryDigest, IsZeroOfWhatHasMemory) { EXPECT_EQ(history_digest(at::ones({2})), 0); }

TEST(FileRanges, AreThePlacesOfTensorsInOrder) {
  const LazyInit guard;
  const auto both = at::cat({bytes_of("b", 64).narrow(0, 1, 2), bytes_of("a", 512)});
  const auto ranges = file_ranges(history_of(both)->tail);
  EXPECT_EQ(ranges, (std::set<FileRange>{{"a", 512, 704}, {"b", 64, 256}}));
}

}  // namespace
}  // namespace dormant::record
