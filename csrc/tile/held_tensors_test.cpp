#include "tile/held_tensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "exhausted_memory.h"
#include "record/recorder.h"
#include "record/source.h"
#include "record/source_node.h"
#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

using at::Tensor;

constexpr int64_t kSize = 1000;

Tensor real() { return at::arange(kSize, at::kFloat); }
Tensor sevens() { return at::full({kSize}, 7.0F); }

/// Writes to what is held, which is only recorded.
void record_sevens(const Tensor& tensor) {
  const LazyInit guard;
  tensor.fill_(7);
}

const void* address_of(const Tensor& tensor) {
  return tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();
}

std::vector<const c10::StorageImpl*> storages(const std::vector<Tensor>& tensors) {
  std::vector<const c10::StorageImpl*> all;
  for (const auto& tensor : tensors) {
    all.push_back(tensor.storage().unsafeGetStorageImpl());
  }
  return all;
}

TEST(HeldTensors, AreLazyAndInTheEndWhatTheyWere) {
  const auto tensor = real();
  const auto part = tensor.narrow(0, 2, 3);
  const auto lazy = lazily([] { return at::ones({kSize}); });
  const auto* address = address_of(tensor);
  const auto history = record::history_of(lazy);
  {
    const HeldTensors held({tensor, part, lazy});
    for (const auto& each : {tensor, part, lazy}) {
      EXPECT_TRUE(record::is_lazy(each));
      EXPECT_TRUE(record::carries_key(each));
    }
    EXPECT_TRUE(held.touched().empty());
    record_sevens(tensor);
    record_sevens(lazy);
    EXPECT_EQ(held.touched().size(), 2U);
  }
  EXPECT_FALSE(record::carries_key(tensor));
  EXPECT_FALSE(record::carries_key(part));
  EXPECT_EQ(address_of(tensor), address);
  EXPECT_TRUE(same_bits(tensor, real()));
  EXPECT_EQ(record::history_of(lazy), history);
}

TEST(HeldTensors, NewBytesGoStraightToTheMemoryThatATensorHad) {
  const auto tensor = real();
  const auto other = real();
  const auto* address = address_of(tensor);
  HeldTensors held({tensor, other});
  record_sevens(tensor);
  EXPECT_TRUE(held.begun().empty());
  const auto done = held.materialize({tensor}, {});
  EXPECT_EQ(done.size(), 1U);
  EXPECT_EQ(held.begun(), storages({tensor}));
  EXPECT_TRUE(record::is_lazy(tensor));
  EXPECT_TRUE(std::all_of(static_cast<const float*>(address),
                          static_cast<const float*>(address) + kSize,
                          [](float value) { return value == 7; }));
  held.keep();
  EXPECT_EQ(address_of(tensor), address);
  EXPECT_FALSE(record::carries_key(tensor));
  EXPECT_TRUE(same_bits(tensor, sevens()));
  EXPECT_TRUE(same_bits(other, real()));
}

TEST(HeldTensors, WhatWasWrittenIsMaterializedWithoutBeingNamed) {
  const auto tensor = real();
  HeldTensors held({tensor});
  record_sevens(tensor);
  EXPECT_EQ(held.materialize({}, {}).size(), 1U);
  held.keep();
  EXPECT_TRUE(same_bits(tensor, sevens()));
}

TEST(HeldTensors, NothingIsWrittenWhereNothingChanged) {
  const auto tensor = real();
  HeldTensors held({tensor});
  EXPECT_TRUE(held.materialize({}, {}).empty());
  EXPECT_TRUE(held.begun().empty());
  held.keep();
  EXPECT_TRUE(same_bits(tensor, real()));
}

