#include "tile/walk.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

using at::Tensor;

constexpr int64_t kRows = 300;
constexpr int64_t kColumns = 517;

Tensor whole() { return at::empty({kRows, kColumns}).normal_(); }

/// The walk of what `build` records; impossible where it has no program.
Walk walk(const Build& build) {
  const auto program = program_of(lazily(build));
  return program ? walk_of(*program) : Walk{false, std::nullopt};
}

TEST(Walk, WhatLiesInTheOrderOfItsSourceIsMadeInMemoryOrder) {
  for (const Build& build :
       {Build([] { return whole().mul_(2); }),
        Build([] { return whole().narrow(1, 3, 50).clone(); }),
        Build([] { return whole().slice(1, 0, kColumns, 2).clone(); }),
        Build([] { return whole().narrow(1, 7, 1).expand({kRows, 50}).contiguous(); })}) {
    const auto found = walk(build);
    EXPECT_TRUE(found.possible);
    EXPECT_FALSE(found.transposed);
  }
}

TEST(Walk, ATransposedCopyIsMadeByRectangles) {
  const Transposed turned{kColumns, kRows};
  EXPECT_EQ(walk([] { return whole().t().contiguous(); }).transposed, turned);
  EXPECT_EQ(walk([] { return whole().t().contiguous().to(at::kBFloat16).mul_(2); }).transposed,
            turned);
  EXPECT_EQ(walk([] { return whole().t().contiguous().narrow(1, 20, 33).clone(); }).transposed,
            (Transposed{kColumns, 33}));
  EXPECT_EQ(walk([] { return at::cat({whole().t(), whole().t()}, 1); }).transposed,
            (Transposed{kColumns, 2 * kRows}));
  EXPECT_EQ(walk([] { return at::stack({whole().t(), whole().t()}, 0); }).transposed, turned);
  EXPECT_EQ(walk([] {
              return at::empty({7, 90, 400}).normal_().transpose(1, 2).contiguous();
            }).transposed,
            (Transposed{400, 90}));
}

TEST(Walk, WhatGoesThroughRandomNumbersAgainAndAgainHasNoProgram) {
  EXPECT_FALSE(walk([] {
                 return at::empty({100, 100, 30}).normal_().permute({2, 1, 0}).contiguous();
               }).possible);
  EXPECT_FALSE(walk([] {
                 return whole().t().contiguous().slice(0, 0, kColumns, 2).t().contiguous();
               }).possible);
  EXPECT_FALSE(walk([] {
                 return at::empty({100, 100, 30}).normal_().transpose(0, 1).contiguous();
               }).possible);
  // A small source may be gone through many times.
  EXPECT_TRUE(walk([] {
                return at::empty({30, 20, 10}).normal_().permute({2, 1, 0}).contiguous();
              }).possible);
}

TEST(Walk, ElementsWantedInLogicalOrderAreMadeByRectanglesWhereThatTurns) {
  const auto lazy = lazily([] { return whole(); });
  const auto history = record::history_of(lazy);
  const auto program = [&](const Tensor& view) {
    return Program::of(record::Geometry::of(view), *history->buffer, history->tail);
  };
  EXPECT_FALSE(walk_of(*program(lazy)).transposed);
  EXPECT_FALSE(walk_of(*program(lazy.narrow(1, 5, 100))).transposed);
  EXPECT_TRUE(walk_of(*program(lazy.t())).transposed);
  EXPECT_EQ(program(lazy.narrow(1, 5, 100))->numel(), kRows * 100);
}

}  // namespace
}  // namespace dormant::tile
