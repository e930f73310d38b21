#include "checkpoint/pieces.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

/// Elements lie where the piece does, in an order of dimensions that the test chooses.
class Ordered final : public PieceLocator {
 public:
  explicit Ordered(bool reversed = false) : reversed_(reversed) {}

  PiecePlace locate(const Piece& piece, c10::ScalarType, const std::string&) const override {
    ++calls;
    PiecePlace place{piece.offset, std::vector<int64_t>(piece.box.begin.size(), 1)};
    int64_t stride = 1;
    for (size_t k = 0; k < place.strides.size(); ++k) {
      const auto i = reversed_ ? k : place.strides.size() - 1 - k;
      place.strides[i] = stride;
      stride *= piece.box.end[i] - piece.box.begin[i];
    }
    return place;
  }

  mutable std::atomic<int> calls{0};

 private:
  const bool reversed_;
};

/// A tensor of 16-bit numbers 0, 1, ..., cut along straight lines, each piece in a file.
struct Example {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> cuts;
  bool reversed = false;
  ScratchFolder folder = {};
  std::shared_ptr<Ordered> locator = std::make_shared<Ordered>(reversed);

  int64_t numel() const {
    return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  }

  Pieces make() const {
    std::vector<Piece> pieces;
    std::vector<size_t> index(sizes.size(), 0);
    while (true) {
      Box box;
      for (size_t i = 0; i < sizes.size(); ++i) {
        box.begin.push_back(cuts[i][index[i]]);
        box.end.push_back(cuts[i][index[i] + 1]);
      }
      pieces.push_back(written(std::move(box), pieces.size()));
      size_t i = 0;
      for (; i < sizes.size() && ++index[i] + 1 == cuts[i].size(); ++i) {
        index[i] = 0;
      }
      if (i == sizes.size()) {
        break;
      }
    }
    return {"folder", "a tensor", c10::ScalarType::Short, sizes, std::move(pieces), locator};
  }

  Piece written(Box box, size_t number) const {
    constexpr uint64_t kBefore = 6;
    std::vector<int64_t> size;
    for (size_t i = 0; i < sizes.size(); ++i) {
      size.push_back(box.end[i] - box.begin[i]);
    }
    const auto count = std::accumulate(size.begin(), size.end(), int64_t{1}, std::multiplies<>());
    std::vector<int16_t> elements(static_cast<size_t>(count));
    for (int64_t place = 0; place < count; ++place) {
      auto rest = place;
      std::vector<int64_t> at(sizes.size());
      for (size_t k = 0; k < sizes.size(); ++k) {
        const auto i = reversed ? k : sizes.size() - 1 - k;
        at[i] = box.begin[i] + rest % size[i];
        rest /= size[i];
      }
      int64_t element = 0;
      for (size_t i = 0; i < sizes.size(); ++i) {
        element = element * sizes[i] + at[i];
      }
      elements[static_cast<size_t>(place)] = static_cast<int16_t>(element);
    }
    std::string bytes(kBefore, 'x');
    bytes.append(reinterpret_cast<const char*>(elements.data()), elements.size() * 2);
    const auto path = folder.write(std::to_string(number), bytes);
    return {std::move(box), File::open(path), kBefore, static_cast<uint64_t>(count) * 2};
  }
};

void expect_all_ranges(const Example& example) {
  const auto pieces = example.make();
  const auto numel = example.numel();
  for (int64_t begin = 0; begin < numel; begin += 5) {
    for (int64_t end = begin + 1; end <= numel; end += 3) {
      std::vector<int16_t> got(static_cast<size_t>(end - begin), -1);
      pieces.read(pieces.base() + static_cast<uint64_t>(begin) * 2, got.size() * 2, got.data());
      for (int64_t i = begin; i < end; ++i) {
        ASSERT_EQ(got[static_cast<size_t>(i - begin)], i) << begin << ":" << end;
      }
    }
  }
  std::vector<char> bytes(3);
  std::vector<int16_t> first(3);
  pieces.read(pieces.base(), 6, first.data());
  pieces.read(pieces.base() + 1, 3, bytes.data());  // from the middle of an element
  EXPECT_EQ(std::memcmp(bytes.data(), reinterpret_cast<char*>(first.data()) + 1, 3), 0);
}

