#include "record/validity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "record/called_operator.h"

namespace dormant::record {
namespace {

// The operator that fits (self, ...), as eager runs it and as valid_write judges it.
struct Write : CalledOperator {
  bool judged() const {
    torch::jit::Stack stack = arguments;
    std::vector<Geometry> changed;
    const auto handle = op();
    return valid_write(Call(handle, {}, &stack), changed);
  }
};

TEST(ValidWrite, SaysOfFillsWhatEagerSays) {
  for (const auto dtype : {at::kByte, at::kLong, at::kBool, at::kHalf, at::kBFloat16, at::kFloat,
                           at::kComplexFloat, at::kFloat8_e4m3fn}) {
    const std::vector<c10::IValue> numbers = {-1e9, 300,  -1,   -300,
                                              0.5,  true, 1e39, c10::complex<double>(0, 1)};
    for (const auto& number : numbers) {
      for (const int64_t size : {3, 9000}) {
        const Write fill{"fill_", "Scalar", {at::zeros({size}, dtype), number}};
        EXPECT_EQ(fill.judged(), fill.accepted()) << number << " as " << dtype << " of " << size;
      }
    }
  }
}

TEST(ValidWrite, SaysOfArithmeticWhatEagerSays) {
  for (const auto dtype : {at::kByte, at::kBool, at::kHalf, at::kFloat, at::kComplexFloat}) {
    for (const auto other : {at::kByte, at::kBool, at::kHalf, at::kFloat, at::kComplexFloat}) {
      for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{}, {3}}) {
        for (const char* name : {"add_", "sub_"}) {
          const Write write{name, "Tensor", {at::ones({3}, dtype), at::ones(sizes, other), 1}};
          EXPECT_EQ(write.judged(), write.accepted()) << name << dtype << other << sizes.size();
        }
        for (const char* name : {"mul_", "div_", "copy_"}) {
          Write write{name, "Tensor", {at::ones({3}, dtype), at::ones(sizes, other)}};
          if (write.name == "copy_") {
            write.overload = "";
            write.arguments.emplace_back(false);
          }
          EXPECT_EQ(write.judged(), write.accepted()) << name << dtype << other << sizes.size();
        }
      }
    }
  }
}

TEST(ValidWrite, SaysOfBoundsWhatEagerSays) {
  for (const auto dtype : {at::kByte, at::kHalf, at::kFloat}) {
    for (const auto& bound : std::vector<c10::IValue>{0, 1e9, 1e39, 0.5, c10::IValue()}) {
      const Write write{"clamp_", "", {at::ones({3}, dtype), c10::IValue(), bound}};
      EXPECT_EQ(write.judged(), write.accepted()) << bound << " of " << dtype;
    }
  }
}

TEST(ValidWrite, TellsTheGeometryOfAnOutThatIsResized) {
  const auto x = at::ones({2, 5});
  torch::jit::Stack stack = {x, x, 1, at::empty({0})};
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::add", "out");
  std::vector<Geometry> changed;
  EXPECT_TRUE(valid_write(Call(op, {}, &stack), changed));
  ASSERT_EQ(changed.size(), 1U);
  EXPECT_EQ(changed[0], Geometry::of(x));
}

}  // namespace
}  // namespace dormant::record
