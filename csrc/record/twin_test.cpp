#include "record/twin.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

namespace dormant::record {
namespace {

at::Tensor lazy_numbers() {
  const LazyInit guard;
  return at::arange(6, at::kFloat).mul_(2);
}

TEST(Twin, GivesItsMemoryToTheStorage) {
  const auto tensor = lazy_numbers();
  const auto view = tensor.narrow(0, 1, 2);
  const Twin twin(tensor.storage());
  EXPECT_TRUE(is_lazy(twin.bytes()));
  EXPECT_THROW(twin.give(), c10::ValueError);
  materialize(twin.bytes());
  EXPECT_TRUE(is_lazy(tensor));
  twin.give();
  settle(tensor);
  settle(view);
  EXPECT_EQ(tensor.data_ptr(), twin.bytes().data_ptr());
  EXPECT_TRUE(tensor.equal(at::arange(0, 12, 2, at::kFloat)));
  EXPECT_TRUE(view.equal(at::tensor({2.0F, 4.0F})));
}

TEST(Twin, MayHaveOtherBytesThanTheHistory) {
  const auto tensor = lazy_numbers();
  const Twin twin(tensor.storage());
  MaterializeOptions options;
  options.values = Values::empty;
  materialize(twin.bytes(), options);
  twin.bytes().view(at::kFloat).fill_(7);
  twin.give();
  settle(tensor);
  EXPECT_TRUE(tensor.equal(at::full({6}, 7.0F)));
}

TEST(Twin, MemoryOutlivesEitherOwner) {
  auto tensor = lazy_numbers();
  at::Tensor bytes;
  {
    const Twin twin(tensor.storage());
    bytes = twin.bytes();
    materialize(bytes);
    twin.give();
    settle(tensor);
  }
  tensor.add_(1);
  tensor.reset();
  EXPECT_TRUE(bytes.view(at::kFloat).equal(at::arange(1, 13, 2, at::kFloat)));
}

TEST(Twin, LeavesAloneWhatWasWrittenMeanwhile) {
  const auto tensor = lazy_numbers();
  const Twin twin(tensor.storage());
  materialize(twin.bytes());
  tensor.zero_();
  twin.give();
  EXPECT_TRUE(is_lazy(tensor));
  materialize(tensor);
  EXPECT_TRUE(tensor.equal(at::zeros({6})));
  EXPECT_THROW(Twin(tensor.storage()), c10::ValueError);
}

}  // namespace
}  // namespace dormant::record