TEST(Pieces, ReadAnyRangeOfRows) { expect_all_ranges({{13, 7}, {{0, 4, 8, 13}, {0, 7}}}); }
TEST(Pieces, ReadAnyRangeOfColumns) { expect_all_ranges({{13, 7}, {{0, 13}, {0, 2, 3, 7}}}); }
TEST(Pieces, ReadAnyRangeOfAGrid) { expect_all_ranges({{12, 9}, {{0, 5, 12}, {0, 4, 9}}}); }
TEST(Pieces, ReadAnyRangeOfThreeDimensions) {
  expect_all_ranges({{5, 4, 6}, {{0, 2, 5}, {0, 3, 4}, {0, 1, 6}}});
}
TEST(Pieces, ReadElementsThatLieInAnotherOrder) {
  expect_all_ranges({{12, 9}, {{0, 5, 12}, {0, 4, 9}}, true});
  expect_all_ranges({{5, 4, 6}, {{0, 2, 5}, {0, 3, 4}, {0, 1, 6}}, true});
}

TEST(Pieces, LongRowsAndTallColumnsAreReadWhole) {
  for (const bool reversed : {false, true}) {
    const Example example{{60, 300}, {{0, 60}, {0, 100, 300}}, reversed};
    const auto pieces = example.make();
    std::vector<int16_t> got(60 * 300);
    pieces.read(pieces.base(), got.size() * 2, got.data());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], static_cast<int16_t>(i));
    }
  }
}

TEST(Pieces, AreLocatedWhenTheyAreWantedAndOnce) {
  const Example example{{12, 9}, {{0, 5, 12}, {0, 4, 9}}};
  const auto pieces = example.make();
  EXPECT_EQ(example.locator->calls, 0);
  pieces.will_read(pieces.base(), 8);
  EXPECT_EQ(example.locator->calls, 0);
  pieces.check();
  pieces.check();
  EXPECT_EQ(example.locator->calls, 4);
}

TEST(Pieces, AScalarIsOneElement) {
  const Example example{{}, {}};
  const auto pieces = example.make();
  int16_t got = -1;
  pieces.read(pieces.base(), 2, &got);
  EXPECT_EQ(got, 0);
}

TEST(Pieces, OneThatIsTheWholeTensorIsShownInPlace) {
  const Example whole{{4, 5}, {{0, 4}, {0, 5}}};
  const auto pieces = whole.make();
  const auto memory = pieces.map(pieces.base() + 4, 8, record::Guard::if_possible);
  ASSERT_NE(memory.get(), nullptr);
  EXPECT_EQ(static_cast<const int16_t*>(memory.get())[1], 3);
  const Example turned{{4, 5}, {{0, 4}, {0, 5}}, true};
  const auto other = turned.make();
  EXPECT_EQ(other.map(other.base(), 8, record::Guard::if_possible).get(), nullptr);
  const Example rows{{4, 5}, {{0, 2, 4}, {0, 5}}};
  const auto two = rows.make();
  EXPECT_EQ(two.map(two.base(), 8, record::Guard::if_possible).get(), nullptr);
}

TEST(Pieces, NoticeAFileThatChanged) {
  const Example example{{4, 5}, {{0, 2, 4}, {0, 5}}};
  const auto pieces = example.make();
  pieces.check();
  example.folder.write("1", "shorter");
  message_of<c10::ValueError>([&] { pieces.check(); });
}

TEST(PiecesThread, ManyThreadsReadAtOnce) {
  const Example example{{40, 30}, {{0, 7, 40}, {0, 11, 30}}};
  const auto pieces = example.make();
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t begin = t; begin + 50 < 1200; begin += 7) {
        std::vector<int16_t> got(50);
        pieces.read(pieces.base() + static_cast<uint64_t>(begin) * 2, 100, got.data());
        for (size_t i = 0; i < got.size(); ++i) {
          wrong += got[i] != begin + static_cast<int64_t>(i);
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace dormant::checkpoint
