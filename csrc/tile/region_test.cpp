#include "tile/region.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace dormant::tile {
namespace {

using record::Geometry;

/// The elements that a write to `view` changes, in order, as ATen finds them.
std::vector<int64_t> written(const at::Tensor& base, const at::Tensor& view) {
  base.zero_();
  view.fill_(1);
  std::vector<int64_t> elements;
  const auto* data = base.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < base.numel(); ++i) {
    if (data[i] != 0) {
      elements.push_back(i);
    }
  }
  return elements;
}

TEST(Region, PlacesAreTheWrittenElementsInMemoryOrder) {
  const auto base = at::zeros({4, 6, 10}, at::kLong);
  const std::vector<at::Tensor> views = {
      base,
      base.narrow(0, 1, 2),
      base.narrow(1, 2, 3),
      base.narrow(2, 3, 5),
      base.narrow(2, 3, 5).narrow(1, 1, 4).narrow(0, 1, 2),
      base.select(2, 9),
      base.slice(2, 0, 10, 2),
      base.slice(2, 1, 10, 3).slice(1, 0, 6, 4),
      base.permute({2, 0, 1}).narrow(0, 2, 3),
      base.select(0, 3).select(0, 5).select(0, 9),
  };
  std::mt19937 random(1);  // NOLINT: the same runs every time
  for (const auto& view : views) {
    const auto region = Region::of(Geometry::of(view));
    ASSERT_TRUE(region) << view.sizes() << view.strides();
    const auto expected = written(base, view);
    ASSERT_EQ(region->numel(), static_cast<int64_t>(expected.size()));
    EXPECT_EQ(region->begin(), expected.front());
    EXPECT_EQ(region->end(), expected.back() + 1);
    for (int i = 0; i < 100; ++i) {
      const auto begin = static_cast<int64_t>(random() % 240);
      const auto count = static_cast<int64_t>(random() % (241 - begin));
      std::vector<Region::Segment> parts;
      region->intersect({begin, count}, parts);
      std::vector<int64_t> elements;
      for (const auto& part : parts) {
        for (int64_t k = 0; k < part.count; ++k) {
          elements.push_back(part.element + k);
          EXPECT_EQ(expected.at(static_cast<size_t>(part.place + k)), part.element + k);
        }
      }
      std::vector<int64_t> inside;
      std::copy_if(expected.begin(), expected.end(), std::back_inserter(inside),
                   [&](int64_t element) { return element >= begin && element < begin + count; });
      EXPECT_EQ(elements, inside) << view.sizes() << view.strides() << " in [" << begin << ", "
                                  << begin + count << ")";
    }
  }
}

TEST(Region, RowsOfAMatrixAreDenseAndColumnsAreNot) {
  const auto matrix = at::zeros({4, 6});
  EXPECT_TRUE(Region::of(Geometry::of(matrix.narrow(0, 1, 2)))->dense());
  EXPECT_TRUE(Region::of(Geometry::of(matrix.t()))->dense());
  EXPECT_FALSE(Region::of(Geometry::of(matrix.narrow(1, 1, 2)))->dense());
}

TEST(Region, ElementsThatMayShareMemoryHaveNone) {
  const auto line = at::zeros({20});
  EXPECT_FALSE(Region::of(Geometry::of(line.narrow(0, 0, 1).expand({3}))));
  EXPECT_FALSE(Region::of(Geometry::of(line.as_strided({4, 3}, {2, 1}))));
  EXPECT_TRUE(Region::of(Geometry::of(line.as_strided({4, 3}, {4, 1}))));
}

TEST(Region, OfNoElementsMeetsNoRun) {
  const auto region = Region::of(Geometry::of(at::zeros({3, 0})));
  ASSERT_TRUE(region);
  std::vector<Region::Segment> parts;
  region->intersect({0, 100}, parts);
  EXPECT_TRUE(parts.empty());
}

}  // namespace
}  // namespace dormant::tile
