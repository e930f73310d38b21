#include "record/digest.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <functional>

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

}  // namespace
}  // namespace dormant::record
