#include "decode/gptq.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "decode/decoded_ranges.h"
#include "decode/integer_parts.h"

namespace dormant::decode {
namespace {

using at::Tensor;
using record::Geometry;

struct Example {
  Gptq::Config config;
  Tensor g_idx;  ///< may be undefined
  Tensor qweight;
  Tensor qzeros;
  Tensor scales;

  std::vector<Tensor> parts() const {
    std::vector<Tensor> parts = {qweight, qzeros, scales};
    if (g_idx.defined()) {
      parts.insert(parts.begin(), g_idx);
    }
    return parts;
  }

  Gptq decoder() const {
    return Gptq({config,
                 {"layer", Geometry::of(qweight), Geometry::of(qzeros), Geometry::of(scales),
                  g_idx.defined() ? std::optional(Geometry::of(g_idx)) : std::nullopt}});
  }
};

Tensor random_words(int64_t rows, int64_t columns) {
  return at::randint(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(),
                     {rows, columns}, at::kInt);
}

Example example(int64_t in, int64_t out, Gptq::Config config, bool act_order,
                at::ScalarType dtype = at::kHalf) {
  at::manual_seed(static_cast<uint64_t>(in * out + config.bits));
  const auto group = config.group_size == -1 ? in : config.group_size;
  const auto groups = (in + group - 1) / group;
  Example made{config,
               {},
               random_words(words_of(in, config.bits), out),
               random_words(groups, words_of(out, config.bits)),
               at::randn({groups, out}, at::kFloat).mul(0.01).to(dtype)};
  if (act_order) {
    made.g_idx = at::arange(in, at::kInt)
                     .floor_divide(group)
                     .to(at::kInt)
                     .index_select(0, at::randperm(in, at::kLong));
  }
  return made;
}

/// Codes along dimension 1 of words, least significant bits first.
Tensor codes_of(const Tensor& words, int64_t bits, int64_t count) {
  const auto wide = words.to(at::kLong).bitwise_and(0xffffffffL);
  std::vector<Tensor> columns;
  for (int64_t i = 0; i < count; ++i) {
    const auto bit = i * bits;
    auto value = wide.select(1, bit / 32).bitwise_right_shift(bit % 32);
    if (bit % 32 + bits > 32) {
      value = value.bitwise_or(wide.select(1, bit / 32 + 1).bitwise_left_shift(32 - bit % 32));
    }
    columns.push_back(value.bitwise_and((1 << bits) - 1));
  }
  return at::stack(columns, 1);
}

/// What gptqmodel computes: scales[g_idx] * (weight - zeros[g_idx]).
Tensor expected(const Example& made) {
  const auto bits = made.config.bits;
  const auto out = made.qweight.size(1);
  const auto in = made.g_idx.defined() ? made.g_idx.size(0) : made.qweight.size(0) * 32 / bits;
  const auto group = made.config.group_size == -1 ? in : made.config.group_size;
  auto qzeros = made.qzeros;
  if (made.config.zeros_less_one && bits != 3) {
    // Addition of int32 words, with carries.
    qzeros = qzeros.to(at::kLong).add(0xffffffffL / ((1 << bits) - 1)).bitwise_and(0xffffffffL);
  }
  auto zeros = codes_of(qzeros, bits, out);
  if (made.config.zeros_less_one && bits == 3) {
    zeros = zeros.add(1).bitwise_and(7);
  }
  const auto weight = codes_of(made.qweight.t(), bits, in).t();
  const auto rows = made.g_idx.defined() ? made.g_idx.to(at::kLong)
                                         : at::arange(in, at::kLong).floor_divide(group);
  const auto scales = made.scales.index_select(0, rows);
  return scales * weight.sub(zeros.index_select(0, rows)).to(scales.scalar_type());
}

TEST(Gptq, IsWhatTheLibraryComputes) {
  for (const int64_t bits : {2, 3, 4, 8}) {
    for (const bool less_one : {true, false}) {
      for (const bool act_order : {false, true}) {
        for (const auto dtype : {at::kHalf, at::kBFloat16, at::kFloat}) {
          const auto made = example(128, 96, {bits, 32, less_one}, act_order, dtype);
          const auto whole = decoded(made.decoder(), made.parts());
          EXPECT_TRUE(whole.equal(expected(made))) << made.decoder().name() << ", " << dtype;
        }
      }
    }
  }
}

TEST(Gptq, AnyRangeIsThatOfTheWhole) {
  for (const int64_t bits : {2, 3, 4, 8}) {
    for (const bool act_order : {false, true}) {
      const auto made = example(96, 1064, {bits, 32, true}, act_order);
      const auto whole = decoded(made.decoder(), made.parts());
      EXPECT_TRUE(whole.equal(expected(made)));
      expect_ranges(made.decoder(), made.parts(), whole);
    }
  }
}

TEST(Gptq, SizesNeedNotBeMultiples) {
  for (const int64_t bits : {2, 3, 4, 8}) {
    const auto made = example(75, 53, {bits, 32, true}, true);
    const auto whole = decoded(made.decoder(), made.parts());
    EXPECT_TRUE(whole.equal(expected(made)));
    expect_ranges(made.decoder(), made.parts(), whole);
  }
  const auto whole_column = example(64, 40, {4, -1, true}, false);
  EXPECT_TRUE(decoded(whole_column.decoder(), whole_column.parts()).equal(expected(whole_column)));
}

TEST(Gptq, AGroupThatIsNotThereIsNamed) {
  for (const int32_t group : {4, -1, std::numeric_limits<int32_t>::min()}) {
    auto made = example(128, 8, {4, 32, true}, true);
    made.g_idx[77] = group;
    const auto decoder = made.decoder();
    expect_refused([&] { decoded(decoder, made.parts()); },
                   ("cannot decode layer: g_idx[77] is " + std::to_string(group)).c_str());
    // Where it is not asked for, nothing is wrong.
    const auto out = at::empty({8}, at::kHalf);
    record::run_range(decoder, made.parts(), 0, 8, out.mutable_data_ptr());
  }
}

TEST(Gptq, PartsThatDoNotFitAreRefused) {
  const auto with = [](const auto& change) {
    auto made = example(128, 64, {4, 32, true}, true);
    change(made);
    return [made] { static_cast<void>(made.decoder()); };
  };
  expect_refused(with([](Example& e) { e.config.bits = 5; }), "GPTQ of 5 bits");
  expect_refused(with([](Example& e) { e.config.bits = 8; }), "qweight has shape [16, 64]");
  expect_refused(with([](Example& e) { e.config.group_size = 64; }), "scales has shape [4, 64]");
  expect_refused(with([](Example& e) { e.config.group_size = -2; }), "groups of -2");
  expect_refused(with([](Example& e) { e.qzeros = random_words(4, 9); }),
                 "qzeros has shape [4, 9]");
  expect_refused(with([](Example& e) { e.qzeros = e.qzeros.to(at::kLong); }), "qzeros is Long");
  expect_refused(with([](Example& e) { e.scales = e.scales.to(at::kDouble); }), "scales is Double");
  expect_refused(with([](Example& e) { e.scales = at::ones({4, 63}); }),
                 "scales has shape [4, 63]");
  expect_refused(with([](Example& e) { e.qweight = at::zeros({16}, at::kInt); }),
                 "qweight has shape [16]");
  expect_refused(with([](Example& e) { e.qweight = at::zeros({16, 0}, at::kInt); }),
                 "qweight has shape [16, 0]");
  expect_refused(with([](Example& e) { e.g_idx = at::zeros({129}, at::kInt); }),
                 "qweight has shape [16, 64]");
  expect_refused(with([](Example& e) { e.g_idx = e.g_idx.to(at::kLong); }), "g_idx is Long");
}

}  // namespace
}  // namespace dormant::decode
