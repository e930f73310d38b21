#include "record/numbers.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>
#include <exception>
#include <limits>
#include <vector>

namespace dormant::record {
namespace {

bool eager_fills(const c10::IValue& number, c10::ScalarType dtype) {
  try {
    at::full({2}, number.toScalar(), dtype);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

TEST(Fits, SaysWhatEagerFills) {
  const double largest = std::numeric_limits<double>::max();
  const std::vector<c10::IValue> numbers = {
      0,    1,    -1,      -255,    -256, 127,  255,     300,          70000,    int64_t{1} << 40,
      0.5,  -1e9, 65504.0, 65520.0, 3e38, 1e39, largest, std::nan(""), HUGE_VAL, -HUGE_VAL,
      true, false};
  for (const auto dtype : {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf,
                           at::kBFloat16, at::kFloat, at::kDouble, at::kBool}) {
    for (const auto& number : numbers) {
      EXPECT_EQ(fits(number, dtype), eager_fills(number, dtype)) << number << " as " << dtype;
    }
  }
}

TEST(Fits, IsFalseForDtypesThatAreNotCommon) {
  EXPECT_FALSE(fits(1, at::kComplexFloat));
  EXPECT_FALSE(fits(1, at::kFloat8_e4m3fn));
  EXPECT_FALSE(fits(1, at::kUInt16));
}

}  // namespace
}  // namespace dormant::record
