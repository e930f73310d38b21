#include "tile/program_job.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "record/source_node.h"
#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

using at::Tensor;

constexpr Medium kMemory{/*in_place=*/true, {.row_bytes = 64, .best = 2 << 20}};
constexpr Medium kFile{/*in_place=*/false, {.row_bytes = 4096, .best = 8 << 20}};
constexpr std::byte kUntouched{0x5a};

/// Keeps what it makes, and which parts were handed over.
class KeepingJob final : public ProgramJob {
 public:
  struct Stored {
    int64_t element;
    int64_t count;
  };

  KeepingJob(const std::shared_ptr<const Program>& program, Medium medium)
      : KeepingJob(program, medium, Run{0, program->numel()}) {}
  KeepingJob(const std::shared_ptr<const Program>& program, Medium medium, Run elements)
      : ProgramJob(program, elements, medium),
        bytes_(static_cast<size_t>(elements.count) * program->itemsize(), kUntouched) {}

  /// The elements as one row.
  Tensor elements(at::ScalarType dtype) {
    return at::from_blob(bytes_.data(), {numel()}, at::TensorOptions().dtype(dtype));
  }
  const std::vector<Stored>& stored() const { return stored_; }

 private:
  std::byte* memory() const override { return bytes_.data(); }
  void store(int64_t element, const std::byte* data, size_t nbytes) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    stored_.push_back({element, static_cast<int64_t>(nbytes) / itemsize()});
    std::memcpy(bytes_.data() + element * itemsize(), data, nbytes);
  }

  mutable std::vector<std::byte> bytes_;
  mutable std::vector<Stored> stored_;
  mutable std::mutex mutex_;
};

Tensor matrix() { return at::empty({300, 517}).normal_(); }
Tensor turned() { return matrix().t().contiguous(); }
Tensor stack_of_turned() { return at::empty({7, 90, 400}).normal_().transpose(1, 2).contiguous(); }

std::shared_ptr<const Program> lower(const Build& build) {
  auto program = program_of(lazily(build));
  EXPECT_TRUE(program);
  return program;
}

bool go_on(size_t /*bytes*/) { return true; }

/// Makes elements [begin, end) in tiles of about `bytes`.
void make(ProgramJob& job, int64_t begin, int64_t end, int64_t bytes) {
  system::Pages pages;
  EXPECT_TRUE(job.run(begin, end, job.tile(bytes), pages, go_on));
}

TEST(ProgramJob, MakesTheSameElementsForMemoryAndForAFile) {
  for (const Build& build : {Build(matrix), Build(turned), Build(stack_of_turned)}) {
    const auto expected = eagerly(build).flatten();
    const auto program = lower(build);
    for (const auto& medium : {kMemory, kFile}) {
      for (const int64_t bytes : {1, 4096, 1 << 20}) {
        KeepingJob job(program, medium);
        make(job, 0, job.numel(), bytes);
        EXPECT_TRUE(same_bits(job.elements(at::kFloat), expected)) << bytes;
      }
    }
  }
}

TEST(ProgramJob, WhatIsHandedOverIsEachElementOnce) {
  for (const Build& build : {Build(matrix), Build(turned), Build(stack_of_turned)}) {
    KeepingJob job(lower(build), kFile);
    make(job, 0, job.numel(), 1 << 16);
    auto stored = job.stored();
    std::sort(stored.begin(), stored.end(),
              [](const auto& a, const auto& b) { return a.element < b.element; });
    int64_t next = 0;
    for (const auto& [element, count] : stored) {
      ASSERT_EQ(element, next);
      ASSERT_GT(count, 0);
      next += count;
    }
    EXPECT_EQ(next, job.numel());
  }
}

TEST(ProgramJob, ForMemoryTilesInOrderAreMadeWhereTheyBelong) {
  KeepingJob in_order(lower(matrix), kMemory);
  make(in_order, 0, in_order.numel(), 4096);
  EXPECT_TRUE(in_order.stored().empty());
  KeepingJob by_rectangles(lower(turned), kMemory);
  make(by_rectangles, 0, by_rectangles.numel(), 4096);
  EXPECT_FALSE(by_rectangles.stored().empty());
  // A buffer for a tile is counted where there is one.
  const auto more = [](const ProgramJob& a, const ProgramJob& b) {
    return a.thread_bytes(6400) - b.thread_bytes(6400);
  };
  const KeepingJob for_file(lower(matrix), kFile);
  EXPECT_EQ(more(for_file, in_order), 6400 * sizeof(float));
}

