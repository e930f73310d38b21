// Both quantizers as the tile engine uses them: in pieces, in any order.

#include <ATen/EmptyTensor.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "quantize/four_bit.h"
#include "quantize/int8_rows.h"
#include "record/quantizer.h"

namespace dormant::quantization {
namespace {

using record::Geometry;
using record::Quantizer;

std::vector<float> evenly_spaced(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = 2.0f * static_cast<float>(i) / static_cast<float>(count - 1) - 1.0f;
  }
  return values;
}

std::shared_ptr<Quantizer> four_bit(int64_t block_size, bool nested) {
  const auto values = evenly_spaced(16);
  const auto map = evenly_spaced(256);
  return nested ? std::make_shared<FourBit>("even", block_size, values, c10::ArrayRef<float>(map))
                : std::make_shared<FourBit>("even", block_size, values);
}

/// Outputs in memory that is full of a pattern.
std::vector<at::Tensor> make_outputs(const Quantizer& quantizer, c10::IntArrayRef sizes) {
  std::vector<at::Tensor> outputs;
  for (const auto& geometry : quantizer.outputs(sizes)) {
    outputs.emplace_back(at::detail::empty_cpu(geometry.sizes, geometry.dtype));
    std::memset(outputs.back().mutable_data_ptr(), 0xa5, outputs.back().nbytes());
  }
  return outputs;
}

void expect_same_bytes(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected,
                       const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(
        std::memcmp(got[i].const_data_ptr(), expected[i].const_data_ptr(), expected[i].nbytes()), 0)
        << where << ": output " << i;
  }
}

/// Cuts of [0, units) at random places, shuffled.
std::vector<std::pair<int64_t, int64_t>> pieces(int64_t units, std::mt19937& engine) {
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t begin = 0; begin < units;) {
    const auto longest = static_cast<uint64_t>(std::min<int64_t>(units - begin, 9));
    const auto end = begin + 1 + static_cast<int64_t>(engine() % longest);
    found.emplace_back(begin, end);
    begin = end;
  }
  std::shuffle(found.begin(), found.end(), engine);
  return found;
}

void expect_tiles_equal_the_whole(const Quantizer& quantizer, c10::IntArrayRef sizes,
                                  c10::ScalarType dtype, unsigned seed) {
  std::mt19937 engine(seed);
  const at::Tensor source = at::randn(sizes).to(dtype);
  const auto whole = make_outputs(quantizer, sizes);
  run_whole(quantizer, source, whole, 1);

  const auto tiled = make_outputs(quantizer, sizes);
  std::vector<void*> memory;
  for (const auto& output : tiled) {
    memory.push_back(output.mutable_data_ptr());
  }
  std::vector<std::vector<char>> scratch;
  for (const auto& geometry : quantizer.scratch(sizes)) {
    scratch.emplace_back(geometry.nbytes_needed(), '\xa5');
    memory.push_back(scratch.back().data());
  }
  const int64_t unit = quantizer.unit(sizes);
  const int64_t units = (source.numel() + unit - 1) / unit;
  const auto width = static_cast<int64_t>(source.element_size());
  for (const auto& [first, last] : pieces(units, engine)) {
    const int64_t begin = first * unit;
    const int64_t end = std::min(last * unit, source.numel());
    // Elements of their own memory: a tile, which ends where its elements do.
    std::vector<char> tile(static_cast<size_t>((end - begin) * width));
    std::memcpy(tile.data(), static_cast<const char*>(source.const_data_ptr()) + begin * width,
                tile.size());
    auto there = memory;
    there[0] = static_cast<char*>(memory[0]) + quantizer.packed_bytes(begin);
    quantizer.run(tile.data(), dtype, sizes, begin, end - begin, there);
  }
  quantizer.finish(sizes, 1, memory);
  expect_same_bytes(
      tiled, whole,
      quantizer.name() + ", seed " + std::to_string(seed) + ", " + c10::toString(dtype));
}

