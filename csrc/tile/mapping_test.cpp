#include "tile/mapping.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <gtest/gtest.h>

#include <random>

namespace dormant::tile {
namespace {

using record::Geometry;

/// Source elements of positions [begin, begin + count), one by one.
std::vector<int64_t> elements(const Mapping& mapping, int64_t begin, int64_t count) {
  std::vector<tile::Run> runs;
  mapping.append(begin, count, runs);
  EXPECT_EQ(total(runs), count);
  EXPECT_LE(static_cast<int64_t>(runs.size()), mapping.most_runs(count, 1));
  std::vector<int64_t> found;
  for (const auto& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) {
      found.push_back(run.begin + i);
    }
  }
  return found;
}

/// Which source element ATen's copy_ puts at each element of the destination's memory.
std::vector<int64_t> copied(const at::Tensor& destination, const at::Tensor& source) {
  destination.copy_(source);
  const auto flat = destination.as_strided({destination.numel()}, {1});
  const auto* data = flat.const_data_ptr<int64_t>();
  return {data, data + flat.numel()};
}

TEST(Mapping, ReadsWhatACopyReads) {
  const auto base = at::arange(4 * 6 * 10).view({4, 6, 10});
  const std::vector<at::Tensor> sources = {
      base,
      base.narrow(0, 1, 2),
      base.narrow(1, 2, 3),
      base.narrow(2, 3, 5),
      base.narrow(2, 3, 5).narrow(1, 1, 4),
      base.select(0, 3),
      base.select(1, 2),
      base.slice(0, 0, 4, 2),
      base.slice(1, 1, 6, 3),
      base.transpose(0, 1),
      base.view({24, 10}).narrow(1, 9, 1),
      base.select(2, 4).narrow(0, 2, 1).narrow(1, 3, 1),
      base.narrow(0, 1, 1).expand({3, 6, 10}),
  };
  std::mt19937 random(1);  // NOLINT: the same ranges every time
  for (const auto& source : sources) {
    const auto destination = at::empty(source.sizes(), source.options());
    const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
    if (source.size(-1) == 1 && source.numel() > 1) {
      EXPECT_FALSE(mapping);  // element by element
      continue;
    }
    ASSERT_TRUE(mapping) << source.sizes() << source.strides();
    const auto expected = copied(destination, source);
    EXPECT_EQ(elements(*mapping, 0, source.numel()), expected);
    for (int i = 0; i < 50; ++i) {
      const auto begin = static_cast<int64_t>(random() % source.numel());
      const auto count = static_cast<int64_t>(random() % (source.numel() - begin + 1));
      EXPECT_EQ(elements(*mapping, begin, count),
                std::vector<int64_t>(expected.begin() + begin, expected.begin() + begin + count))
          << source.sizes() << source.strides() << " from " << begin;
    }
  }
}

TEST(Mapping, FollowsTheMemoryOrderOfTheDestination) {
  const auto source = at::arange(2 * 3 * 4).view({2, 3, 4}).permute({2, 0, 1});
  const auto destination = at::empty_like(source);
  ASSERT_EQ(destination.strides(), source.strides());
  const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
  ASSERT_TRUE(mapping);
  EXPECT_EQ(elements(*mapping, 0, 24), copied(destination, source));
}

TEST(Mapping, AContiguousSourceIsOneRun) {
  const auto source = at::arange(3 * 5 * 7).view({3, 5, 7}).narrow(0, 1, 2);
  const auto destination = at::empty(source.sizes(), source.options());
  const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
  std::vector<tile::Run> runs;
  mapping->append(4, 40, runs);
  EXPECT_EQ(runs, (std::vector<tile::Run>{{35 + 4, 40}}));
}

TEST(Mapping, RefusesWhatItCannotReadInRuns) {
  const auto base = at::arange(24).view({4, 6});
  const auto between = [](const at::Tensor& destination, const at::Tensor& source) {
    return Mapping::between(Geometry::of(destination), Geometry::of(source)).has_value();
  };
  EXPECT_TRUE(between(at::empty({4, 6}), base));
  EXPECT_FALSE(between(at::empty({6, 4}), base.t()));
  EXPECT_FALSE(between(at::empty({4, 3}), base.slice(1, 0, 6, 2)));
  EXPECT_FALSE(between(at::empty({4, 6}), base.select(1, 0).unsqueeze(1).expand({4, 6})));
  EXPECT_FALSE(between(at::empty({4, 5}), base));
  EXPECT_FALSE(between(at::empty({4, 12}).slice(1, 0, 6), base));
}

}  // namespace
}  // namespace dormant::tile
