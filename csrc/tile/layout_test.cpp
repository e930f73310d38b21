#include "tile/layout.h"

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <vector>

namespace dormant::tile {
namespace {

using record::Geometry;

Layout in_memory_order(const at::Tensor& tensor) {
  const auto geometry = Geometry::of(tensor);
  Layout layout;
  layout.offset = geometry.offset;
  for (const auto i : memory_order(geometry)) {
    layout.append(geometry.sizes[i], geometry.strides[i]);
  }
  return layout;
}

std::vector<at::Tensor> views() {
  const auto base = at::arange(4 * 6 * 10).view({4, 6, 10});
  return {base,
          base.narrow(1, 2, 3),
          base.narrow(2, 3, 5).narrow(0, 1, 2),
          base.select(2, 9),
          base.slice(1, 1, 6, 4),
          base.permute({2, 0, 1}),
          base.narrow(1, 3, 1),
          base.select(0, 3).select(0, 5).select(0, 9)};
}

TEST(Layout, CountsElementsInTheOrderInWhichTheyLie) {
  for (const auto& view : views()) {
    const auto layout = in_memory_order(view);
    auto expected = std::get<0>(view.reshape({-1}).sort());
    for (int64_t place = 0; place < view.numel(); ++place) {
      ASSERT_EQ(layout.element_at(place), expected[place].item<int64_t>())
          << view.sizes() << view.strides() << " at " << place;
    }
  }
}

TEST(Layout, MergesWhatFollowsEachOther) {
  const auto base = at::arange(4 * 6 * 10).view({4, 6, 10});
  EXPECT_EQ(in_memory_order(base).sizes.size(), 1U);
  EXPECT_EQ(in_memory_order(base.permute({2, 0, 1})).sizes.size(), 1U);
  EXPECT_EQ(c10::IntArrayRef(in_memory_order(base.narrow(1, 2, 3)).sizes),
            (c10::IntArrayRef{4, 30}));
  EXPECT_EQ(in_memory_order(base.select(0, 3).select(0, 5).select(0, 9)).sizes.size(), 1U);
}

TEST(Layout, ContiguousIsWhatPyTorchCallsSo) {
  for (const auto& view : views()) {
    EXPECT_EQ(is_contiguous(Geometry::of(view)), view.is_contiguous())
        << view.sizes() << view.strides();
  }
}

}  // namespace
}  // namespace dormant::tile
