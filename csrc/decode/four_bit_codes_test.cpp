#include "decode/four_bit_codes.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "decode/range_check.h"

namespace dormant::decode {
namespace {

using c10::ScalarType;
using Kind = FourBitCodes::Kind;

FourBitCodes::Layout nested() {
  FourBitCodes::Nested nested{{}, 4, 0.25f};
  for (size_t i = 0; i < nested.values.size(); ++i) {
    nested.values[i] = static_cast<float>(i) / 256;
  }
  return {.kind = Kind::nf4,
          .packed = ScalarType::Byte,
          .packed_sizes = {53, 1},
          .absmax_sizes = {14},
          .nested_sizes = {4},
          .sizes = {7, 15},
          .block = 8,
          .output = ScalarType::Float,
          .nested = nested};
}

TEST(FourBitCodes, GivesTheSameForAnyRange) {
  const FourBitCodes of_codes(nested());
  check_ranges(of_codes, random_parts(of_codes));
  EXPECT_EQ(of_codes.name(), "nf4, blocks of 8, nested");
  for (const auto packed : {ScalarType::Byte, ScalarType::BFloat16, ScalarType::Float}) {
    const auto width = static_cast<int64_t>(c10::elementSize(packed));
    const FourBitCodes decoder({.kind = Kind::fp4,
                                .packed = packed,
                                .packed_sizes = {96 / width, 1},
                                .absmax_sizes = {6},
                                .nested_sizes = {},
                                .sizes = {3, 64},
                                .block = 32,
                                .output = ScalarType::Half});
    check_ranges(decoder, random_parts(decoder));
  }
}

TEST(FourBitCodes, TakesTheFirstCodeFromTheHighHalf) {
  const FourBitCodes decoder({.kind = Kind::nf4,
                              .packed = ScalarType::Byte,
                              .packed_sizes = {1, 1},
                              .absmax_sizes = {1},
                              .nested_sizes = {},
                              .sizes = {2},
                              .block = 64,
                              .output = ScalarType::Float});
  const std::vector<at::Tensor> parts = {at::tensor({0xf0}, at::kByte).view({1, 1}),
                                         at::tensor({3.0f})};
  const auto bytes = check_ranges(decoder, parts);
  const auto found = at::from_blob(const_cast<char*>(bytes.data()), {2}, at::kFloat);
  EXPECT_TRUE(at::equal(found, at::tensor({3.0f, -3.0f}))) << found;
}

TEST(FourBitCodes, RefusesWhatDoesNotFit) {
  auto layout = nested();
  layout.packed_sizes = {52, 1};
  EXPECT_THROW(FourBitCodes{layout}, c10::ValueError);
  layout = nested();
  layout.absmax_sizes = {13};
  EXPECT_THROW(FourBitCodes{layout}, c10::ValueError);
  layout = nested();
  layout.nested_sizes = {3};
  EXPECT_THROW(FourBitCodes{layout}, c10::ValueError);
  layout = nested();
  layout.block = 7;
  EXPECT_THROW(FourBitCodes{layout}, c10::ValueError);
}

}  // namespace
}  // namespace dormant::decode