TEST(Quantizers, FourBitTilesEqualTheWholeWhereverTheyAreCut) {
  unsigned seed = 0;
  for (const auto dtype :
       {c10::ScalarType::Float, c10::ScalarType::BFloat16, c10::ScalarType::Half}) {
    for (const int64_t block_size : {32, 64, 1024}) {
      for (const bool nested : {false, true}) {
        for (const int64_t columns : {64, 97, 1000}) {
          expect_tiles_equal_the_whole(*four_bit(block_size, nested), {53, columns}, dtype, ++seed);
        }
      }
    }
  }
}

TEST(Quantizers, ScalesOfAllPartsNestAsThoseOfTheWhole) {
  const auto source = at::randn({300, 97});
  const c10::IntArrayRef sizes = source.sizes();
  const auto nested = four_bit(64, true);
  const auto whole = make_outputs(*nested, sizes);
  record::run_whole(*nested, source, whole, 1);
  const auto plain = four_bit(64, false);
  const auto flat = make_outputs(*plain, sizes);
  record::run_whole(*plain, source, flat, 1);
  const auto got = make_outputs(*nested, sizes);
  std::memcpy(got[0].mutable_data_ptr(), flat[0].const_data_ptr(), flat[0].nbytes());
  static_cast<const FourBit&>(*nested).nest(
      flat[1].const_data_ptr<float>(), flat[1].numel(), 1,
      {got[1].mutable_data_ptr<uint8_t>(), got[2].mutable_data_ptr<float>(),
       got[3].mutable_data_ptr<float>()});
  expect_same_bytes(got, whole, nested->name());
  EXPECT_THROW(
      static_cast<const FourBit&>(*plain).nest(flat[1].const_data_ptr<float>(), flat[1].numel(), 1,
                                               {nullptr, nullptr, nullptr}),
      c10::ValueError);
}

TEST(Quantizers, Int8TilesEqualTheWholeWhereverTheyAreCut) {
  unsigned seed = 100;
  for (const auto dtype :
       {c10::ScalarType::Float, c10::ScalarType::BFloat16, c10::ScalarType::Half}) {
    for (const int64_t columns : {1, 31, 64, 1000}) {
      expect_tiles_equal_the_whole(Int8Rows(), {53, columns}, dtype, ++seed);
    }
  }
}

TEST(Quantizers, OutputsCoverOddAndIncompleteEnds) {
  const auto outputs = four_bit(64, true)->outputs({3, 5461});  // 16,383 elements
  ASSERT_EQ(outputs.size(), 4U);
  EXPECT_EQ(outputs[0], Geometry::contiguous({8192, 1}, c10::ScalarType::Byte));
  EXPECT_EQ(outputs[1], Geometry::contiguous({256}, c10::ScalarType::Byte));
  EXPECT_EQ(outputs[2], Geometry::contiguous({1}, c10::ScalarType::Float));
  EXPECT_EQ(outputs[3], Geometry::contiguous({}, c10::ScalarType::Float));
  EXPECT_EQ(four_bit(64, false)->outputs({3, 5461})[1],
            Geometry::contiguous({256}, c10::ScalarType::Float));
}

TEST(Quantizers, AWholeTensorIsRefusedWhereOutputsDoNotFit) {
  const auto quantizer = four_bit(64, false);
  const at::Tensor source = at::randn({64, 64});
  auto outputs = make_outputs(*quantizer, {64, 63});
  EXPECT_THROW(run_whole(*quantizer, source, outputs, 1), c10::ValueError);
  outputs = make_outputs(*quantizer, {64, 64});
  outputs.pop_back();
  EXPECT_THROW(run_whole(*quantizer, source, outputs, 1), c10::ValueError);
}

TEST(Quantizers, ThreadsShareAWholeTensor) {
  const at::Tensor source = at::randn({1000, 1000});
  const auto quantizer = four_bit(64, true);
  const auto outputs = make_outputs(*quantizer, source.sizes());
  run_whole(*quantizer, source, outputs, 1);
  const auto again = make_outputs(*quantizer, source.sizes());
  run_whole(*quantizer, source, again, 1);
  expect_same_bytes(again, outputs, "a second run");
}

}  // namespace
}  // namespace dormant::quantization
