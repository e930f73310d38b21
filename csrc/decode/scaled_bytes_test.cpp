#include "decode/scaled_bytes.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "decode/range_check.h"

namespace dormant::decode {
namespace {

using c10::ScalarType;

TEST(ScaledBytes, GivesTheSameForAnyRange) {
  for (const auto output : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}) {
    for (const auto weight :
         {ScalarType::Float8_e4m3fn, ScalarType::Float8_e5m2, ScalarType::Char}) {
      const ScaledBytes decoder({.weight = weight,
                                 .sizes = {2, 13, 21},
                                 .scales = ScalarType::BFloat16,
                                 .scale_sizes = {2, 3, 3},
                                 .block_rows = 5,
                                 .block_columns = 8,
                                 .output = output});
      check_ranges(decoder, random_parts(decoder));
    }
  }
}

TEST(ScaledBytes, SubtractsZerosAndMultipliesTwice) {
  const ScaledBytes decoder({.weight = ScalarType::Char,
                             .sizes = {2, 3},
                             .scales = ScalarType::Float,
                             .scale_sizes = {2, 1},
                             .block_rows = 1,
                             .block_columns = 3,
                             .output = ScalarType::Float,
                             .factor = 0.5f,
                             .zeros = ScalarType::Char});
  const std::vector<at::Tensor> parts = {at::tensor({1, 2, 3, -4, -5, -6}, at::kChar).view({2, 3}),
                                         at::tensor({10.0f, 100.0f}).view({2, 1}),
                                         at::tensor({1, -4}, at::kChar).view({2, 1})};
  const auto bytes = check_ranges(decoder, parts);
  const auto found = at::from_blob(const_cast<char*>(bytes.data()), {6}, at::kFloat);
  EXPECT_TRUE(at::equal(found, at::tensor({0.0f, 5.0f, 10.0f, 0.0f, -50.0f, -100.0f}))) << found;
}

TEST(ScaledBytes, RefusesOtherDtypes) {
  ScaledBytes::Layout layout{.weight = ScalarType::Float8_e4m3fn,
                             .sizes = {4, 4},
                             .scales = ScalarType::Float,
                             .scale_sizes = {},
                             .output = ScalarType::Float};
  EXPECT_NO_THROW(ScaledBytes{layout});
  auto other = layout;
  other.weight = ScalarType::Byte;
  EXPECT_THROW(ScaledBytes{other}, c10::ValueError);
  other = layout;
  other.scales = ScalarType::Int;
  EXPECT_THROW(ScaledBytes{other}, c10::ValueError);
  other = layout;
  other.output = ScalarType::Double;
  EXPECT_THROW(ScaledBytes{other}, c10::ValueError);
  other = layout;
  other.zeros = ScalarType::Char;
  EXPECT_THROW(ScaledBytes{other}, c10::ValueError);
}

}  // namespace
}  // namespace dormant::decode