TEST(HeldTensors, LazyTensorsAreMaterializedAsUsual) {
  const Build build = [] { return at::empty({kSize}).normal_(); };
  const auto lazy = lazily(build);
  HeldTensors held({lazy});
  EXPECT_EQ(held.materialize({lazy}, {}).size(), 1U);
  EXPECT_TRUE(held.begun().empty());
  EXPECT_FALSE(record::carries_key(lazy));
  held.keep();
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

TEST(HeldTensors, AMaterializedLazyTensorIsLazyAgainAfterARestore) {
  const Build build = [] { return at::empty({kSize}).normal_(); };
  const auto lazy = lazily(build);
  HeldTensors held({lazy});
  held.materialize({lazy}, {});
  ASSERT_FALSE(record::is_lazy(lazy));
  held.restore();
  EXPECT_TRUE(record::carries_key(lazy));
  dormant::materialize(lazy);
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

TEST(HeldTensors, WhatReadsTheOldValuesIsMadeBesideThem) {
  // Each reads what the other held: bytes in place would be read after they were written.
  const auto a = real();
  const auto b = sevens();
  const auto* address = address_of(a);
  HeldTensors held({a, b});
  {
    const LazyInit guard;
    const auto earlier = a.clone();
    a.copy_(b);
    b.copy_(earlier);
    b.narrow(0, 0, 10).mul_(2);
  }
  held.materialize({a, b}, {});
  EXPECT_TRUE(held.begun().empty());
  held.keep();
  EXPECT_EQ(address_of(a), address);
  EXPECT_TRUE(same_bits(a, sevens()));
  auto expected = real();
  expected.narrow(0, 0, 10).mul_(2);
  EXPECT_TRUE(same_bits(b, expected));
}

TEST(HeldTensors, AStorageOfAnotherSizeKeepsMemoryOfItsOwn) {
  const auto tensor = real();
  HeldTensors held({tensor});
  {
    const LazyInit guard;
    tensor.resize_({2 * kSize});
    tensor.fill_(3);
  }
  held.materialize({tensor}, {});
  EXPECT_TRUE(held.begun().empty());
  held.keep();
  EXPECT_TRUE(same_bits(tensor, at::full({2 * kSize}, 3.0F)));
}

TEST(HeldTensors, AHistoryWithoutAProgramIsMadeBesideTheMemoryToo) {
  const auto tensor = real();
  const auto* address = address_of(tensor);
  HeldTensors held({tensor});
  {
    const LazyInit guard;
    tensor.copy_(at::ones({kSize}).cumsum(0));
    tensor.cumsum_(0);
  }
  held.materialize({tensor}, {});
  EXPECT_TRUE(held.begun().empty());
  held.keep();
  EXPECT_EQ(address_of(tensor), address);
  EXPECT_TRUE(same_bits(tensor, at::ones({kSize}).cumsum(0).cumsum(0)));
}

// What stops the work.

/// Bytes that cannot be read.
class Failing final : public record::Source {
 public:
  void read(uint64_t /*offset*/, size_t /*count*/, void* /*out*/) const override {
    throw std::runtime_error("cannot be read");
  }
  const std::string& name() const override { return name_; }

 private:
  const std::string name_ = "failing";
};

TEST(HeldTensors, WorkThatFailsLeavesItToTheCallerAndSaysWhatItWrote) {
  const exhausted::Threads one(1);
  const auto written = real();
  const auto unwritten = real();
  const auto failing =
      record::make_read_tensor(std::make_shared<Failing>(), 0, {kSize}, at::kFloat);
  HeldTensors held({written, unwritten, failing});
  record_sevens(written);
  EXPECT_THROW(held.materialize({failing}, {}), std::runtime_error);
  for (const auto& tensor : {written, unwritten, failing}) {
    EXPECT_TRUE(record::is_lazy(tensor));
    EXPECT_TRUE(record::carries_key(tensor));
  }
  const auto begun = held.begun();
  EXPECT_EQ(std::count(begun.begin(), begun.end(), unwritten.storage().unsafeGetStorageImpl()), 0);
  held.restore();
  EXPECT_TRUE(same_bits(unwritten, real()));
  // Memory that was written is as it is then, and only that of `begun` is.
  EXPECT_TRUE(same_bits(written, begun.empty() ? real() : sevens()));
  EXPECT_TRUE(record::is_lazy(failing));
}

TEST(HeldTensors, WorkThatIsStoppedCanBeUndoneWhereNothingWasWrittenOrElseDoneAgain) {
  const auto tensor = real();
  HeldTensors held({tensor});
  record_sevens(tensor);
  Options options;
  options.on_step = [](size_t, size_t) { throw std::runtime_error("stop"); };
  const auto stopped = [&] { held.materialize({tensor}, options); };
  EXPECT_THROW(stopped(), std::runtime_error);
  if (held.begun().empty()) {
    held.restore();
    EXPECT_TRUE(same_bits(tensor, real()));
  } else {
    held.materialize({tensor}, {});
    held.keep();
    EXPECT_TRUE(same_bits(tensor, sevens()));
  }
}

TEST(HeldTensors, OnceItIsPreparedToKeepItNeedsNoMemory) {
  for (const bool copied : {false, true}) {
    const auto tensor = real();
    HeldTensors held({tensor});
    const auto old = record::make_tensor(
        copied ? record::clone_storage(tensor.storage()) : record::allocate(kSize * sizeof(float)),
        record::Geometry::of(tensor));
    record_sevens(tensor);
    held.materialize({tensor}, {});
    held.prepare_to_keep();
    {
      const exhausted::FailingNew failing(1, /*and_all_after=*/true);
      held.keep();
    }
    EXPECT_TRUE(same_bits(tensor, sevens()));
    if (copied) {
      dormant::materialize(old);
      EXPECT_TRUE(same_bits(old, real()));
    }
  }
}

// Who holds what for how long.

TEST(HeldTensors, ACopyTakenMeanwhileOutlivesThem) {
  for (const bool kept : {false, true}) {
    auto tensor = real();
    Tensor copy;
    {
      HeldTensors held({tensor});
      copy = record::make_tensor(record::clone_storage(tensor.storage()),
                                 record::Geometry::of(tensor));
      record_sevens(tensor);
      if (kept) {
        held.materialize({tensor}, {});
        held.keep();
      }
    }
    EXPECT_TRUE(same_bits(tensor, kept ? sevens() : real()));
    tensor.fill_(-1);
    tensor = Tensor();
    ASSERT_TRUE(record::is_lazy(copy));
    dormant::materialize(copy);
    EXPECT_TRUE(same_bits(copy, real())) << kept;
  }
}

TEST(HeldTensors, AreKeptAliveAndThenLetGo) {
  auto tensor = real();
  const c10::weak_intrusive_ptr<c10::StorageImpl> storage(
      c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(tensor.storage().unsafeGetStorageImpl()));
  const auto live = record::live_storages();
  {
    const HeldTensors held({tensor});
    tensor = Tensor();
    EXPECT_FALSE(storage.expired());
    EXPECT_EQ(record::live_storages(), live + 1);
  }
  EXPECT_TRUE(storage.expired());
  EXPECT_EQ(record::live_storages(), live);
}

TEST(HeldTensorsThreads, AnotherThreadMayMaterializeTheSameTensorMeanwhile) {
  for (int round = 0; round < 100; ++round) {
    const auto tensor = real();
    const auto* address = address_of(tensor);
    HeldTensors held({tensor});
    record_sevens(tensor);
    std::atomic<bool> begun{false};
    std::thread other([&] {
      const auto alias = tensor.detach();
      begun = true;
      dormant::materialize(alias);
    });
    while (!begun) {
      std::this_thread::yield();
    }
    held.materialize({tensor}, {});
    other.join();
    held.keep();
    ASSERT_EQ(address_of(tensor), address) << round;
    ASSERT_TRUE(same_bits(tensor, sevens())) << round;
  }
}

}  // namespace
}  // namespace dormant::tile
