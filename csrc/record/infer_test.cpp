#include "record/infer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

using Answer = std::optional<std::vector<Geometry>>;

template <Answer (*ask)(const Call&)>
Answer asked(const std::string& name, const std::string& overload,
             std::vector<c10::IValue> arguments) {
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + name).c_str(), overload.c_str());
  torch::jit::Stack stack(std::move(arguments));
  return ask(Call(op, {}, &stack));
}

TEST(InferResults, GivesTheGeometryOfEagersResults) {
  const auto x = at::ones({4, 3}).t();
  const auto [values, indices] = at::sort(x, 1);
  for (int again = 0; again < 2; ++again) {
    const auto found = asked<infer_results>("sort", "", {x, 1, false});
    ASSERT_TRUE(found.has_value());
    ASSERT_EQ(found->size(), 2U);
    EXPECT_EQ(found->at(0), Geometry::of(values));
    EXPECT_EQ(found->at(1), Geometry::of(indices));
  }
}

TEST(InferResults, IsEmptyWhereTheMetaKernelRefuses) {
  EXPECT_FALSE(asked<infer_results>("mm", "", {at::ones({2, 3}), at::ones({2, 3})}).has_value());
}

TEST(InferResults, IsEmptyWhereTheCpuKernelRefuses) {
  const auto z = at::ones({3}, at::kComplexFloat);
  for (int again = 0; again < 2; ++again) {
    EXPECT_FALSE(asked<infer_results>("gt", "Tensor", {z, z}).has_value());
  }
}

TEST(InferResults, TellsAliasedArgumentsApart) {
  const auto x = at::ones({4});
  const auto index = at::zeros({4}, at::kLong);
  EXPECT_TRUE(
      asked<infer_written>("gather", "out", {x, 0, index, false, at::empty({4})}).has_value());
  EXPECT_FALSE(asked<infer_written>("gather", "out", {x, 0, index, false, x}).has_value());
}

TEST(InferWritten, GivesTheGeometryThatAWrittenArgumentIsLeftWith) {
  const auto x = at::ones({2, 5});
  const auto found = asked<infer_written>("add", "out", {x, x, 1, at::empty({0})});
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->at(0), Geometry::of(x));
}

}  // namespace
}  // namespace dormant::record
