#include "decode/scale_grid.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <vector>

namespace dormant::decode {
namespace {

using record::ElementRun;

/// The scale of each element of a range, by way of runs and walk.
std::vector<int64_t> scales_of(const ScaleGrid& grid, int64_t begin, int64_t count) {
  std::vector<ElementRun> runs;
  grid.runs(begin, count, runs);
  std::vector<int64_t> wanted;
  for (const auto& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) {
      wanted.push_back(run.begin + i);
    }
  }
  std::vector<int64_t> found;
  grid.walk(begin, count, [&](int64_t at, int64_t n, int64_t index) {
    EXPECT_EQ(at, begin + static_cast<int64_t>(found.size()));
    found.insert(found.end(), static_cast<size_t>(n), wanted.at(static_cast<size_t>(index)));
  });
  return found;
}

TEST(ScaleGrid, GivesEachElementOfAnyRangeItsScale) {
  struct Case {
    std::vector<int64_t> sizes;
    int64_t block_rows, block_columns;
    std::vector<int64_t> scales;
  };
  for (const auto& [sizes, block_rows, block_columns, scales] :
       {Case{{7, 11}, 3, 4, {3, 3}}, Case{{2, 5, 6}, 2, 3, {2, 3, 2}}, Case{{4, 6}, 1, 6, {4}},
        Case{{4, 6}, 1, 6, {4, 1}}, Case{{3, 4, 5}, 4, 5, {3}}, Case{{3, 4, 5}, 4, 5, {}},
        Case{{1, 9}, 1, 2, {5}}, Case{{6, 2}, 4, 1, {2, 2}}}) {
    const ScaleGrid grid(sizes, block_rows, block_columns, scales);
    const int64_t columns = sizes.back();
    const int64_t rows = sizes[sizes.size() - 2];
    int64_t numel = 1;
    for (const auto size : sizes) {
      numel *= size;
    }
    const int64_t across = (columns + block_columns - 1) / block_columns;
    const int64_t down = (rows + block_rows - 1) / block_rows;
    std::vector<int64_t> all;
    for (int64_t i = 0; i < numel; ++i) {
      const int64_t row = i / columns;
      all.push_back(scales.empty() ? 0
                                   : row / rows * down * across + row % rows / block_rows * across +
                                         i % columns / block_columns);
    }
    for (int64_t begin = 0; begin < numel; ++begin) {
      for (int64_t end = begin + 1; end <= numel; ++end) {
        ASSERT_EQ(scales_of(grid, begin, end - begin),
                  std::vector<int64_t>(all.begin() + begin, all.begin() + end))
            << begin << " to " << end << " of sizes " << c10::IntArrayRef(sizes);
      }
    }
  }
}

TEST(ScaleGrid, WantsTheScalesOfARowOfBlocksOnce) {
  const ScaleGrid grid({256, 256}, 128, 128, {2, 2});
  std::vector<ElementRun> runs;
  grid.runs(0, 256 * 256, runs);
  EXPECT_EQ(runs, (std::vector<ElementRun>{{0, 4}}));
}

TEST(ScaleGrid, RefusesAnotherNumberOfScales) {
  EXPECT_THROW(ScaleGrid({7, 11}, 3, 4, {3, 2}), c10::ValueError);
  EXPECT_THROW(ScaleGrid({7, 11}, 3, 4, {2, 2}), c10::ValueError);
  EXPECT_THROW(ScaleGrid({11}, 1, 4, {3}), c10::ValueError);
  EXPECT_THROW(ScaleGrid({7, 11}, 0, 4, {3, 3}), c10::ValueError);
}

}  // namespace
}  // namespace dormant::decode
