#include "decode/awq.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "decode/decoded_ranges.h"

namespace dormant::decode {
namespace {

using at::Tensor;
using record::Geometry;

std::vector<Tensor> example(int64_t in, int64_t out, int64_t groups,
                            at::ScalarType dtype = at::kHalf) {
  at::manual_seed(static_cast<uint64_t>(in * out));
  const auto words = [&](int64_t rows) {
    return at::randint(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(),
                       {rows, out / 8}, at::kInt);
  };
  return {words(in), words(groups), at::randn({groups, out}, at::kFloat).mul(0.01).to(dtype)};
}

Awq decoder_of(const std::vector<Tensor>& parts, int64_t group) {
  return Awq(
      {group, {"layer", Geometry::of(parts[0]), Geometry::of(parts[1]), Geometry::of(parts[2])}});
}

/// The codes of words, in the order of columns.
Tensor codes_of(const Tensor& words) {
  std::vector<Tensor> codes;
  for (const int64_t position : {0, 4, 1, 5, 2, 6, 3, 7}) {
    codes.push_back(words.bitwise_right_shift(4 * position).bitwise_and(15));
  }
  return at::stack(codes, 2).flatten(1);
}

Tensor expected(const std::vector<Tensor>& parts, int64_t group) {
  const auto zeros = codes_of(parts[1]).repeat_interleave(group, 0);
  const auto scales = parts[2].repeat_interleave(group, 0);
  return codes_of(parts[0]).sub(zeros).to(scales.scalar_type()) * scales;
}

TEST(Awq, IsWhatTheLibraryComputes) {
  for (const auto dtype : {at::kHalf, at::kBFloat16, at::kFloat}) {
    const auto parts = example(128, 96, 4, dtype);
    EXPECT_TRUE(decoded(decoder_of(parts, 32), parts).equal(expected(parts, 32))) << dtype;
  }
}

TEST(Awq, AnyRangeIsThatOfTheWhole) {
  const auto parts = example(64, 1064, 1);
  const auto decoder = decoder_of(parts, -1);
  const auto whole = decoded(decoder, parts);
  EXPECT_TRUE(whole.equal(expected(parts, 64)));
  expect_ranges(decoder, parts, whole);
}

TEST(Awq, PartsThatDoNotFitAreRefused) {
  const auto parts = example(128, 64, 4);
  for (const int64_t group : {0, -2, 48, 256}) {
    expect_refused([&] { static_cast<void>(decoder_of(parts, group)); }, "AWQ in groups of");
  }
  expect_refused([&] { static_cast<void>(decoder_of(parts, 64)); }, "scales has shape [4, 64]");
  expect_refused([&] { static_cast<void>(decoder_of({parts[0], parts[1][0], parts[2]}, 32)); },
                 "qzeros has shape [8]");
  expect_refused(
      [&] { static_cast<void>(decoder_of({parts[0], parts[1], parts[2].to(at::kInt)}, 32)); },
      "scales is Int");
}

}  // namespace
}  // namespace dormant::decode