TEST(ProgramJob, OnlyTheElementsThatWereAskedForAreMade) {
  const auto program = lower(matrix);
  const auto expected = eagerly(matrix).flatten();
  for (const auto& medium : {kMemory, kFile}) {
    for (const auto& [begin, count] :
         std::vector<tile::Run>{{0, 517}, {1003, 70001}, {155000, 100}}) {
      KeepingJob job(program, medium, tile::Run{begin, count});
      EXPECT_FALSE(job.by_rectangles());
      ASSERT_EQ(job.numel(), count);
      make(job, 0, count, 4096);
      EXPECT_TRUE(same_bits(job.elements(at::kFloat), expected.narrow(0, begin, count))) << begin;
    }
  }
}

TEST(ProgramJob, APieceTouchesNoOther) {
  for (const Build& build : {Build(matrix), Build(turned)}) {
    for (const auto& medium : {kMemory, kFile}) {
      KeepingJob job(lower(build), medium);
      const auto tile = job.tile(4096);
      system::Pages pages;
      EXPECT_TRUE(job.run(2 * tile, 4 * tile, tile, pages, go_on));
      const auto made = job.elements(at::kInt).ne(0x5a5a5a5a).sum().item<int64_t>();
      EXPECT_EQ(made, 2 * tile);
    }
  }
}

TEST(ProgramJob, TilesInOrderBeginWhereVectorsDo) {
  const KeepingJob job(lower([] { return at::empty({10000}, at::kBFloat16).normal_(); }), kMemory);
  EXPECT_FALSE(job.by_rectangles());
  EXPECT_EQ(job.itemsize(), 2);
  EXPECT_EQ(job.tile(1), 64);
  EXPECT_EQ(job.tile(256 + 127), 128);
  EXPECT_EQ(job.tile(1 << 20), (1 << 20) / 2);
  EXPECT_EQ(job.tile_size().best, kTileInOrder.best);
  EXPECT_EQ(job.tile_size().comfortable, kTileInOrder.comfortable);
}

TEST(ProgramJob, RectanglesHaveAllRowsAndAreAsLargeAsTheMediumWants) {
  const auto program = lower(turned);
  for (const auto& medium : {kMemory, kFile}) {
    const KeepingJob job(program, medium);
    ASSERT_TRUE(job.by_rectangles());
    const auto [best, comfortable] = job.tile_size();
    EXPECT_GE(best, medium.rectangle.best);
    EXPECT_LE(comfortable, best);
    EXPECT_GE(comfortable, std::min(best, 517 * medium.rectangle.row_bytes));
    for (const int64_t bytes : {int64_t{1}, comfortable, best}) {
      EXPECT_EQ(job.tile(bytes) % 517, 0) << bytes;
      EXPECT_GE(job.tile(bytes), 517) << bytes;
    }
  }
}

TEST(ProgramJob, RowsThatFollowEachOtherAreHandedOverTogether) {
  const auto program = lower([] { return at::empty({320, 517}).normal_().t().contiguous(); });
  KeepingJob whole(program, kFile);
  ASSERT_TRUE(whole.by_rectangles());
  make(whole, 0, whole.numel(), 64 << 20);  // all columns
  EXPECT_EQ(whole.stored().size(), 1U);
  KeepingJob part(program, kFile);
  make(part, 0, part.numel(), 517 * 4 * 100);
  EXPECT_EQ(part.stored().size(), 517U * 4);  // 96 columns at a time
}

TEST(ProgramJob, WhatNobodyInitializedIsZeroInAFileAndLeftAloneInMemory) {
  const auto program = lower([] {
    auto t = at::empty({1000});
    t.narrow(0, 100, 300).fill_(2);
    return t;
  });
  KeepingJob file(program, kFile);
  make(file, 0, 1000, 1024);
  auto expected = at::zeros({1000});
  expected.narrow(0, 100, 300).fill_(2);
  EXPECT_TRUE(same_bits(file.elements(at::kFloat), expected));
  KeepingJob memory(program, kMemory);
  make(memory, 0, 1000, 1024);
  const auto bits = memory.elements(at::kInt);
  EXPECT_EQ(bits.eq(0x5a5a5a5a).sum().item<int64_t>(), 700);
  EXPECT_TRUE(
      same_bits(memory.elements(at::kFloat).narrow(0, 100, 300), expected.narrow(0, 100, 300)));
}

