#include "record/geometry.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <limits>

namespace dormant::record {
namespace {

TEST(Geometry, LaidOverAStorageIsTheTensorItWasTakenFrom) {
  const auto base = at::arange(24).reshape({2, 3, 4});
  for (const auto& view : {base, base.transpose(0, 2), base.select(1, 2), base.slice(2, 1, 3)}) {
    const auto again = Geometry::of(view).over(view.storage());
    EXPECT_TRUE(again.equal(view)) << view.sizes();
    EXPECT_EQ(again.strides(), view.strides());
    EXPECT_EQ(again.storage_offset(), view.storage_offset());
  }
}

TEST(Geometry, LaidOverAStorageOfAnotherDeviceIsATensorThere) {
  for (const auto dtype : {at::kFloat, at::kByte}) {
    const auto there = at::empty({2, 3}, at::TensorOptions(dtype).device(at::kMeta));
    const auto again = Geometry::of(there).over(there.storage());
    EXPECT_EQ(again.device(), there.device());
    EXPECT_EQ(again.key_set(), there.key_set());
    EXPECT_EQ(again.sizes(), there.sizes());
  }
}

TEST(Geometry, CoversOnlyDenseViewsOfTheWholeStorage) {
  const auto base = at::empty({4, 6});
  const size_t nbytes = base.nbytes();
  EXPECT_TRUE(Geometry::of(base).covers(nbytes));
  EXPECT_TRUE(Geometry::of(base.t()).covers(nbytes));
  EXPECT_TRUE(Geometry::of(base.view({2, 12})).covers(nbytes));
  EXPECT_FALSE(Geometry::of(base.slice(0, 1)).covers(nbytes));
  EXPECT_FALSE(Geometry::of(base.slice(1, 0, 3)).covers(nbytes));
  // As many elements as the storage, some of them twice.
  EXPECT_FALSE(Geometry::of(base.as_strided({4, 6}, {6, 0})).covers(nbytes));
  EXPECT_FALSE(Geometry::of(base.as_strided({4, 6}, {3, 1})).covers(nbytes));
}

TEST(Geometry, RefusesWhatDoesNotFit64Bits) {
  Geometry geometry;
  geometry.sizes = {std::numeric_limits<int64_t>::max() / 2, 3};
  geometry.strides = {4, 1};
  EXPECT_THROW(geometry.nbytes_needed(), c10::ValueError);
  geometry.sizes = {-1};
  geometry.strides = {1};
  EXPECT_THROW(geometry.nbytes_needed(), c10::ValueError);
  geometry.sizes = {2};
  geometry.offset = -4;
  EXPECT_THROW(geometry.nbytes_needed(), c10::ValueError);
}

}  // namespace
}  // namespace dormant::record
