#include "record/snapshot.h"

#include <ATen/ATen.h>
#include <c10/core/impl/COW.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <variant>
#include <vector>

#include "record/recorder.h"
#include "record/source_node.h"

namespace dormant::record {
namespace {

at::Tensor real() { return at::arange(6, at::kFloat); }

at::Tensor lazy() {
  const LazyInit guard;
  return at::ones({6});
}

Snapshot hold(const std::vector<c10::Storage>& storages) { return Snapshot(storages); }

/// What is written is only recorded.
void write_sevens(const at::Tensor& tensor) {
  sync_key(tensor);
  const LazyInit guard;
  tensor.fill_(7);
}

void resize(const at::Tensor& tensor, int64_t size) {
  sync_key(tensor);
  const LazyInit guard;
  tensor.resize_({size});
}

/// The values of a tensor that has its memory back.
at::Tensor values_of(const at::Tensor& tensor) {
  sync_key(tensor);
  return tensor;
}

TEST(Snapshot, StoragesWithMemoryAreLazyMeanwhile) {
  const auto tensor = real();
  const auto* address = tensor.const_data_ptr();
  {
    const auto snapshot = hold({tensor.storage()});
    EXPECT_TRUE(is_lazy(tensor));
    EXPECT_TRUE(snapshot.changed().empty());
  }
  EXPECT_FALSE(is_lazy(tensor));
  EXPECT_EQ(tensor.const_data_ptr(), address);
  EXPECT_TRUE(tensor.equal(real()));
}

TEST(Snapshot, KnowsWhoReadsItsMemoryByAnotherWay) {
  const auto tensor = real();
  const auto neighbor = real();
  const auto copied = read_of(tensor.narrow(0, 2, 3));  // as a state dict's tensor is read
  const auto other = read_of(neighbor);
  const auto snapshot = hold({tensor.storage()});
  EXPECT_TRUE(snapshot.needed_by({other.storage(), copied.storage()}));
  EXPECT_FALSE(snapshot.needed_by({other.storage()}));
}

TEST(Snapshot, RestoreForgetsWhatWasWritten) {
  const auto had_memory = real();
  const auto was_lazy = lazy();
  const auto before = history_of(was_lazy);
  auto snapshot = hold({had_memory.storage(), was_lazy.storage()});
  write_sevens(had_memory);
  write_sevens(was_lazy);
  EXPECT_EQ(snapshot.changed().size(), 1U);
  snapshot.restore();
  EXPECT_TRUE(values_of(had_memory).equal(real()));
  EXPECT_EQ(history_of(was_lazy), before);
  dormant::materialize(was_lazy);
  EXPECT_TRUE(was_lazy.equal(at::ones({6})));
}

TEST(Snapshot, TouchedIsWhatSomebodyHasWrittenToOrMaterialized) {
  const auto had_memory = real();
  const auto was_lazy = lazy();
  const auto materialized = lazy();
  const auto untouched = lazy();
  const auto snapshot = hold({had_memory.storage(), was_lazy.storage(), materialized.storage(),
                              untouched.storage(), real().storage()});
  EXPECT_TRUE(snapshot.touched().empty());
  write_sevens(had_memory);
  write_sevens(was_lazy);
  dormant::materialize(materialized);
  const std::vector<const c10::StorageImpl*> expected{was_lazy.storage().unsafeGetStorageImpl(),
                                                      materialized.storage().unsafeGetStorageImpl(),
                                                      had_memory.storage().unsafeGetStorageImpl()};
  EXPECT_EQ(snapshot.touched(), expected);
}

TEST(Snapshot, KeepLeavesWhatWasMadeInTheMemoryThatWasThere) {
  const auto tensor = real();
  const auto* address = tensor.const_data_ptr();
  auto snapshot = hold({tensor.storage()});
  write_sevens(tensor);
  dormant::materialize(tensor);
  EXPECT_NE(tensor.const_data_ptr(), address);
  snapshot.keep();
  EXPECT_EQ(tensor.const_data_ptr(), address);
  EXPECT_TRUE(tensor.equal(at::full({6}, 7.0F)));
}

TEST(Snapshot, KeepLeavesLazyStoragesAsTheyAre) {
  const auto tensor = lazy();
  auto snapshot = hold({tensor.storage()});
  write_sevens(tensor);
  snapshot.keep();
  dormant::materialize(tensor);
  EXPECT_TRUE(tensor.equal(at::full({6}, 7.0F)));
}

TEST(Snapshot, RestoreGivesAResizedStorageItsMemoryAndSizeBack) {
  for (const int64_t size : {3, 12}) {
    const auto tensor = real();
    const auto view = tensor.view({6});
    auto snapshot = hold({tensor.storage()});
    resize(tensor, size);
    write_sevens(tensor);
    snapshot.restore();
    EXPECT_EQ(tensor.storage().nbytes(), 6 * sizeof(float));
    EXPECT_TRUE(values_of(view).equal(real())) << size;
  }
}

TEST(Snapshot, KeepGivesAGrownStorageTheMemoryOfItsNewSize) {
  const auto tensor = real();
  auto snapshot = hold({tensor.storage()});
  resize(tensor, 12);
  write_sevens(tensor);
  const auto changed = snapshot.changed();
  ASSERT_EQ(changed.size(), 1U);
  EXPECT_EQ(changed[0].memory, nullptr);
  dormant::materialize(tensor);
  snapshot.keep();
  EXPECT_EQ(tensor.storage().nbytes(), 12 * sizeof(float));
  EXPECT_TRUE(values_of(tensor).equal(at::full({12}, 7.0F)));
}

TEST(Snapshot, StoragesThatCopyOnWriteGoOnSharing) {
  const auto tensor = real();
  const auto twin = at::_lazy_clone(tensor);
  ASSERT_EQ(tensor.const_data_ptr(), twin.const_data_ptr());
  {
    const auto snapshot = hold({tensor.storage()});
    EXPECT_TRUE(is_lazy(tensor));
  }
  EXPECT_EQ(tensor.const_data_ptr(), twin.const_data_ptr());
  tensor.fill_(3);
  EXPECT_TRUE(twin.equal(real()));
}

TEST(Snapshot, WhatIsWrittenToAStorageThatCopiesOnWriteIsNotSeenThroughItsTwin) {
  const auto tensor = real();
  const auto twin = at::_lazy_clone(tensor);
  auto snapshot = hold({tensor.storage()});
  write_sevens(tensor);
  const auto changed = snapshot.changed();
  ASSERT_EQ(changed.size(), 1U);
  EXPECT_EQ(changed[0].memory, nullptr);
  dormant::materialize(tensor);
  snapshot.keep();
  EXPECT_TRUE(tensor.equal(at::full({6}, 7.0F)));
  EXPECT_TRUE(twin.equal(real()));
}

/// A copy that somebody takes while the storage is held.
at::Tensor copy_of(const at::Tensor& tensor) {
  return make_tensor(clone_storage(tensor.storage()), Geometry::of(tensor));
}

TEST(Snapshot, ACopyThatOutlivesARestoreHasTheOldValues) {
  auto tensor = real();
  at::Tensor copy;
  {
    const auto snapshot = hold({tensor.storage()});
    copy = copy_of(tensor);
    EXPECT_TRUE(snapshot.needed_by({copy.storage()}));
  }
  values_of(tensor).fill_(-1);
  tensor = at::Tensor();
  ASSERT_TRUE(is_lazy(copy));
  dormant::materialize(copy);
  EXPECT_TRUE(copy.equal(real()));
}

TEST(Snapshot, ACopyThatOutlivesAKeepHasTheValuesOfItsTime) {
  const auto tensor = real();
  auto snapshot = hold({tensor.storage()});
  const auto before = copy_of(tensor);
  write_sevens(tensor);
  const auto after = copy_of(tensor);
  snapshot.begin_writing();
  dormant::materialize(tensor);
  snapshot.keep();
  values_of(tensor).fill_(-1);
  dormant::materialize({before, after});
  EXPECT_TRUE(before.equal(real()));
  EXPECT_TRUE(after.equal(at::full({6}, 7.0F)));
}

TEST(Snapshot, WhoHasAskedForThePointerBeforeFindsTheMemory) {
  // An operator of another thread asks whether the memory may be read, and reads the pointer next.
  const auto tensor = real();
  const auto* memory = tensor.const_data_ptr();
  const auto snapshot = hold({tensor.storage()});
  EXPECT_TRUE(is_lazy(tensor));
  EXPECT_EQ(tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get(), memory);
  EXPECT_THROW(tensor.const_data_ptr(), c10::Error);
}

TEST(Snapshot, ValuesOfARealTensorStayThoseOfItsMemory) {
  const auto tensor = real();
  const auto values = std::get<at::Tensor>(history_or_values_of(tensor.narrow(0, 2, 3)));
  {
    const auto snapshot = hold({tensor.storage()});
    EXPECT_TRUE(values.equal(at::arange(2, 5, at::kFloat)));
    EXPECT_TRUE(std::holds_alternative<History>(history_or_values_of(tensor)));
  }
  EXPECT_EQ(values.const_data_ptr(), tensor.narrow(0, 2, 3).const_data_ptr());
}

TEST(Snapshot, AReadOfWhatIsHeldIsTheHeldTensorItself) {
  const auto tensor = real();
  const auto alias = tensor.detach();
  const auto snapshot = hold({tensor.storage()});
  EXPECT_FALSE(carries_key(alias));
  const auto read = read_of(alias);
  EXPECT_TRUE(read.is_same(alias));
  EXPECT_TRUE(carries_key(alias));
}

TEST(SnapshotThreads, TheKeyAgreesWithTheStorageWhoeverWasFaster) {
  const auto tensor = real();
  std::atomic<bool> over{false};
  std::thread other([&] {
    while (!over) {
      sync_key(tensor);
      std::this_thread::yield();  // otherwise it may keep the mutex from the other one for minutes
    }
  });
  for (int round = 0; round < 2000; ++round) {
    auto snapshot = hold({tensor.storage()});
    sync_key(tensor);
    const bool lazily = carries_key(tensor);
    snapshot.restore();
    sync_key(tensor);
    if (!lazily || carries_key(tensor)) {
      ADD_FAILURE() << "round " << round << (lazily ? ": real with" : ": lazy without") << " key";
      break;
    }
  }
  over = true;
  other.join();
}

TEST(Snapshot, AStorageGivenTwiceIsHeldOnce) {
  const auto tensor = real();
  auto snapshot = hold({tensor.storage(), tensor.storage()});
  write_sevens(tensor);
  EXPECT_EQ(snapshot.changed().size(), 1U);
  snapshot.restore();
  EXPECT_TRUE(values_of(tensor).equal(real()));
}

TEST(Snapshot, WhereItCannotBeTakenEverythingIsAsItWas) {
  const auto tensor = real();
  const auto before = live_storages();
  auto refusing = allocate(8);
  refusing.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_("no");
  const auto take = [&] { const auto snapshot = hold({tensor.storage(), refusing}); };
  EXPECT_THROW(take(), c10::Error);
  EXPECT_FALSE(is_lazy(tensor));
  EXPECT_TRUE(tensor.equal(real()));
  EXPECT_EQ(live_storages(), before);
}

TEST(Snapshot, OneThatIsMovedFromHoldsNothing) {
  const auto tensor = real();
  std::optional<Snapshot> first(hold({tensor.storage()}));
  const auto second = std::make_unique<Snapshot>(std::move(*first));
  first.reset();
  EXPECT_TRUE(is_lazy(tensor));
  second->restore();
  EXPECT_TRUE(values_of(tensor).equal(real()));
}

}  // namespace
}  // namespace dormant::record
