#include "checkpoint/partition.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

std::set<size_t> found(const Partition& partition, const Box& range) {
  std::set<size_t> numbers;
  partition.find(range, [&](size_t number) { EXPECT_TRUE(numbers.insert(number).second); });
  return numbers;
}

/// Pieces of a grid, in an order that nobody would choose.
std::vector<Box> grid(const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) {
  std::vector<Box> boxes;
  for (size_t c = columns.size() - 1; c-- > 0;) {
    for (size_t r = 0; r + 1 < rows.size(); ++r) {
      boxes.push_back({{rows[r], columns[c]}, {rows[r + 1], columns[c + 1]}});
    }
  }
  return boxes;
}

TEST(Partition, FindsThePiecesOfARangeAsLookingAtAllDoes) {
  const auto boxes = grid({0, 3, 4, 9, 11}, {0, 1, 5, 8});
  const Partition partition({11, 8}, boxes, "t");
  for (int64_t r = 0; r < 11; ++r) {
    for (int64_t c = 0; c < 8; ++c) {
      for (const Box& range :
           {Box{{r, c}, {r + 1, c + 1}}, Box{{r, c}, {11, 8}}, Box{{0, c}, {r + 1, c + 1}}}) {
        std::set<size_t> expected;
        for (size_t i = 0; i < boxes.size(); ++i) {
          bool meet = true;
          for (size_t k = 0; k < 2; ++k) {
            meet = meet && boxes[i].begin[k] < range.end[k] && range.begin[k] < boxes[i].end[k];
          }
          if (meet) {
            expected.insert(i);
          }
        }
        EXPECT_EQ(found(partition, range), expected) << text_of(range);
      }
    }
  }
}

TEST(Partition, TakesUnevenCutsThatEachPartHasForItself) {
  // Two rows, of which the first is cut into columns and the second into others.
  const std::vector<Box> boxes{
      {{0, 0}, {2, 3}}, {{0, 3}, {2, 8}}, {{2, 0}, {4, 7}}, {{2, 7}, {4, 8}}};
  const Partition partition({4, 8}, boxes, "t");
  EXPECT_EQ(found(partition, {{0, 0}, {4, 8}}), (std::set<size_t>{0, 1, 2, 3}));
  EXPECT_EQ(found(partition, {{1, 2}, {3, 4}}), (std::set<size_t>{0, 1, 2}));
}

TEST(Partition, AScalarIsOnePieceAndNothingIsNone) {
  EXPECT_EQ(found(Partition({}, {{{}, {}}}, "t"), {{}, {}}), (std::set<size_t>{0}));
  EXPECT_EQ(found(Partition({0, 4}, {{{0, 0}, {0, 4}}}, "t"), {{0, 0}, {0, 4}}),
            (std::set<size_t>{}));
  EXPECT_EQ(found(Partition({4}, {{{4}, {4}}, {{0}, {4}}}, "t"), {{0}, {4}}),
            (std::set<size_t>{1}));
}

TEST(Partition, NamesAGap) {
  const auto gap = [](const std::vector<int64_t>& sizes, const std::vector<Box>& boxes) {
    return message_of<c10::ValueError>([&] { Partition(sizes, boxes, "tensor 'w'"); });
  };
  EXPECT_TRUE(contains(gap({4}, {}), "tensor 'w' has no piece with elements [0:4]"));
  EXPECT_TRUE(contains(gap({4}, {{{1}, {4}}}), "[0:1]"));
  EXPECT_TRUE(contains(gap({4}, {{{0}, {3}}}), "[3:4]"));
  EXPECT_TRUE(contains(gap({9}, {{{0}, {3}}, {{5}, {9}}}), "[3:5]"));
  EXPECT_TRUE(contains(gap({4, 4}, {{{0, 0}, {2, 4}}, {{2, 0}, {4, 3}}}), "[2:4, 3:4]"));
  EXPECT_TRUE(contains(gap({}, {}), "no piece"));
}

TEST(Partition, NamesPiecesThatOverlap) {
  const auto text = message_of<c10::ValueError>(
      [] { Partition({4, 4}, {{{0, 0}, {3, 4}}, {{2, 0}, {4, 4}}}, "tensor 'w'"); });
  EXPECT_TRUE(contains(text, "[0:3, 0:4] and [2:4, 0:4] that overlap")) << text;
  message_of<c10::ValueError>([] { Partition({}, {{{}, {}}, {{}, {}}}, "t"); });
  message_of<c10::ValueError>([] { Partition({4}, {{{0}, {4}}, {{0}, {4}}}, "t"); });
}

TEST(Partition, RefusesWhatNoStraightCutDivides) {
  // A pinwheel around one element.
  const std::vector<Box> boxes{
      {{0, 0}, {1, 2}}, {{0, 2}, {2, 3}}, {{2, 1}, {3, 3}}, {{1, 0}, {3, 1}}, {{1, 1}, {2, 2}}};
  message_of<c10::NotImplementedError>([&] { Partition({3, 3}, boxes, "t"); });
}

TEST(Partition, ManyPiecesTakeLittleTime) {
  std::vector<Box> boxes;
  constexpr int64_t kCount = 200'000;
  for (int64_t i = 0; i < kCount; ++i) {
    const auto place = i * 7919 % kCount;
    boxes.push_back({{place, 0}, {place + 1, 8}});
  }
  const Partition partition({kCount, 8}, boxes, "t");
  for (int64_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(found(partition, {{i, 3}, {i + 1, 4}}).size(), 1U);
  }
}

TEST(Partition, CutsThatNestWithoutEndAreRefusedSoon) {
  // Each cut takes one strip off: as deep as there are pieces.
  std::vector<Box> boxes;
  constexpr int64_t kSize = 20'000;
  for (int64_t i = 0; i < kSize; ++i) {
    boxes.push_back({{i, i}, {i + 1, kSize}});
    boxes.push_back({{i + 1, i}, {kSize, i + 1}});
  }
  message_of<c10::NotImplementedError>([&] { Partition({kSize, kSize}, boxes, "t"); });
}

}  // namespace
}  // namespace dormant::checkpoint
