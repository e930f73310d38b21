#include "tile/reader.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "record/decoder_example.h"
#include "record/source_node.h"
#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

using at::Tensor;

constexpr int64_t kElements = 20000;

const std::vector<Build>& builds() {
  static const std::vector<Build> all = {
      [] { return at::empty({kElements}).uniform_(-1, 1); },
      [] { return at::empty({kElements}).normal_().mul_(3); },
      [] { return at::empty({kElements}).bernoulli_(0.3); },
      [] { return at::empty({kElements}).exponential_(); },
      [] { return at::empty({kElements}, at::kBFloat16).normal_().to(at::kFloat); },
      [] { return at::empty({400, 100}).normal_().narrow(1, 30, 50).clone(); },
      [] { return at::empty({kElements / 16, 16}).uniform_(0, 1).t().contiguous(); },
  };
  return all;
}

/// The elements that one reader gives for `runs`, one call for each, put in their places.
Tensor read_each(const Program& program, Runs runs, const Tensor& like,
                 std::optional<uint64_t> fast_seed = {}) {
  const auto result = at::empty(like.sizes(), like.options());
  auto* out = static_cast<std::byte*>(result.mutable_data_ptr());
  Reader reader(program, fast_seed);
  for (const auto& run : runs) {
    reader.read(run, out + static_cast<size_t>(run.begin) * program.itemsize());
  }
  return result;
}

/// All elements, in runs of uneven lengths.
std::vector<Run> uneven_runs() {
  std::vector<Run> runs;
  std::mt19937 random(1);  // NOLINT: the same runs every time
  for (int64_t begin = 0; begin < kElements;) {
    const auto count =
        std::min<int64_t>(1 + static_cast<int64_t>(random() % 3000), kElements - begin);
    runs.push_back({begin, count});
    begin += count;
  }
  return runs;
}

TEST(Reader, MayBeAskedForEarlierElementsAgain) {
  auto runs = uneven_runs();
  std::shuffle(runs.begin(), runs.end(), std::mt19937(2));  // NOLINT: the same order every time
  for (const auto& build : builds()) {
    const auto lazy = lazily(build);
    const auto program = program_of(lazy);
    ASSERT_TRUE(program);
    EXPECT_TRUE(same_bits(read_each(*program, runs, lazy), eagerly(build)));
  }
}

TEST(Reader, PutsTheElementsOfSeveralRunsOneAfterTheOther) {
  // Single elements, neighbors, a long run, and one that comes before them.
  const std::vector<tile::Run> runs = {{5000, 1}, {5001, 1}, {5010, 3}, {7000, 2500}, {17, 40}};
  for (const auto& build : builds()) {
    const auto lazy = lazily(build);
    const auto program = program_of(lazy);
    ASSERT_TRUE(program);
    const auto got = at::empty({total(runs)}, lazy.options());
    Reader(*program).read(runs, got.mutable_data_ptr());
    const auto eager = eagerly(build).view({-1});
    int64_t at = 0;
    for (const auto& run : runs) {
      EXPECT_TRUE(same_bits(got.narrow(0, at, run.count), eager.narrow(0, run.begin, run.count)));
      at += run.count;
    }
  }
}

TEST(Reader, FastValuesDependOnTheSeedAndOnNoCut) {
  const Build build = [] { return at::empty({kElements}).normal_().mul_(3); };
  const auto lazy = lazily(build);
  const auto program = program_of(lazy);
  const auto whole = read_each(*program, tile::Run{0, kElements}, lazy, 1);
  auto runs = uneven_runs();
  EXPECT_TRUE(same_bits(read_each(*program, runs, lazy, 1), whole));
  std::reverse(runs.begin(), runs.end());
  EXPECT_TRUE(same_bits(read_each(*program, runs, lazy, 1), whole));
  EXPECT_FALSE(same_bits(read_each(*program, tile::Run{0, kElements}, lazy, 2), whole));
  EXPECT_FALSE(same_bits(eagerly(build), whole));
}

/// A decoded tensor over lazy parts, and what it must be.
struct Decoded {
  Tensor lazy;
  Tensor expected;
};

Decoded decoded(int64_t rows, int64_t columns) {
  const auto decoder = std::make_shared<record::RowGroups>(rows, columns);
  const auto parts = decoder->example();
  std::vector<Tensor> lazy;
  for (const auto& part : parts) {
    lazy.push_back(record::read_of(part));
  }
  return {record::decode(lazy, decoder), record::RowGroups::expected(parts)};
}

TEST(Reader, DecodesAnyRunsWhereverUnitsBegin) {
  const auto [lazy, expected] = decoded(500, 40);
  const auto program = program_of(lazy);
  ASSERT_NE(program, nullptr);
  EXPECT_EQ(program->steps().back().kind, StepKind::decode);
  auto runs = uneven_runs();
  EXPECT_TRUE(same_bits(read_each(*program, runs, expected), expected));
  std::shuffle(runs.begin(), runs.end(), std::mt19937(3));  // NOLINT: the same order every time
  EXPECT_TRUE(same_bits(read_each(*program, runs, expected), expected));
  std::vector<tile::Run> short_runs;
  for (int64_t begin = 0; begin < kElements; begin += 40) {
    short_runs.push_back({begin + 3, 7});
  }
  const auto out = at::empty({500, 7});
  Reader(*program).read(short_runs, out.mutable_data_ptr());
  EXPECT_TRUE(same_bits(out, expected.narrow(1, 3, 7).contiguous()));
}

TEST(Reader, ReadsOfADecodedTensorAreKnownBefore) {
  const auto [lazy, expected] = decoded(500, 40);
  const auto program = program_of(lazy);
  std::vector<Program::Range> ranges;
  program->append_reads(tile::Run{80 * 40 + 3, 41}, ranges);  // of rows 80 and 81
  ASSERT_EQ(ranges.size(), 3U);
  const auto expect = [](const Program::Range& range, uint64_t offset, size_t nbytes) {
    EXPECT_EQ(range.offset, offset);
    EXPECT_EQ(range.nbytes, nbytes);
  };
  expect(ranges[0], 80 * 4, 2 * 4);
  expect(ranges[1], 0, record::RowGroups::kGroups * 5 * 4);  // which of them only values say
  expect(ranges[2], 80 * 40, 48);
}

TEST(Reader, WhatIsMadeOfDecodedElementsIsMadeInTiles) {
  using Make = std::function<Tensor(const Tensor&)>;
  const std::vector<Make> all = {
      [](const Tensor& t) { return t.to(at::kBFloat16); },
      [](const Tensor& t) { return t.t().contiguous(); },
      [](const Tensor& t) { return t.narrow(1, 5, 21).clone(); },
      [](const Tensor& t) { return t.narrow(0, 111, 90).clone(); },
      [](const Tensor& t) { return t.mul(0.3); },
      [](const Tensor& t) { return at::cat({t.narrow(0, 400, 100), t}, 0); },
      [](const Tensor& t) { return at::stack({t.t(), t.t()}, 0).to(at::kHalf); },
  };
  for (const auto& make : all) {
    const auto [lazy, expected] = decoded(500, 40);
    Tensor made;
    {
      const LazyInit guard;
      made = make(lazy);
    }
    ASSERT_TRUE(record::is_lazy(made));
    const auto history = record::history_of(made);
    EXPECT_NE(Program::of(*history->buffer, history->tail), nullptr);
    dormant::materialize(made);
    EXPECT_TRUE(same_bits(made, make(expected)));
    EXPECT_TRUE(record::is_lazy(lazy));
  }
}

}  // namespace
}  // namespace dormant::tile
