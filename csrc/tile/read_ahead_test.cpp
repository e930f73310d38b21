#include "tile/read_ahead.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace dormant::tile {
namespace {

using std::chrono::milliseconds;

/// Byte i is a function of i; remembers what it was asked for.
class FarSource final : public record::Source {
 public:
  explicit FarSource(milliseconds latency = milliseconds(0)) : latency_(latency) {}

  static uint8_t byte(uint64_t offset) { return static_cast<uint8_t>(offset * 31 + offset / 251); }

  void read(uint64_t offset, size_t count, void* out) const override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      reads.emplace_back(offset, count);
      most_at_a_time = std::max(most_at_a_time, ++at_a_time_);
    }
    std::this_thread::sleep_for(latency_);
    if (offset <= fails_at && fails_at < offset + count) {
      throw std::runtime_error("no");
    }
    for (size_t i = 0; i < count; ++i) {
      static_cast<uint8_t*>(out)[i] = byte(offset + i);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    --at_a_time_;
  }

  size_t preferred_read_bytes() const override { return 1 << 20; }
  const std::string& name() const override { return name_; }

  /// How often the byte was read that was read most often.
  int most_often() const {
    int most = 0;
    for (const auto& [begin, count] : reads) {
      int here = 0;
      for (const auto& [other, n] : reads) {
        here += other <= begin && begin < other + n ? 1 : 0;
      }
      most = std::max(most, here);
    }
    return most;
  }

  mutable std::vector<std::pair<uint64_t, size_t>> reads;
  mutable int most_at_a_time = 0;
  uint64_t fails_at = UINT64_MAX;

 private:
  const milliseconds latency_;
  const std::string name_ = "far";
  mutable std::mutex mutex_;
  mutable int at_a_time_ = 0;
};

using Pieces = std::vector<std::vector<std::pair<uint64_t, size_t>>>;

/// What `pieces` read of a source, each list in a piece.
struct Pass {
  std::shared_ptr<FarSource> source;
  Pieces pieces;
  size_t bytes = 16 << 20;
  std::function<bool()> go_on = [] { return true; };

  std::unique_ptr<ReadAhead> start() const {
    return std::make_unique<ReadAhead>(
        ReadAhead::Options{bytes, pieces.size(),
                           [this](size_t piece, ReadAhead::Ranges& ranges) {
                             for (const auto& [offset, count] : pieces[piece]) {
                               ranges.push_back({source, offset, count});
                             }
                           },
                           go_on});
  }

  /// Reads a piece a tile at a time, and whether all of it was right.
  bool read(ReadAhead& ahead, size_t piece) const {
    constexpr size_t kTile = 1000;
    const ReadAhead::Scope scope(&ahead, piece);
    bool right = true;
    std::vector<uint8_t> tile(kTile);
    for (const auto& [offset, count] : pieces[piece]) {
      for (size_t done = 0; done < count; done += kTile) {
        const auto n = std::min(kTile, count - done);
        ReadAhead::read(*source, offset + done, n, tile.data());
        for (size_t i = 0; i < n; ++i) {
          right = right && tile[i] == FarSource::byte(offset + done + i);
        }
      }
    }
    return right;
  }
};

TEST(ReadAheadThread, NeighborsShareReadsAndEachByteIsReadOnce) {
  Pass pass{std::make_shared<FarSource>(), {}};
  for (size_t i = 0; i < 1000; ++i) {
    pass.pieces.push_back({{i * 10'000, 10'000}});
  }
  const auto ahead = pass.start();
  for (size_t i = 0; i < pass.pieces.size(); ++i) {
    EXPECT_TRUE(pass.read(*ahead, i));
  }
  EXPECT_EQ(pass.source->most_often(), 1);
  EXPECT_LE(pass.source->reads.size(), 12u);
  size_t sum = 0;
  for (const auto& [offset, count] : pass.source->reads) {
    sum += count;
  }
  EXPECT_EQ(sum, 10'000'000u);
}

TEST(ReadAheadThread, ReadsAreUnderWayAtTheSameTime) {
  Pass pass{std::make_shared<FarSource>(milliseconds(50)), {{{0, 12 << 20}}}};
  EXPECT_TRUE(pass.read(*pass.start(), 0));
  EXPECT_GE(pass.source->most_at_a_time, 8);
  EXPECT_EQ(pass.source->most_often(), 1);
}

TEST(ReadAheadThread, OneBlockOfMemoryIsEnough) {
  Pass pass{std::make_shared<FarSource>(), {{{0, 1 << 20}}, {{1 << 20, 1 << 20}}}, 64 << 10};
  const auto ahead = pass.start();
  EXPECT_TRUE(pass.read(*ahead, 0));
  EXPECT_TRUE(pass.read(*ahead, 1));
  EXPECT_EQ(pass.source->most_often(), 1);
}