TEST(ProgramJob, StopsAfterTheTileThatItIsToldAt) {
  for (const Build& build : {Build(matrix), Build(turned)}) {
    KeepingJob job(lower(build), kFile);
    const auto tile = job.tile(4096);
    system::Pages pages;
    int tiles = 0;
    EXPECT_FALSE(job.run(0, job.numel(), tile, pages, [&](size_t bytes) {
      EXPECT_EQ(bytes, static_cast<size_t>(tile * job.itemsize()));
      return ++tiles < 3;
    }));
    int64_t made = 0;
    for (const auto& [element, count] : job.stored()) {
      made += count;
    }
    EXPECT_EQ(made, 3 * tile);
  }
}

/// Zeros that are never read: only asked where they are.
class Named final : public record::Source {
 public:
  void read(uint64_t /*offset*/, size_t count, void* out) const override {
    std::memset(out, 0, count);
  }
  const std::string& name() const override { return name_; }

 private:
  const std::string name_ = "file";
};

/// The bytes that reads are of, one interval after the other.
std::vector<std::pair<uint64_t, uint64_t>> intervals(std::vector<Program::Range> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.offset < b.offset; });
  std::vector<std::pair<uint64_t, uint64_t>> merged;
  for (const auto& range : ranges) {
    if (!merged.empty() && merged.back().second == range.offset) {
      merged.back().second += range.nbytes;
    } else {
      merged.emplace_back(range.offset, range.offset + range.nbytes);
    }
  }
  return merged;
}

TEST(ProgramJob, SaysWhichBytesThePieceOfAPartIsReadFrom) {
  const auto source = std::make_shared<Named>();
  const auto lazy = record::make_read_tensor(source, 64, {1000}, at::kFloat);
  const KeepingJob job(program_of(lazy), kMemory, tile::Run{100, 500});
  const auto range = job.read_range(10, 30);
  ASSERT_TRUE(range);
  EXPECT_EQ(range->source, source);
  EXPECT_EQ(range->offset, 64U + 110 * 4);
  EXPECT_EQ(range->nbytes, 20U * 4);
  std::vector<Program::Range> ranges;
  job.append_reads(10, 30, ranges);
  EXPECT_EQ(intervals(ranges), (std::vector<std::pair<uint64_t, uint64_t>>{{504, 584}}));
  EXPECT_EQ(job.origins().read, 4000U);
}

TEST(ProgramJob, SaysWhichBytesTheColumnsOfARectangleAreReadFrom) {
  const auto source = std::make_shared<Named>();
  Tensor lazy;
  {
    const LazyInit guard;
    lazy = record::make_read_tensor(source, 0, {300, 517}, at::kFloat).t().contiguous();
  }
  const KeepingJob job(program_of(lazy), kFile);
  ASSERT_TRUE(job.by_rectangles());
  std::vector<Program::Range> ranges;
  job.append_reads(2 * 517, 5 * 517, ranges);  // columns 2, 3 and 4 are rows of the source
  EXPECT_EQ(intervals(ranges),
            (std::vector<std::pair<uint64_t, uint64_t>>{{2 * 517 * 4, 5 * 517 * 4}}));
}

TEST(ProgramJobThreads, AnyNumberOfThreadsMakePiecesOfOneJob) {
  constexpr int kThreads = 4;
  for (const Build& build : {Build(matrix), Build(turned)}) {
    for (const auto& medium : {kMemory, kFile}) {
      KeepingJob job(lower(build), medium);
      const auto tile = job.tile(8192);
      const auto piece = 3 * tile;
      std::atomic<int64_t> next{0};
      std::vector<std::thread> threads;
      for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&] {
          system::Pages pages;
          for (int64_t begin = next.fetch_add(piece); begin < job.numel();
               begin = next.fetch_add(piece)) {
            EXPECT_TRUE(job.run(begin, std::min(begin + piece, job.numel()), tile, pages, go_on));
          }
        });
      }
      for (auto& thread : threads) {
        thread.join();
      }
      EXPECT_TRUE(same_bits(job.elements(at::kFloat), eagerly(build).flatten()));
    }
  }
}

TEST(ProgramJob, WithAFastSeedTheValuesDoNotDependOnThePieces) {
  const auto program = lower(matrix);
  const auto made = [&](int64_t piece) {
    KeepingJob job(program, kMemory);
    job.fast_seed = 3;
    for (auto begin = (job.numel() - 1) / piece * piece; begin >= 0; begin -= piece) {
      make(job, begin, std::min(begin + piece, job.numel()), 4096);
    }
    return job.elements(at::kFloat).clone();
  };
  const auto whole = made(1 << 20);
  EXPECT_TRUE(same_bits(made(640), whole));
  EXPECT_FALSE(whole.equal(eagerly(matrix).flatten()));
}

}  // namespace
}  // namespace dormant::tile
