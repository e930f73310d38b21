#include "decode/packed_fp4.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "decode/range_check.h"

namespace dormant::decode {
namespace {

using c10::ScalarType;

PackedFp4::Layout mxfp4() {
  return {.packed = ScalarType::Byte,
          .packed_sizes = {2, 3, 2, 16},
          .sizes = {2, 3, 64},
          .scales = ScalarType::Byte,
          .scale_sizes = {2, 3, 2},
          .block_columns = 32,
          .output = ScalarType::BFloat16};
}

TEST(PackedFp4, GivesTheSameForAnyRange) {
  const PackedFp4 plain(mxfp4());
  check_ranges(plain, random_parts(plain));
  EXPECT_EQ(plain.name(), "mxfp4, blocks of 32");
  const PackedFp4 global({.packed = ScalarType::Byte,
                          .packed_sizes = {5, 24},
                          .sizes = {5, 48},
                          .scales = ScalarType::Float8_e4m3fn,
                          .scale_sizes = {5, 3},
                          .block_columns = 16,
                          .output = ScalarType::Float,
                          .global_sizes = std::vector<int64_t>{1}});
  check_ranges(global, random_parts(global));
  EXPECT_EQ(global.name(), "nvfp4, blocks of 16");
}

TEST(PackedFp4, DividesScalesByTheGlobalOne) {
  const PackedFp4 decoder({.packed = ScalarType::Byte,
                           .packed_sizes = {1, 1},
                           .sizes = {1, 2},
                           .scales = ScalarType::Float,
                           .scale_sizes = {1, 1},
                           .block_columns = 2,
                           .output = ScalarType::Float,
                           .global_sizes = std::vector<int64_t>{1}});
  const std::vector<at::Tensor> parts = {at::tensor({0xa7}, at::kByte).view({1, 1}),
                                         at::tensor({3.0f}).view({1, 1}), at::tensor({2.0f})};
  const auto bytes = check_ranges(decoder, parts);
  const auto found = at::from_blob(const_cast<char*>(bytes.data()), {2}, at::kFloat);
  EXPECT_TRUE(at::equal(found, at::tensor({9.0f, -1.5f}))) << found;  // 6 and -1
}

TEST(PackedFp4, RefusesWhatDoesNotFit) {
  auto layout = mxfp4();
  layout.packed_sizes = {2, 3, 2, 15};
  EXPECT_THROW(PackedFp4{layout}, c10::ValueError);
  layout = mxfp4();
  layout.scale_sizes = {2, 3, 3};
  EXPECT_THROW(PackedFp4{layout}, c10::ValueError);
  layout = mxfp4();
  layout.sizes = {2, 3, 63};
  EXPECT_THROW(PackedFp4{layout}, c10::ValueError);
  layout = mxfp4();
  layout.global_sizes = std::vector<int64_t>{2};
  EXPECT_THROW(PackedFp4{layout}, c10::ValueError);
}

}  // namespace
}  // namespace dormant::decode
