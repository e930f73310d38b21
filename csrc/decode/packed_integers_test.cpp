#include "decode/packed_integers.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <vector>

#include "decode/decoded_ranges.h"
#include "decode/integer_parts.h"

namespace dormant::decode {
namespace {

using at::Tensor;
using record::Geometry;

enum class Zeros : uint8_t { none, bytes, packed };

struct Example {
  std::vector<int64_t> sizes;
  int64_t bits = 4;
  int64_t group = 0;
  bool one_scale = false;
  Tensor codes, scale, zero, g_idx, shape;

  std::vector<Tensor> parts() const {
    std::vector<Tensor> parts;
    for (const auto& part : {shape, g_idx, codes, scale, zero}) {
      if (part.defined()) {
        parts.push_back(part);
      }
    }
    return parts;
  }

  PackedIntegers decoder() const {
    const auto geometry = [](const Tensor& part) {
      return part.defined() ? std::optional(Geometry::of(part)) : std::nullopt;
    };
    return PackedIntegers({"layer", sizes, bits, group, one_scale, Geometry::of(codes),
                           Geometry::of(scale), geometry(zero), geometry(g_idx), geometry(shape)});
  }
};

Tensor random_words(c10::IntArrayRef sizes) {
  return at::randint(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(),
                     sizes, at::kInt);
}

Tensor random_bytes(c10::IntArrayRef sizes) { return at::randint(-128, 128, sizes, at::kChar); }

Example example(std::vector<int64_t> sizes, int64_t bits, int64_t group, Zeros zeros,
                at::ScalarType dtype = at::kBFloat16) {
  at::manual_seed(static_cast<uint64_t>(sizes.back() + bits));
  Example made;
  made.sizes = sizes;
  made.bits = bits;
  made.group = group;
  const auto rows = sizes[sizes.size() - 2];
  const auto columns = sizes.back();
  const auto with = [&](int64_t down, int64_t across) {
    auto other = sizes;
    other[other.size() - 2] = down;
    other.back() = across;
    return other;
  };
  const auto groups = group == 0 ? 1 : columns / group;
  made.codes = random_words(with(rows, words_of(columns, bits)));
  made.scale = at::randn(with(rows, groups), at::kFloat).mul(0.01).to(dtype);
  if (zeros == Zeros::bytes) {
    made.zero = random_bytes(with(rows, groups));
  } else if (zeros == Zeros::packed) {
    made.zero = random_words(with(words_of(rows, bits), groups));
  }
  return made;
}

/// Codes along the last dimension of words, as signed numbers.
Tensor unpacked(const Tensor& words, int64_t bits, int64_t count) {
  const auto wide = words.to(at::kLong).bitwise_and(0xffffffffL);
  std::vector<Tensor> columns;
  for (int64_t i = 0; i < count; ++i) {
    const auto bit = i * bits;
    auto value = wide.select(-1, bit / 32).bitwise_right_shift(bit % 32);
    if (bit % 32 + bits > 32) {
      value = value.bitwise_or(wide.select(-1, bit / 32 + 1).bitwise_left_shift(32 - bit % 32));
    }
    columns.push_back(value.bitwise_and((1 << bits) - 1).sub(1 << (bits - 1)));
  }
  return at::stack(columns, -1);
}

/// What the library computes, in the dtype of the scale.
Tensor expected(const Example& made) {
  const auto dtype = made.scale.scalar_type();
  const auto columns = made.sizes.back();
  const auto rows = made.sizes[made.sizes.size() - 2];
  const auto spread = [&](const Tensor& grid) {
    if (made.one_scale) {
      return grid;
    }
    return made.g_idx.defined()
               ? grid.index_select(-1, made.g_idx.to(at::kLong))
               : grid.repeat_interleave(made.group == 0 ? columns : made.group, -1);
  };
  auto numbers = unpacked(made.codes, made.bits, columns).to(dtype);
  if (made.zero.defined()) {
    const auto zero = made.zero.scalar_type() == at::kInt
                          ? unpacked(made.zero.transpose(-2, -1), made.bits, rows).transpose(-2, -1)
                          : made.zero;
    numbers = numbers - spread(zero).to(dtype);
  }
  return numbers * spread(made.scale);
}

void expect_decoded(const Example& made) {
  const auto decoder = made.decoder();
  const auto whole = decoded(decoder, made.parts());
  EXPECT_TRUE(whole.equal(expected(made))) << decoder.name();
  expect_ranges(decoder, made.parts(), whole);
}

TEST(PackedIntegers, PackedOnesOfAnyWidth) {
  for (int64_t bits = 1; bits <= 8; ++bits) {
    for (const auto zeros : {Zeros::none, Zeros::bytes, Zeros::packed}) {
      expect_decoded(example({37, 96}, bits, 32, zeros));
      expect_decoded(example({37, 101}, bits, 0, zeros, at::kHalf));
    }
  }
}

TEST(PackedIntegers, RowsMayBeLong) {
  expect_decoded(example({5, 2600}, 4, 8, Zeros::packed, at::kFloat));
  expect_decoded(example({5, 2600}, 3, 2600, Zeros::none, at::kFloat));
}

TEST(PackedIntegers, OneScaleForAll) {
  auto made = example({9, 96}, 4, 0, Zeros::none);
  made.one_scale = true;
  for (const auto& sizes : {std::vector<int64_t>{1}, std::vector<int64_t>{}}) {
    made.scale = at::full(sizes, 0.37, at::kHalf);
    made.zero = at::full(sizes, -3, at::kChar);
    expect_decoded(made);
  }
}

TEST(PackedIntegers, StackedMatrices) {
  for (const int64_t bits : {3, 4}) {
    expect_decoded(example({3, 13, 64}, bits, 32, Zeros::packed));
    expect_decoded(example({2, 3, 13, 64}, bits, 32, Zeros::bytes));
  }
}

TEST(PackedIntegers, ColumnsMayBelongToAnyGroup) {
  for (const auto zeros : {Zeros::bytes, Zeros::packed}) {
    auto made = example({11, 128}, 4, 32, zeros);
    made.g_idx = at::arange(128, at::kInt).remainder(4).to(at::kInt);
    expect_decoded(made);
    // The library leaves this in it where columns are in order.
    const auto ordered = at::full({128}, -1, at::kInt);
    const auto without = [&] {
      auto other = made;
      other.g_idx.reset();
      return expected(other);
    }();
    made.g_idx = ordered;
    EXPECT_TRUE(decoded(made.decoder(), made.parts()).equal(without));
  }
}

TEST(PackedIntegers, AGroupThatIsNotThereIsNamed) {
  auto made = example({11, 128}, 4, 32, Zeros::none);
  made.g_idx = at::zeros({128}, at::kInt);
  for (const int32_t group : {4, -2}) {
    made.g_idx[5] = group;
    expect_refused([&] { decoded(made.decoder(), made.parts()); },
                   ("weight_g_idx[5] is " + std::to_string(group)).c_str());
  }
}

TEST(PackedIntegers, TheShapeInTheFileIsBelieved) {
  auto made = example({11, 128}, 4, 32, Zeros::none);
  made.shape = at::tensor(std::vector<int64_t>{11, 128}, at::kLong);
  expect_decoded(made);
  made.shape[1] = 127;
  expect_refused([&] { decoded(made.decoder(), made.parts()); }, "weight_shape[1] is 127");
}

TEST(PackedIntegers, PartsThatDoNotFitAreRefused) {
  const auto with = [](const auto& change) {
    auto made = example({40, 128}, 4, 32, Zeros::packed);
    change(made);
    return [made] { static_cast<void>(made.decoder()); };
  };
  expect_refused(with([](Example& e) { e.bits = 9; }), "9 bits");
  expect_refused(with([](Example& e) { e.bits = 8; }), "weight_packed has shape [40, 16]");
  expect_refused(with([](Example& e) { e.group = 48; }), "groups of 48 columns");
  expect_refused(with([](Example& e) { e.group = 64; }), "weight_scale has shape [40, 4]");
  expect_refused(with([](Example& e) { e.group = -3; }), "groups of -3");
  expect_refused(with([](Example& e) { e.one_scale = true; }), "160 elements");
  expect_refused(with([](Example& e) { e.sizes = {40, 127}; }), "groups of 32 columns");
  expect_refused(with([](Example& e) { e.sizes = {40}; }), "1 dimensions");
  expect_refused(with([](Example& e) { e.sizes = {0, 128}; }), "weight has shape [0, 128]");
  expect_refused(with([](Example& e) { e.zero = random_words({4, 4}); }),
                 "weight_zero_point has shape [4, 4]");
  expect_refused(with([](Example& e) { e.zero = e.zero.to(at::kLong); }),
                 "weight_zero_point is Long");
  expect_refused(with([](Example& e) { e.codes = random_bytes({40, 16}); }),
                 "weight_packed is Char");
  expect_refused(with([](Example& e) { e.scale = e.scale.to(at::kDouble); }),
                 "weight_scale is Double");
  expect_refused(with([](Example& e) { e.g_idx = at::zeros({127}, at::kInt); }),
                 "weight_g_idx has shape [127]");
  expect_refused(with([](Example& e) { e.shape = at::zeros({3}, at::kLong); }),
                 "weight_shape has shape [3]");
}

}  // namespace
}  // namespace dormant::decode
