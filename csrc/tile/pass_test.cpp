#include "tile/pass.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <vector>

#include "system/thread_count.h"

namespace dormant::tile {
namespace {

constexpr int64_t kElements = 10 << 20;  // a few pieces
constexpr TileSize kSize{64 * 1024, 16 * 1024};

/// Counts what is done to its elements, one byte each.
class CountingJob final : public Job {
 public:
  int64_t numel() const override { return kElements; }
  int64_t itemsize() const override { return 4; }
  TileSize tile_size() const override { return kSize; }
  int64_t tile(int64_t bytes) const override { return bytes / 4; }
  size_t thread_bytes(int64_t elements) const override { return static_cast<size_t>(elements) * 4; }
  size_t shared_bytes() const override { return 1000; }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& /*pages*/,
           const std::function<bool(size_t)>& after_tile) override {
    EXPECT_EQ(begin % tile, 0);
    for (; begin < end; begin += tile) {
      if (begin == fails_at) {
        throw std::runtime_error("stop");
      }
      const auto count = std::min(tile, end - begin);
      elements += count;
      if (!after_tile(static_cast<size_t>(count) * 4)) {
        return false;
      }
    }
    return true;
  }
  void finish() override {
    EXPECT_EQ(elements, kElements);
    ++finishes;
  }

  int64_t fails_at = -1;
  std::atomic<int64_t> elements{0};
  int allocations = 0;
  int finishes = 0;

 private:
  void allocate() override { ++allocations; }
};

Jobs counting_jobs(size_t count) {
  Jobs jobs;
  while (jobs.size() < count) {
    jobs.push_back(std::make_unique<CountingJob>());
  }
  return jobs;
}

CountingJob& job(const Jobs& jobs, size_t i) { return static_cast<CountingJob&>(*jobs[i]); }

TEST(PassThreads, MakesEachElementOnceAndFinishesEachJobOnce) {
  for (const int threads : {1, 2}) {
    const auto jobs = counting_jobs(3);
    run(jobs, Plan{threads}, {});
    for (size_t i = 0; i < jobs.size(); ++i) {
      EXPECT_EQ(job(jobs, i).elements, kElements);
      EXPECT_EQ(job(jobs, i).allocations, 1);
      EXPECT_EQ(job(jobs, i).finishes, 1);
      EXPECT_TRUE(jobs[i]->finished);
    }
  }
}

TEST(Pass, WhatStopsItLeavesTheFinishedJobsFinished) {
  const auto jobs = counting_jobs(3);
  job(jobs, 1).fails_at = 0;
  EXPECT_THROW(run(jobs, Plan{1}, {}), std::runtime_error);
  EXPECT_TRUE(jobs[0]->finished);
  EXPECT_TRUE(jobs[1]->begun);
  EXPECT_FALSE(jobs[1]->finished);
  EXPECT_FALSE(jobs[2]->begun);
}

TEST(Pass, WithoutABoundAllThreadsMakeTheBestTiles) {
  const system::ThreadCount threads(7);
  const auto jobs = counting_jobs(2);
  const auto plan = plan_for(jobs, {});
  EXPECT_EQ(plan.threads, 7);
  EXPECT_EQ(plan.tile(*jobs[0]), kSize.best / 4);
}

TEST(Pass, ABudgetTakesLargeTilesThenThreadsThenComfortableTiles) {
  const system::ThreadCount threads(7);
  const auto jobs = counting_jobs(2);
  struct Case {
    size_t budget;
    int threads;
    int64_t tile_bytes;
  };
  for (const auto& [budget, expected_threads, tile_bytes] :
       {Case{2000 + 7 * 64 * 1024, 7, 64 * 1024}, Case{2000 + 7 * 64 * 1024 - 1, 7, 32 * 1024},
        Case{2000 + 7 * 16 * 1024, 7, 16 * 1024}, Case{2000 + 7 * 16 * 1024 - 1, 6, 16 * 1024},
        Case{2000 + 16 * 1024, 1, 16 * 1024}, Case{2000 + 16 * 1024 - 1, 1, 8 * 1024},
        Case{0, 1, kSmallestTileBytes}}) {
    const auto plan = plan_for(jobs, budget);
    EXPECT_EQ(plan.threads, expected_threads) << budget;
    EXPECT_EQ(plan.tile(*jobs[0]) * 4, tile_bytes) << budget;
  }
}

TEST(Pass, WithoutABudgetTilesStayComfortable) {
  const system::ThreadCount threads(7);
  const auto jobs = counting_jobs(2);
  const auto plan = plan_for(jobs, {}, 0);
  EXPECT_EQ(plan.threads, 1);
  EXPECT_EQ(plan.tile(*jobs[0]) * 4, kSize.comfortable);
}

TEST(Pass, WithoutABudgetWhatJobsNeedForThemselvesMakesTilesNoSmaller) {
  const system::ThreadCount threads(2);
  const auto jobs = counting_jobs(2);
  const auto plan = plan_for(jobs, {}, 2 * static_cast<size_t>(kSize.best));
  EXPECT_EQ(plan.threads, 2);
  EXPECT_EQ(plan.tile(*jobs[0]) * 4, kSize.best);
}

TEST(Pass, SharedMemoryIsThatOfTheJobsThatCanBeUnderWay) {
  const auto jobs = counting_jobs(5);
  const auto of_tiles = [](int threads) { return static_cast<size_t>(threads * kSize.best); };
  EXPECT_EQ(bytes_needed(jobs, Plan{1}), of_tiles(1) + 2 * 1000);
  EXPECT_EQ(bytes_needed(jobs, Plan{3}), of_tiles(3) + 4 * 1000);
  EXPECT_EQ(bytes_needed(jobs, Plan{8}), of_tiles(8) + 5 * 1000);
}

}  // namespace
}  // namespace dormant::tile
