#include "tile/tiling.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

constexpr RectangleSize kSize{.row_bytes = 64, .best = 1 << 20};

std::shared_ptr<const Program> in_order() {
  return program_of(lazily([] { return at::empty({3, 300, 640}).normal_(); }));
}

/// Three matrices of 300 rows and 640 columns.
std::shared_ptr<const Program> transposed() {
  return program_of(
      lazily([] { return at::empty({3, 640, 300}).normal_().transpose(1, 2).contiguous(); }));
}

Tiling tiling_of(const Program& program, int64_t unit, bool whole_units) {
  return {program, Run{0, program.numel()}, kSize, unit, whole_units};
}

TEST(Tiling, TilesOfAPieceCoverItsElementsOnce) {
  for (const auto& program : {in_order(), transposed()}) {
    for (const bool whole_units : {false, true}) {
      const auto tiling = tiling_of(*program, 64, whole_units);
      for (const int64_t bytes : {1, 100'000, 700'000, 1 << 30}) {
        const auto tile = tiling.tile(bytes);
        std::vector<int> made(static_cast<size_t>(program->numel()));
        std::vector<record::ElementRun> runs;
        for (int64_t begin = 0; begin < program->numel();) {
          const auto count = tiling.cut(begin, std::min(tile, program->numel() - begin), runs);
          ASSERT_GT(count, 0);
          EXPECT_EQ(total(runs), count);
          for (const auto& run : runs) {
            for (auto i = run.begin; i < run.begin + run.count; ++i) {
              ++made[static_cast<size_t>(i)];
            }
          }
          begin += count;
        }
        EXPECT_EQ(std::count(made.begin(), made.end(), 1), program->numel()) << bytes;
      }
    }
  }
}

TEST(Tiling, RowsOfRectanglesHaveWholeUnitsWhereTheyMust) {
  const auto program = transposed();
  const auto tiling = tiling_of(*program, 64, /*whole_units=*/true);
  ASSERT_TRUE(tiling.by_rectangles());
  for (const int64_t bytes : {1, 200'000, 1 << 20, 1 << 30}) {
    const auto tile = tiling.tile(bytes);
    std::vector<record::ElementRun> runs;
    for (int64_t begin = 0; begin < program->numel();) {
      begin += tiling.cut(begin, std::min(tile, program->numel() - begin), runs);
      for (const auto& run : runs) {
        ASSERT_EQ(run.begin % 64, 0);
        ASSERT_EQ(run.count % 64, 0);
      }
    }
  }
  EXPECT_EQ(tiling_of(*program, 64, /*whole_units=*/false).tile(1), 300);
  EXPECT_EQ(tiling.tile(1), 64 * 300);
}

TEST(Tiling, UnitsFitWhereTheyDivideTheRowsOfNarrowRectangles) {
  EXPECT_TRUE(Tiling::fits(*in_order(), 7));
  EXPECT_TRUE(Tiling::fits(*transposed(), 64));
  EXPECT_TRUE(Tiling::fits(*transposed(), 320));
  EXPECT_FALSE(Tiling::fits(*transposed(), 256));
  // A rectangle of all columns would be a whole matrix.
  EXPECT_FALSE(Tiling::fits(*transposed(), 640));
}

TEST(Tiling, RowsThatFollowEachOtherAreTakenAsOne) {
  std::vector<std::vector<int64_t>> taken;
  const std::vector<record::ElementRun> runs = {{0, 10}, {10, 10}, {40, 5}, {60, 5}, {65, 1}};
  for_each_row(runs, [&](int64_t begin, int64_t count, int64_t element) {
    taken.push_back({begin, count, element});
  });
  EXPECT_EQ(taken, (std::vector<std::vector<int64_t>>{{0, 20, 0}, {40, 5, 20}, {60, 6, 25}}));
}

}  // namespace
}  // namespace dormant::tile
