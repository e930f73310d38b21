#include "record/elementwise.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

struct Case {
  const char* name;
  const char* overload;
  std::vector<c10::IValue> arguments;
};

std::optional<std::vector<Geometry>> inferred(const Case& c) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
      (std::string("aten::") + c.name).c_str(), c.overload);
  torch::jit::Stack stack = c.arguments;
  return infer_elementwise(Call(op, {}, &stack));
}

Geometry of_eager(const Case& c) {
  torch::jit::Stack stack = c.arguments;
  c10::Dispatcher::singleton()
      .findSchemaOrThrow((std::string("aten::") + c.name).c_str(), c.overload)
      .callBoxed(stack);
  return Geometry::of(stack.at(0).toTensor());
}

std::optional<int64_t> length(c10::Scalar start, c10::Scalar end, c10::Scalar step,
                              at::ScalarType dtype) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::arange", "start_out");
  torch::jit::Stack stack = {start, end, step, at::empty({0}, dtype)};
  return arange_length(Call(op, {}, &stack));
}

TEST(InferElementwise, GivesTheGeometryOfEager) {
  const auto x = at::ones({3, 1, 5});
  const auto turned = at::ones({5, 4}).t();
  const auto integers = at::ones({3, 1}, at::kLong);
  const std::vector<Case> cases = {
      {"neg", "", {turned}},
      {"exp", "", {integers}},
      {"mul", "Tensor", {x, at::ones({4, 1})}},
      {"mul", "Tensor", {turned, turned}},
      {"add", "Tensor", {x, integers, 1}},
      {"sub", "Tensor", {x.to(at::kHalf), integers, 2.5}},
      {"div", "Tensor", {integers, integers}},
      {"maximum", "", {x, integers}},
      {"gt", "Tensor", {x, integers}},
      {"le", "Scalar", {turned, 0.5}},
      {"cat", "", {c10::List<at::Tensor>({at::ones({2, 3}), at::ones({4, 3})}), 0}},
      {"cat", "", {c10::List<at::Tensor>({at::ones({2, 3}), at::ones({2, 1})}), -1}},
      {"stack", "", {c10::List<at::Tensor>({turned.contiguous(), at::ones({4, 5})}), 1}},
  };
  for (const auto& c : cases) {
    const auto found = inferred(c);
    ASSERT_TRUE(found && found->size() == 1) << c.name;
    EXPECT_TRUE(found->front() == of_eager(c)) << c.name;
  }
}

TEST(InferElementwise, LeavesToTheMetaKernelWhatItDoesNotKnow) {
  const auto x = at::ones({2, 3});
  const std::vector<Case> cases = {
      {"mul", "Tensor", {x, at::ones({2})}},  // eager refuses
      {"add", "Tensor", {at::ones({2}, at::kLong), at::ones({2}, at::kLong), 0.5}},
      {"div", "Tensor_mode", {x, x, "floor"}},
      {"mul", "Tensor", {x.to(at::kComplexFloat), x}},
      {"cat", "", {c10::List<at::Tensor>({x, at::ones({2, 3}, at::kLong)}), 0}},
      {"cat", "", {c10::List<at::Tensor>({x, at::ones({3, 3})}), 1}},
      {"stack", "", {c10::List<at::Tensor>({x, x}), 4}},
      {"cumsum", "", {x, 0, c10::IValue()}},
  };
  for (const auto& c : cases) {
    EXPECT_FALSE(inferred(c).has_value()) << c.name;
  }
}

TEST(ArangeLength, IsThatOfEager) {
  const std::vector<std::vector<c10::Scalar>> ranges = {
      {0, 5, 1},   {2, 11, 3},     {0, 0, 1},   {5, 0, -2},  {-3, 4, 7},     {0.5, 3.25, 1},
      {0, 1, 0.1}, {1, -1, -0.25}, {0, 300, 1}, {0, 1e6, 7}, {0, 100000, 1}, {-0.0, 2.0, 1e-3},
  };
  for (const auto dtype : {at::kLong, at::kInt, at::kShort, at::kByte, at::kFloat, at::kDouble,
                           at::kHalf, at::kBFloat16}) {
    for (const auto& range : ranges) {
      const auto found = length(range[0], range[1], range[2], dtype);
      const bool integers =
          range[0].isIntegral(false) && range[1].isIntegral(false) && range[2].isIntegral(false);
      EXPECT_EQ(found.has_value(), integers || c10::isFloatingType(dtype));
      if (found) {
        EXPECT_EQ(*found, at::arange(range[0], range[1], range[2], dtype).numel())
            << range[0] << ", " << range[1] << ", " << range[2] << ", " << dtype;
      }
    }
  }
}

TEST(ArangeLength, IsNotToldWhereTheKernelRefusesOrRounds) {
  EXPECT_FALSE(length(0, 5, 0, at::kLong));
  EXPECT_FALSE(length(0, 5, -1, at::kLong));
  EXPECT_FALSE(length(5, 0, 1, at::kFloat));
  EXPECT_FALSE(length(0, int64_t{1} << 40, 1, at::kLong));
  EXPECT_FALSE(length(0, std::numeric_limits<double>::quiet_NaN(), 1, at::kFloat));
  EXPECT_FALSE(length(0, std::numeric_limits<double>::infinity(), 1, at::kFloat));
  EXPECT_FALSE(length(0, 5, 1, at::kBool));
  EXPECT_FALSE(length(0, 5, 1, at::kComplexFloat));
}

}  // namespace
}  // namespace dormant::record
