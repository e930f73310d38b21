#include "record/probe.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

// Sizes that are tried as they are, and sizes that are shrunk.
constexpr int64_t kSmall = 6;
constexpr int64_t kLarge = 300;

bool accepted(const std::string& name, const std::string& overload,
              std::vector<c10::IValue> arguments, std::vector<Geometry> results) {
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + name).c_str(), overload.c_str());
  torch::jit::Stack stack(std::move(arguments));
  return cpu_accepts(Call(op, {}, &stack), results);
}

std::vector<Geometry> square(int64_t size, c10::ScalarType dtype) {
  return {Geometry::contiguous({size, size}, dtype)};
}

TEST(CpuAccepts, WhatTheKernelTakes) {
  for (const auto n : {kSmall, kLarge}) {
    const auto x = at::ones({n, n});
    EXPECT_TRUE(accepted("mm", "", {x, x}, square(n, at::kFloat)));
    EXPECT_TRUE(accepted("cumsum", "", {x, 1, c10::IValue()}, square(n, at::kFloat)));
    EXPECT_TRUE(accepted("mul_", "Tensor", {x, x}, square(n, at::kFloat)));
    EXPECT_TRUE(accepted("masked_fill", "Scalar", {x, x > 0, 0.5}, square(n, at::kFloat)));
  }
}

TEST(CpuAccepts, NoDtypeWithoutAKernel) {
  for (const auto n : {kSmall, kLarge}) {
    const auto x = at::ones({n, n});
    const auto z = x.to(at::kComplexFloat);
    EXPECT_FALSE(accepted("sign", "", {z}, square(n, at::kComplexFloat)));
    EXPECT_FALSE(accepted("gt", "Tensor", {z, z}, square(n, at::kBool)));
    EXPECT_FALSE(accepted("bitwise_not", "", {x}, square(n, at::kFloat)));
    EXPECT_FALSE(accepted("mm", "", {x, x.to(at::kHalf)}, square(n, at::kFloat)));
    EXPECT_FALSE(accepted("mm", "", {x, x.to(at::kLong)}, square(n, at::kFloat)));
    EXPECT_FALSE(accepted("mul_", "Tensor", {x.to(at::kLong), x}, square(n, at::kLong)));
    EXPECT_FALSE(accepted("masked_fill_", "Scalar", {x, x, 3}, square(n, at::kFloat)));
  }
}

TEST(CpuAccepts, NothingWhoseNumbersAskForMuchMemory) {
  const std::vector<Geometry> many = {Geometry::contiguous({int64_t{1} << 40}, at::kFloat)};
  for (const char* name : {"arange", "range"}) {
    EXPECT_FALSE(accepted(name, name[0] == 'a' ? "start_out" : "out",
                          {0, int64_t{1} << 40, 1, at::empty({3})}, many));
  }
}

TEST(CpuAccepts, NoScalarThatOverflows) {
  for (const auto n : {kSmall, kLarge}) {
    const auto x = at::ones({n, n}, at::kHalf);
    EXPECT_FALSE(accepted("fill_", "Scalar", {x, -1e9}, square(n, at::kHalf)));
    EXPECT_TRUE(accepted("fill_", "Scalar", {x, -1e4}, square(n, at::kHalf)));
  }
}

TEST(CpuAccepts, NoDimensionOutOfRange) {
  for (const auto n : {kSmall, kLarge}) {
    const auto x = at::ones({n, n});
    EXPECT_FALSE(accepted("cumsum", "", {x, 5, c10::IValue()}, square(n, at::kFloat)));
  }
}

TEST(CpuAccepts, NoOverlapThatTheKernelRefuses) {
  for (const auto n : {kSmall, kLarge}) {
    const auto x = at::ones({n, n});
    const auto index = at::zeros({n, n}, at::kLong);
    EXPECT_FALSE(accepted("gather", "out", {x, 0, index, false, x}, square(n, at::kFloat)));
    EXPECT_TRUE(accepted("gather", "out", {x, 0, index, false, x.clone()}, square(n, at::kFloat)));
  }
}

TEST(CpuAccepts, NoOperatorThatLooksAtValues) {
  for (const auto n : {kSmall, kLarge}) {
    const auto x = at::ones({n, n});
    const auto i = at::ones({n, n}, at::kLong);
    EXPECT_FALSE(accepted("floor_divide", "", {i, i}, square(n, at::kLong)));
    EXPECT_FALSE(accepted("cholesky_inverse", "", {x, false}, square(n, at::kFloat)));
    EXPECT_FALSE(
        accepted("binary_cross_entropy", "", {x, x, c10::IValue(), 0}, square(n, at::kFloat)));
  }
}

TEST(CpuAccepts, NoResultOfAnotherDtype) {
  const auto x = at::ones({kSmall, kSmall});
  EXPECT_FALSE(accepted("sqrt", "", {x}, square(kSmall, at::kDouble)));
  EXPECT_FALSE(accepted("sqrt", "", {x}, {Geometry::contiguous({kSmall}, at::kFloat)}));
}

TEST(CpuAccepts, NumbersThatFitTheTrueSizesOnly) {
  const auto x = at::ones({kLarge, kLarge});
  EXPECT_TRUE(accepted("topk", "", {x, 100, 1, true, true},
                       {Geometry::contiguous({kLarge, 100}, at::kFloat),
                        Geometry::contiguous({kLarge, 100}, at::kLong)}));
  EXPECT_TRUE(accepted("repeat", "", {x, std::vector<int64_t>{1, 1000000}},
                       {Geometry::contiguous({kLarge, kLarge * 1000000}, at::kFloat)}));
}

TEST(CpuAccepts, DrawsFromNoGeneratorOfTheUser) {
  const auto& generator = at::detail::getDefaultCPUGenerator();
  const auto before = generator.get_state();
  const auto x = at::ones({kSmall});
  const std::vector<Geometry> result = {Geometry::of(x)};
  EXPECT_TRUE(accepted("cauchy_", "", {x, 0.0, 1.0, c10::IValue()}, result));
  EXPECT_FALSE(accepted("cauchy_", "", {x, 0.0, -1.0, c10::IValue()}, result));
  EXPECT_TRUE(generator.get_state().equal(before));
}

TEST(CpuAccepts, WritesToNoArgument) {
  const auto x = at::ones({kSmall});
  EXPECT_TRUE(accepted("mul_", "Tensor", {x, x}, {Geometry::of(x)}));
  EXPECT_TRUE(x.equal(at::ones({kSmall})));
}

TEST(CpuAccepts, TheSameWhileRecording) {
  const c10::impl::IncludeDispatchKeyGuard recording(c10::DispatchKey::DeferredInit);
  const c10::impl::ExcludeDispatchKeyGuard real(c10::DispatchKey::DeferredInit);
  const auto x = at::ones({kSmall, kSmall});
  EXPECT_TRUE(accepted("mm", "", {x, x}, square(kSmall, at::kFloat)));
}

}  // namespace
}  // namespace dormant::record
