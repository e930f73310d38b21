#include "record/claims.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <new>
#include <stdexcept>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

constexpr size_t kBytes = 8;
constexpr int kThreads = 4;

void give_memory(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  if (const auto history = history_of(impl)) {
    auto memory = allocate(kBytes);
    commit(impl, *history, std::move(memory.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
  }
}

void give_memory(c10::ArrayRef<c10::Storage> storages) {
  for (const auto& storage : storages) {
    give_memory(storage);
  }
}

/// Makes them with `make`; nobody waits.
void make(c10::ArrayRef<c10::Storage> storages,
          const std::function<void(c10::ArrayRef<c10::Storage>)>& make) {
  make_each_once(storages, {make, [] {}, {}});
}

bool lazy(const c10::Storage& storage) { return is_lazy(storage.unsafeGetStorageImpl()); }

/// A thread that is making `storage` until it is let go on.
class Maker {
 public:
  explicit Maker(
      const c10::Storage& storage, std::function<void()> before_commit = [] {})
      : done_(std::async(std::launch::async, [this, storage, before_commit] {
          make({storage}, [&](c10::ArrayRef<c10::Storage> mine) {
            making_.set_value();
            go_on_.get_future().wait();
            before_commit();
            give_memory(mine);
          });
        })) {
    making_.get_future().wait();
  }
  void go_on() { go_on_.set_value(); }
  /// Throws what it threw.
  void finish() { done_.get(); }

 private:
  std::promise<void> making_;
  std::promise<void> go_on_;
  std::future<void> done_;
};

TEST(Claims, EachStorageIsHandedOutOnce) {
  const auto storage = make_lazy_storage(kBytes);
  const auto real = allocate(kBytes);
  size_t count = 0;
  make({storage, real, storage}, [&](c10::ArrayRef<c10::Storage> mine) {
    count += mine.size();
    give_memory(mine);
  });
  EXPECT_EQ(count, 1U);
  EXPECT_FALSE(lazy(storage));
}

TEST(Claims, WhatIsStillWantedIsHandedOutAgain) {
  const auto storage = make_lazy_storage(kBytes);
  int calls = 0;
  make({storage}, [&](c10::ArrayRef<c10::Storage> mine) {
    if (++calls == 3) {  // twice somebody was faster with a write
      give_memory(mine);
    }
  });
  EXPECT_EQ(calls, 3);
}

TEST(Claims, WhatIsWantedIsForTheCallerToSay) {
  const auto storage = make_lazy_storage(kBytes);
  int calls = 0;
  make_each_once({storage}, {[&](c10::ArrayRef<c10::Storage>) { ++calls; }, [] {},
                             [&](const c10::StorageImpl*) { return calls == 0; }});
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(lazy(storage));
}

TEST(Claims, AMakerThatFailsLeavesNoClaim) {
  const auto storage = make_lazy_storage(kBytes);
  EXPECT_THROW(make({storage}, [](c10::ArrayRef<c10::Storage>) { throw std::bad_alloc(); }),
               std::bad_alloc);
  // Another thread would wait for a claim that is left.
  std::async(std::launch::async, [&] {
    make_each_once({storage}, {[](c10::ArrayRef<c10::Storage> mine) { give_memory(mine); },
                               [] { ADD_FAILURE() << "waits for nobody"; },
                               {}});
  }).get();
  EXPECT_FALSE(lazy(storage));
}

TEST(ClaimsThreads, ManyThreadsMakeEachStorageOnce) {
  for (int round = 0; round < 50; ++round) {
    std::vector<c10::Storage> storages;
    std::unordered_map<const c10::StorageImpl*, std::atomic<int>> made;
    for (int i = 0; i < 20; ++i) {
      storages.push_back(make_lazy_storage(kBytes));
      made[storages.back().unsafeGetStorageImpl()] = 0;
    }
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        auto order = storages;
        std::rotate(order.begin(), order.begin() + 5 * t, order.end());
        make(order, [&](c10::ArrayRef<c10::Storage> mine) {
          for (const auto& storage : mine) {
            ++made.at(storage.unsafeGetStorageImpl());
            give_memory(storage);
          }
        });
      });
    }
    for (auto& thread : threads) {
      thread.join();
    }
    for (const auto& [storage, count] : made) {
      ASSERT_EQ(count, 1);
      ASSERT_FALSE(is_lazy(storage));
    }
  }
}

TEST(ClaimsThreads, WhatAnotherThreadMakesIsWaitedForAndTheRestIsMadeBefore) {
  const auto theirs = make_lazy_storage(kBytes);
  const auto mine = make_lazy_storage(kBytes);
  Maker maker(theirs);
  std::vector<c10::Storage> made;
  int waited = 0;
  make_each_once({theirs, mine}, {[&](c10::ArrayRef<c10::Storage> storages) {
                                    made.insert(made.end(), storages.begin(), storages.end());
                                    give_memory(storages);
                                  },
                                  [&] {
                                    EXPECT_FALSE(lazy(mine));
                                    if (++waited == 1) {
                                      maker.go_on();
                                    }
                                  },
                                  {}});
  maker.finish();
  EXPECT_GE(waited, 1);
  ASSERT_EQ(made.size(), 1U);
  EXPECT_EQ(made[0].unsafeGetStorageImpl(), mine.unsafeGetStorageImpl());
  EXPECT_FALSE(lazy(theirs));
}

TEST(ClaimsThreads, WhatAnotherThreadFailsToMakeIsMadeByWhoWaits) {
  const auto storage = make_lazy_storage(kBytes);
  Maker maker(storage, [] { throw std::runtime_error("stop"); });
  bool told = false;
  make_each_once({storage}, {[](c10::ArrayRef<c10::Storage> mine) { give_memory(mine); },
                             [&] {
                               if (!std::exchange(told, true)) {
                                 maker.go_on();
                               }
                             },
                             {}});
  EXPECT_FALSE(lazy(storage));
  EXPECT_THROW(maker.finish(), std::runtime_error);
}

TEST(ClaimsThreads, AWaitThatIsStoppedLeavesTheOtherThreadItsWork) {
  const auto storage = make_lazy_storage(kBytes);
  Maker maker(storage);
  const auto wait = [&] {
    make_each_once({storage}, {[](c10::ArrayRef<c10::Storage>) { ADD_FAILURE(); },
                               [] { throw std::runtime_error("interrupted"); },
                               {}});
  };
  EXPECT_THROW(wait(), std::runtime_error);
  EXPECT_TRUE(lazy(storage));
  maker.go_on();
  maker.finish();
  EXPECT_FALSE(lazy(storage));
}

TEST(ClaimsThreads, WhoIsMakingSomethingWaitsForNobody) {
  const auto theirs = make_lazy_storage(kBytes);
  const auto mine = make_lazy_storage(kBytes);
  Maker maker(theirs);
  make({mine}, [&](c10::ArrayRef<c10::Storage> outer) {
    // A callback that wants what the other thread makes, and what this one is making itself.
    make_each_once({theirs, mine}, {[](c10::ArrayRef<c10::Storage> inner) { give_memory(inner); },
                                    [] { ADD_FAILURE() << "two that wait for each other hang"; },
                                    {}});
    give_memory(outer);
  });
  EXPECT_FALSE(lazy(theirs));
  EXPECT_FALSE(lazy(mine));
  maker.go_on();
  maker.finish();
}

}  // namespace
}  // namespace dormant::record
