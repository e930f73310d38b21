#include "record/replay.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>
#include <vector>

#include "record/fallback.h"
#include "record/recorder.h"
#include "record/torch_version.h"

namespace dormant::record {
namespace {

constexpr uint64_t kSeed = 11;

at::Tensor lazily(const std::function<at::Tensor()>& build) {
  at::manual_seed(kSeed);
  const LazyInit guard;
  return build();
}

at::Tensor eagerly(const std::function<at::Tensor()>& build) {
  at::manual_seed(kSeed);
  return build();
}

TEST(Replay, GivesWhatEagerGives) {
  const auto build = [] {
    auto weight = at::empty({37, 21});
    weight.normal_(0.5, 2.0);
    weight.select(0, 3).zero_();
    auto scaled = weight * 3;
    weight.uniform_(-1, 1);
    return at::cat({scaled, weight}, 1).t();
  };
  const auto lazy = lazily(build);
  ASSERT_TRUE(is_lazy(lazy));
  const auto after_recording = at::detail::getDefaultCPUGenerator().get_state();
  dormant::materialize(lazy);
  const auto eager = eagerly(build);
  EXPECT_TRUE(lazy.equal(eager));
  EXPECT_EQ(lazy.strides(), eager.strides());
  EXPECT_FALSE(carries_key(lazy));
  EXPECT_TRUE(after_recording.equal(at::detail::getDefaultCPUGenerator().get_state()));
}

TEST(Replay, ReaderSeesTheValueOfItsTime) {
  at::Tensor copy;
  const auto build = [&] {
    auto source = at::ones({64});
    copy = source.clone();
    source.fill_(7);
    return source;
  };
  const auto source = lazily(build);
  dormant::materialize(source);
  source.fill_(-1);  // what happens to the real source later is nothing to the copy
  dormant::materialize(copy);
  EXPECT_TRUE(copy.equal(at::ones({64})));
}

TEST(Replay, FullOverwriteNeedsNoInitialization) {
  const auto lazy = lazily([] { return at::randn({1000}); });
  const auto values = at::arange(1000, at::kFloat).repeat(100);
  const auto large = lazily([] { return at::randn({100000}); });
  large.copy_(values);
  EXPECT_FALSE(is_lazy(large));
  EXPECT_TRUE(large.equal(values));
  EXPECT_TRUE(is_lazy(lazy));
}

TEST(Replay, RawAccessRaisesInsteadOfGivingANullPointer) {
  const auto lazy = lazily([] { return at::ones({8}); });
  EXPECT_THROW(lazy.data_ptr(), c10::Error);
  EXPECT_THROW(lazy.const_data_ptr<float>(), c10::Error);
  EXPECT_THROW(lazy.storage().mutable_data(), c10::Error);
}

TEST(Replay, MutablePointerToUnwrittenStorageGivesItMemoryWherePyTorchLetsIt) {
  at::Tensor table;
  {
    const LazyInit guard;
    table = at::empty({4});
  }
  ASSERT_TRUE(is_lazy(table));
#if DORMANT_TORCH_HAS_MATERIALIZERS
  EXPECT_NE(table.storage().mutable_data(), nullptr);
  EXPECT_FALSE(is_lazy(table));
#else
  EXPECT_THROW(table.storage().mutable_data(), c10::Error);
  EXPECT_THROW(table.storage().data(), c10::Error);
  EXPECT_TRUE(is_lazy(table));
#endif
  table.fill_(3);
  EXPECT_TRUE(table.equal(at::full({4}, 3.0)));
}

TEST(Replay, ATypedPointerToUnwrittenStorageIsRefusedAndItStaysLazy) {
  at::Tensor table;
  {
    const LazyInit guard;
    table = at::empty({4});
  }
  EXPECT_THROW(table.mutable_data_ptr<float>(), c10::Error);
  EXPECT_THROW(table.const_data_ptr<float>(), c10::Error);
  EXPECT_TRUE(is_lazy(table));
}

TEST(Replay, WhatSharesNothingIsReplayedOneAfterTheOther) {
  constexpr int kCount = 5;
  std::vector<at::Tensor> sources;
  std::vector<at::Tensor> results;
  std::vector<at::Tensor> expected;
  at::manual_seed(kSeed);
  {
    const LazyInit guard;
    for (int i = 0; i < kCount; ++i) {
      sources.push_back(at::empty({64, 32}).normal_().cumsum(0));
    }
    for (const auto& source : sources) {
      results.push_back(source.sum(0));
    }
  }
  at::manual_seed(kSeed);
  for (int i = 0; i < kCount; ++i) {
    expected.push_back(at::empty({64, 32}).normal_().cumsum(0).sum(0));
  }
  std::vector<c10::Storage> storages;
  for (const auto& result : results) {
    storages.push_back(result.storage());
  }
  EXPECT_EQ(scratch_bytes(storages, {}), scratch_bytes({storages.back()}, {}));
  materialize(storages, {});
  for (int i = 0; i < kCount; ++i) {
    sync_key(results[i]);
    EXPECT_TRUE(results[i].equal(expected[i])) << i;
    EXPECT_TRUE(is_lazy(sources[i])) << i;
  }
}

TEST(Replay, StoppedReplayLeavesEverythingLazyAndCanBeRepeated) {
  std::vector<at::Tensor> lazy;
  at::manual_seed(kSeed);
  {
    const LazyInit guard;
    for (int i = 0; i < 8; ++i) {
      lazy.push_back(at::randn({256}));
    }
  }
  MaterializeOptions options;
  options.on_step = [](size_t, size_t) { throw std::runtime_error("stop"); };
  EXPECT_THROW(dormant::materialize(lazy, options), std::runtime_error);
  for (const auto& tensor : lazy) {
    EXPECT_TRUE(is_lazy(tensor));
  }
  dormant::materialize(lazy);
  at::manual_seed(kSeed);
  for (const auto& tensor : lazy) {
    EXPECT_TRUE(tensor.equal(at::randn({256})));
  }
}

TEST(Replay, EmptyValuesGiveMemoryOnly) {
  const auto lazy = lazily([] { return at::zeros({16}); });
  MaterializeOptions options;
  options.values = dormant::Values::empty;
  const auto report = dormant::materialize(lazy, options);
  EXPECT_EQ(report.storages, 1U);
  EXPECT_EQ(report.operators, 0U);
  EXPECT_NE(lazy.data_ptr(), nullptr);
}

TEST(Replay, LongHistoriesAreReleasedWithoutRecursion) {
  const auto before = live_storages();
  {
    auto lazy = lazily([] {
      auto tensor = at::zeros({1});
      for (int i = 0; i < 300000; ++i) {
        tensor.add_(1);
      }
      return tensor;
    });
    EXPECT_EQ(live_storages(), before + 1);
    lazy = at::Tensor();
  }
  EXPECT_EQ(live_storages(), before);
}

TEST(Replay, LargeRealInputMakesItsDestinationReal) {
  const auto large = at::arange(100000, at::kFloat);
  const auto sum = lazily([&] { return at::ones({100000}).add_(large); });
  EXPECT_FALSE(is_lazy(sum));
  EXPECT_TRUE(sum.equal(large + 1));
}

TEST(ReplayThreads, EachThreadRecordsForItself) {
  std::vector<std::thread> threads;
  std::vector<int> correct(4, 0);
  for (size_t t = 0; t < correct.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 50; ++round) {
        at::Tensor lazy;
        auto generator = at::detail::createCPUGenerator(t);
        {
          const LazyInit guard;
          lazy = at::empty({333}).normal_(0, 1, generator).mul_(2);
        }
        if (recording() || !is_lazy(lazy)) {
          return;
        }
        dormant::materialize(lazy);
        auto again = at::detail::createCPUGenerator(t);
        correct[t] += lazy.equal(at::empty({333}).normal_(0, 1, again).mul_(2)) ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(correct, std::vector<int>(4, 50));
}

}  // namespace
}  // namespace dormant::record
