#include "tile/job.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "quantize/four_bit.h"
#include "quantize/int8_rows.h"
#include "record/source_node.h"
#include "system/faults.h"
#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

using at::Tensor;

Tensor matrix() { return at::empty({300, 517}).normal_(); }

Target target_of(const Tensor& lazy) {
  return {lazy.storage(), *record::history_of(lazy), 0, {}, nullptr, {}};
}

std::unique_ptr<Job> quantize_job_of(c10::ArrayRef<Tensor> lazy) {
  std::vector<Target> targets;
  for (const auto& tensor : lazy) {
    targets.push_back(target_of(tensor));
  }
  return make_quantize_job(record::history_of(lazy[0])->tail, std::move(targets));
}

std::unique_ptr<Job> job_of(const Tensor& lazy) {
  return make_storage_job(target_of(lazy), program_of(lazy));
}

bool go_on(size_t /*bytes*/) { return true; }

/// Makes everything in pieces of `length` elements, the last one first.
void run_backwards(Job& job, int64_t length, int64_t tile) {
  system::Pages pages;
  for (auto begin = (job.numel() - 1) / length * length; begin >= 0; begin -= length) {
    EXPECT_TRUE(job.run(begin, std::min(begin + length, job.numel()), tile, pages, go_on));
  }
  job.finish();
}

/// The bytes of a target as a tensor like `tensor`.
Tensor made(Target& target, const Tensor& tensor) {
  return record::Geometry::of(tensor).over(c10::Storage(
      c10::Storage::use_byte_size_t(), target.history.buffer->nbytes, std::move(target.memory)));
}

TEST(Job, MakesTheElementsOfAStorageInAnyOrderOfPieces) {
  const std::vector<Build> builds = {
      [] { return matrix(); },
      [] { return matrix().t().contiguous(); },
      [] { return at::empty({7, 90, 400}).normal_().transpose(1, 2).contiguous(); },
  };
  for (const auto& build : builds) {
    const auto lazy = lazily(build);
    const auto job = job_of(lazy);
    const auto tile = job->tile(kSmallestTileBytes);
    job->begin();
    run_backwards(*job, 3 * tile, tile);
    EXPECT_TRUE(same_bits(made(job->targets[0], lazy), eagerly(build)));
  }
}

