#include "record/lazy_storage.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace dormant::record {
namespace {

constexpr size_t kBytes = 64;
constexpr int kThreads = 4;

/// A write to all of `buffer` after `before`.
NodePtr make_write(const BufferPtr& buffer, NodePtr before) {
  auto node =
      c10::make_intrusive<Node>(c10::Dispatcher::singleton().findSchemaOrThrow("aten::zero_", ""));
  node->sequence = next_sequence();
  node->operands.push_back(
      {Geometry::bytes(buffer->nbytes), buffer, std::move(before), {}, /*written=*/true});
  return node;
}

/// Adds a write, as recording does: from the history that is read, until nothing changed meanwhile.
void write_to(c10::StorageImpl* storage) {
  for (bool published = false; !published;) {
    const auto before = history_of(storage);
    ASSERT_TRUE(before);
    const History after{before->buffer, make_write(before->buffer, before->tail)};
    published = exchange({Exchange{storage, *before, after}});
  }
}

c10::DataPtr memory_filled_with(int value) {
  auto memory = c10::GetCPUAllocator()->allocate(kBytes);
  std::memset(memory.get(), value, kBytes);
  return memory;
}

void in_threads(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back(work, i);
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

TEST(LazyStorage, HasASizeAndAHistoryButNoMemory) {
  const auto storage = make_lazy_storage(kBytes);
  EXPECT_EQ(storage.nbytes(), kBytes);
  EXPECT_TRUE(is_lazy(storage.unsafeGetStorageImpl()));
  const auto history = history_of(storage.unsafeGetStorageImpl());
  ASSERT_TRUE(history);
  EXPECT_EQ(history->buffer->nbytes, kBytes);
  EXPECT_FALSE(history->tail);
}

TEST(LazyStorage, OnceWrittenToItRefusesItsPointer) {
  const auto storage = make_lazy_storage(kBytes);
  write_to(storage.unsafeGetStorageImpl());
  EXPECT_THROW(storage.data(), c10::Error);
  EXPECT_THROW(storage.mutable_data(), c10::Error);
  EXPECT_TRUE(is_lazy(storage.unsafeGetStorageImpl()));
}

TEST(LazyStorage, ARealStorageHasNoHistory) {
  const auto storage = allocate(kBytes);
  EXPECT_FALSE(is_lazy(storage.unsafeGetStorageImpl()));
  EXPECT_FALSE(history_of(storage.unsafeGetStorageImpl()));
}

TEST(LazyStorage, TheOwnerOfABufferIsNotKeptAlive) {
  auto storage = make_lazy_storage(kBytes);
  const auto buffer = history_of(storage.unsafeGetStorageImpl())->buffer;
  EXPECT_EQ(buffer->owner.lock().get(), storage.unsafeGetStorageImpl());
  storage = c10::Storage();
  EXPECT_FALSE(buffer->owner.lock());
}

TEST(LazyStorage, AnExchangeChangesNothingWhereOneHistoryHasChanged) {
  const auto first = make_lazy_storage(kBytes);
  const auto second = make_lazy_storage(kBytes);
  const auto first_before = *history_of(first.unsafeGetStorageImpl());
  const auto second_before = *history_of(second.unsafeGetStorageImpl());
  write_to(second.unsafeGetStorageImpl());
  const auto second_now = history_of(second.unsafeGetStorageImpl());
  const auto node = make_write(first_before.buffer, nullptr);
  EXPECT_FALSE(exchange(
      {Exchange{first.unsafeGetStorageImpl(), first_before, {first_before.buffer, node}},
       Exchange{second.unsafeGetStorageImpl(), second_before, {second_before.buffer, node}}}));
  EXPECT_EQ(history_of(first.unsafeGetStorageImpl()), first_before);
  EXPECT_EQ(history_of(second.unsafeGetStorageImpl()), second_now);
}

TEST(LazyStorage, AnExchangeGivesTheStorageTheSizeOfItsNewBuffer) {
  const auto storage = make_lazy_storage(kBytes);
  auto* impl = storage.unsafeGetStorageImpl();
  const auto before = *history_of(impl);
  EXPECT_TRUE(exchange({Exchange{impl, before, {make_buffer(2 * kBytes, impl), nullptr}}}));
  EXPECT_EQ(storage.nbytes(), 2 * kBytes);
}

TEST(LazyStorage, ACommitIsRefusedWhereSomethingWasWrittenMeanwhile) {
  const auto storage = make_lazy_storage(kBytes);
  auto* impl = storage.unsafeGetStorageImpl();
  const auto before = *history_of(impl);
  write_to(impl);
  EXPECT_FALSE(commit(impl, before, memory_filled_with(1)));
  EXPECT_TRUE(is_lazy(impl));
  EXPECT_TRUE(commit(impl, *history_of(impl), memory_filled_with(2)));
  EXPECT_FALSE(is_lazy(impl));
  EXPECT_EQ(static_cast<const char*>(storage.data())[0], 2);
}

TEST(LazyStorage, ACommitToARealStorageIsRefused) {
  const auto storage = make_lazy_storage(kBytes);
  auto* impl = storage.unsafeGetStorageImpl();
  const auto before = *history_of(impl);
  ASSERT_TRUE(commit(impl, before, memory_filled_with(1)));
  EXPECT_FALSE(commit(impl, before, memory_filled_with(2)));
  EXPECT_EQ(static_cast<const char*>(storage.data())[0], 1);
}

TEST(LazyStorage, SwapMemoryGivesWhatTheStorageHadAndTakesItBack) {
  const auto storage = allocate(kBytes);
  auto* impl = storage.unsafeGetStorageImpl();
  const auto* address = storage.data();
  bool copies_on_write = false;
  const History history{make_buffer(2 * kBytes, impl), nullptr};
  auto memory = swap_memory(impl, lazy_data_ptr(history), 2 * kBytes, copies_on_write);
  EXPECT_EQ(memory.get(), address);
  EXPECT_TRUE(is_lazy(impl));
  EXPECT_EQ(storage.nbytes(), 2 * kBytes);
  EXPECT_FALSE(copies_on_write);
  const auto lazy = swap_memory(impl, std::move(memory), kBytes, copies_on_write);
  EXPECT_FALSE(is_lazy(impl));
  EXPECT_EQ(storage.data(), address);
  EXPECT_EQ(storage.nbytes(), kBytes);
}

TEST(LazyStorage, IsCountedWhileItIsLazy) {
  const auto before = live_storages();
  {
    const auto storage = make_lazy_storage(kBytes);
    EXPECT_EQ(live_storages(), before + 1);
    auto* impl = storage.unsafeGetStorageImpl();
    ASSERT_TRUE(commit(impl, *history_of(impl), memory_filled_with(0)));
    EXPECT_EQ(live_storages(), before);
    const StorageToCome to_come;
    EXPECT_EQ(live_storages(), before + 1);
  }
  EXPECT_EQ(live_storages(), before);
}

TEST(LazyStorageThreads, OneOfManyCommitsSucceedsAndItsMemoryStays) {
  for (int round = 0; round < 200; ++round) {
    const auto storage = make_lazy_storage(kBytes);
    auto* impl = storage.unsafeGetStorageImpl();
    const auto before = *history_of(impl);
    std::atomic<int> winner{-1};
    std::atomic<int> commits{0};
    in_threads(kThreads, [&](int i) {
      if (commit(impl, before, memory_filled_with(i + 1))) {
        winner = i;
        ++commits;
      }
    });
    ASSERT_EQ(commits, 1);
    const auto* bytes = static_cast<const char*>(storage.data());
    ASSERT_TRUE(std::all_of(bytes, bytes + kBytes, [&](char c) { return c == winner + 1; }));
  }
}

TEST(LazyStorageThreads, NoWriteOfManyThreadsIsLost) {
  constexpr int kWrites = 500;
  const auto storage = make_lazy_storage(kBytes);
  auto* impl = storage.unsafeGetStorageImpl();
  in_threads(kThreads, [&](int) {
    for (int i = 0; i < kWrites; ++i) {
      write_to(impl);
    }
  });
  const auto history = history_of(impl);
  EXPECT_EQ(closure({history->tail.get()}).size(), static_cast<size_t>(kThreads * kWrites));
}

TEST(LazyStorageThreads, AHistoryThatIsReadOutlivesTheCommitBesideIt) {
  for (int round = 0; round < 100; ++round) {
    const auto storage = make_lazy_storage(kBytes);
    auto* impl = storage.unsafeGetStorageImpl();
    for (int i = 0; i < 20; ++i) {
      write_to(impl);
    }
    in_threads(kThreads, [&](int i) {
      if (i == 0) {
        EXPECT_TRUE(commit(impl, *history_of(impl), memory_filled_with(3)));
        return;
      }
      while (const auto history = history_of(impl)) {
        EXPECT_EQ(closure({history->tail.get()}).size(), 20U);
      }
      EXPECT_EQ(static_cast<const char*>(storage.data())[kBytes - 1], 3);
    });
  }
}

}  // namespace
}  // namespace dormant::record