TEST(ReadAheadThread, LessMemoryThanABlockMeansReadsOfTheirOwn) {
  Pass pass{std::make_shared<FarSource>(), {{{0, 100'000}}}, 1000};
  EXPECT_TRUE(pass.read(*pass.start(), 0));
  EXPECT_EQ(pass.source->most_often(), 1);
}

TEST(ReadAheadThread, PiecesThatWantTheSameBytesShareThem) {
  Pass pass{std::make_shared<FarSource>(), {{{0, 100'000}}, {{0, 100'000}}, {{50'000, 100'000}}}};
  const auto ahead = pass.start();
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(pass.read(*ahead, i));
  }
  EXPECT_EQ(pass.source->most_often(), 1);
}

TEST(ReadAheadThread, RangesFarApartAreReadApart) {
  Pass pass{std::make_shared<FarSource>(), {{{0, 1000}, {1 << 20, 1000}, {2 << 20, 1000}}}};
  EXPECT_TRUE(pass.read(*pass.start(), 0));
  ASSERT_EQ(pass.source->reads.size(), 3u);
  EXPECT_EQ(pass.source->reads.front().second, 1000u);
}

TEST(ReadAheadThread, AnyOrderWithinAPieceAndThreadsThatStarveEachOtherGoOn) {
  constexpr size_t kPieces = 16;
  constexpr size_t kParts = 8;
  Pass pass{std::make_shared<FarSource>(milliseconds(1)), {}, 256 << 10};
  for (size_t i = 0; i < kPieces; ++i) {
    std::vector<std::pair<uint64_t, size_t>> parts;
    for (size_t j = 0; j < kParts; ++j) {  // the last comes first
      parts.emplace_back((i * kParts + kParts - 1 - j) * (256 << 10), 100'000);
    }
    pass.pieces.push_back(std::move(parts));
  }
  const auto ahead = pass.start();
  std::atomic<size_t> next{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (auto piece = next++; piece < kPieces; piece = next++) {
        wrong += pass.read(*ahead, piece) ? 0 : 1;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
}

TEST(ReadAheadThread, APieceThatReadsLessThanItSaidDoesNotStopTheOthers) {
  Pass pass{std::make_shared<FarSource>(), {}, 128 << 10};
  for (size_t i = 0; i < 20; ++i) {
    pass.pieces.push_back({{i << 20, 100'000}});
  }
  const auto ahead = pass.start();
  for (size_t i = 0; i < 20; ++i) {
    if (i % 2 == 0) {
      const ReadAhead::Scope nothing_is_read(ahead.get(), i);
    } else {
      EXPECT_TRUE(pass.read(*ahead, i));
    }
  }
  EXPECT_EQ(pass.source->most_often(), 1);
}

TEST(ReadAheadThread, WhatAReadThrowsReachesWhoeverWantsTheBytes) {
  Pass pass{std::make_shared<FarSource>(), {{{0, 1000}}, {{1 << 20, 1000}}}};
  pass.source->fails_at = (1 << 20) + 5;
  const auto ahead = pass.start();
  EXPECT_TRUE(pass.read(*ahead, 0));
  EXPECT_THROW(pass.read(*ahead, 1), std::runtime_error);
}

TEST(ReadAheadThread, WhoWaitsCanBeStoppedAndTheReadOutlivesThePass) {
  Pass pass{std::make_shared<FarSource>(milliseconds(1000)), {{{0, 1000}}}};
  pass.go_on = [] { return false; };
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(pass.read(*pass.start(), 0), c10::Error);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(900));
  while (pass.source.use_count() > 1) {  // the thread in the background lets go of it
    std::this_thread::sleep_for(milliseconds(10));
  }
}

TEST(ReadAheadThread, APassThatStopsGivesUpWhatItReadAhead) {
  auto source = std::make_shared<FarSource>();
  Pieces pieces;
  for (uint64_t i = 0; i < 8; ++i) {
    pieces.push_back({{i * (4 << 20), 100'000}});
  }
  const Pass pass{source, pieces};
  for (int round = 0; round < 20; ++round) {
    const auto ahead = pass.start();
    EXPECT_TRUE(pass.read(*ahead, 0));
    std::this_thread::sleep_for(milliseconds(round % 4));  // some blocks are queued, others read
  }
}

TEST(ReadAheadThread, OutsideAPieceReadsAreTheSources) {
  const FarSource source;
  std::vector<uint8_t> bytes(10);
  ReadAhead::read(source, 5, bytes.size(), bytes.data());
  EXPECT_EQ(bytes[0], FarSource::byte(5));
}

}  // namespace
}  // namespace dormant::tile