TEST(Job, TilesOfATransposedCopyHaveAllRows) {
  constexpr int64_t kRows = 517;  // of the copy, whose source lies along them
  const auto job = job_of(lazily([] { return matrix().t().contiguous(); }));
  for (const int64_t bytes : {1, 100'000, 1 << 20, 1 << 30}) {
    const auto tile = job->tile(bytes);
    EXPECT_EQ(tile % kRows, 0) << bytes;
    EXPECT_GE(tile, kRows);
    EXPECT_LE(tile, job->numel());
  }
  EXPECT_GE(job->thread_bytes(job->tile(1 << 20)), static_cast<size_t>(job->tile(1 << 20)) * 4);
}

TEST(Job, TilesInOrderAreMadeInTheirMemory) {
  const auto job = job_of(lazily([] { return at::empty({100000}).fill_(3); }));
  EXPECT_LT(job->thread_bytes(job->tile(1 << 20)), 1000U);
}

TEST(Job, StopsWhereItIsToldTo) {
  for (const Build& build :
       {Build([] { return matrix(); }), Build([] { return matrix().t().contiguous(); })}) {
    const auto job = job_of(lazily(build));
    const auto tile = job->tile(kSmallestTileBytes);
    job->begin();
    int tiles = 0;
    system::Pages pages;
    EXPECT_FALSE(job->run(0, job->numel(), tile, pages, [&](size_t bytes) {
      EXPECT_EQ(bytes, static_cast<size_t>(tile) * sizeof(float));
      return ++tiles < 2;
    }));
    EXPECT_EQ(tiles, 2);
  }
}

struct Quantized {
  std::vector<Tensor> lazy;
  std::vector<Tensor> expected;
};

using record::Quantizer;

/// Blocks of 64, and statistics that are quantized again.
std::shared_ptr<const Quantizer> four_bit() {
  std::vector<float> values;
  for (int i = 0; i < 16; ++i) {
    values.push_back((static_cast<float>(i) - 7.5F) / 7.5F);
  }
  std::vector<float> nested_map;
  for (int i = 0; i < 256; ++i) {
    nested_map.push_back((static_cast<float>(i) - 127.0F) / 128.0F);
  }
  return std::make_shared<quantization::FourBit>("fp4", 64, values, nested_map);
}

Quantized quantized(
    const Build& build = [] { return matrix(); },
    const std::shared_ptr<const Quantizer>& quantizer =
        std::make_shared<quantization::Int8Rows>()) {
  Quantized result{record::quantize(lazily(build), quantizer), {}};
  const auto source = eagerly(build).contiguous();
  for (const auto& geometry : quantizer->outputs(source.sizes())) {
    result.expected.push_back(at::empty(geometry.sizes, at::TensorOptions().dtype(geometry.dtype)));
  }
  record::run_whole(*quantizer, source, result.expected, 1);
  return result;
}

TEST(Job, QuantizesWholeUnitsInAnyOrderOfPieces) {
  auto [lazy, expected] = quantized();
  const auto job = quantize_job_of(lazy);
  ASSERT_TRUE(job);
  EXPECT_EQ(job->tile(1), 517);
  EXPECT_EQ(job->tile(4 * 517 * 10 + 3), 517 * 10);
  job->begin();
  run_backwards(*job, 517 * 40, 517 * 7);
  for (size_t i = 0; i < lazy.size(); ++i) {
    EXPECT_TRUE(same_bits(made(job->targets[i], lazy[i]), expected[i])) << i;
  }
}

const std::vector<Build> kTransposed = {
    [] { return at::empty({640, 517}).normal_().t(); },
    [] { return at::empty({640, 517}).normal_().t().contiguous().to(at::kBFloat16); },
    [] { return at::empty({5, 128, 700}).normal_().to(at::kBFloat16).transpose(1, 2); },
};

TEST(Job, QuantizesATransposedTensorByRectangles) {
  for (const auto& build : kTransposed) {
    auto [lazy, expected] = quantized(build, four_bit());
    const auto job = quantize_job_of(lazy);
    ASSERT_TRUE(job);
    for (const int64_t bytes : {int64_t{1}, kSmallestTileBytes, int64_t{1} << 19}) {
      // Never whole.
      EXPECT_LT(job->tile(bytes), job->numel());
    }
    const auto tile = job->tile(kSmallestTileBytes);
    job->begin();
    run_backwards(*job, 3 * tile, tile);
    for (size_t i = 0; i < lazy.size(); ++i) {
      EXPECT_TRUE(same_bits(made(job->targets[i], lazy[i]), expected[i])) << i;
    }
  }
}

TEST(Job, WhatCannotBeCutIntoRectanglesOfWholeUnitsIsNotQuantizedInTiles) {
  const auto int8 = std::make_shared<quantization::Int8Rows>();  // a unit is a row
  const Build odd = [] { return at::empty({300, 517}).normal_().t(); };
  EXPECT_FALSE(quantize_job_of(quantized(kTransposed[0], int8).lazy));
  EXPECT_FALSE(quantize_job_of(quantized(odd, four_bit()).lazy));
}

TEST(Job, StatisticsThatNobodyWantsAreScratchAndPackedElementsNeedATile) {
  const auto lazy = quantized().lazy;
  const auto all = quantize_job_of(lazy);
  const auto codes = quantize_job_of(lazy[0]);
  const auto scales = quantize_job_of(lazy[1]);
  EXPECT_EQ(codes->shared_bytes() - all->shared_bytes(), lazy[1].nbytes());
  EXPECT_EQ(scales->shared_bytes(), all->shared_bytes());
  EXPECT_EQ(scales->thread_bytes(517 * 7) - all->thread_bytes(517 * 7), 517U * 7);
}

TEST(Job, PackedElementsAreHandedOver) {
  auto [lazy, expected] = quantized();
  std::vector<Target> targets;
  targets.push_back(target_of(lazy[1]));
  auto codes = expected[0].clone().zero_();
  const auto job =
      make_quantize_job(record::history_of(lazy[0])->tail, std::move(targets),
                        [&](int64_t begin, const std::byte* data, int64_t nbytes) {
                          std::memcpy(static_cast<std::byte*>(codes.mutable_data_ptr()) + begin,
                                      data, static_cast<size_t>(nbytes));
                        });
  job->begin();
  run_backwards(*job, 517 * 40, 517 * 7);
  EXPECT_TRUE(same_bits(codes, expected[0]));
  EXPECT_TRUE(same_bits(made(job->targets[0], lazy[1]), expected[1]));
}

TEST(Job, PackedElementsOfRectanglesAreHandedOverRowByRow) {
  auto [lazy, expected] = quantized(kTransposed[2], four_bit());
  auto codes = expected[0].clone().zero_();
  const auto job = make_quantize_job(
      record::history_of(lazy[0])->tail, {}, [&](int64_t begin, const std::byte* data, int64_t n) {
        std::memcpy(static_cast<std::byte*>(codes.mutable_data_ptr()) + begin, data,
                    static_cast<size_t>(n));
      });
  job->begin();
  const auto tile = job->tile(kSmallestTileBytes);
  run_backwards(*job, 2 * tile, tile);
  EXPECT_TRUE(same_bits(codes, expected[0]));
}

TEST(Job, BeginsAnewWhereMemoryWasExhausted) {
  for (const auto* fault : {"allocate:1", "allocate:2"}) {
    auto [lazy, expected] = quantized();
    const auto job = quantize_job_of(lazy);
    system::set_faults(fault);
    EXPECT_THROW(job->begin(), c10::Error);
    EXPECT_FALSE(job->begun);
    job->begin();
    system::set_faults("");
    EXPECT_TRUE(job->begun);
    run_backwards(*job, 517 * 40, 517 * 7);
    for (size_t i = 0; i < lazy.size(); ++i) {
      EXPECT_TRUE(same_bits(made(job->targets[i], lazy[i]), expected[i])) << i << ", " << fault;
    }
  }
}

}  // namespace
}  // namespace dormant::tile
