#include "record/turns.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "record/claims.h"
#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

using Things = std::vector<const void*>;

/// Three things to have turns with.
struct TurnThreads : ::testing::Test {
  char a = 0;
  char b = 0;
  char c = 0;
};

/// Whether another thread could have its turn at once.
bool is_free(const Things& things) {
  struct Waits {};
  return std::async(std::launch::async,
                    [&] {
                      try {
                        const Turn turn(things, [] { throw Waits(); });
                        return true;
                      } catch (const Waits&) {
                        return false;
                      }
                    })
      .get();
}

TEST_F(TurnThreads, OneFollowsTheOther) {
  auto first = std::make_unique<Turn>(Things{&a, &b});
  std::promise<void> waits;
  std::atomic<int> looks{0};
  std::atomic<bool> has_ended{false};
  auto second = std::async(std::launch::async, [&] {
    const Turn turn({&b, &c}, [&] {
      if (++looks == 2) {
        waits.set_value();
      }
    });
    EXPECT_TRUE(has_ended);
  });
  waits.get_future().wait();
  EXPECT_TRUE(is_free({&c}));  // who waits has nothing
  has_ended = true;
  first.reset();
  second.get();
  EXPECT_TRUE(is_free({&a, &b, &c}));
}

TEST_F(TurnThreads, WhatNobodyElseHasIsNotWaitedFor) {
  const Turn turn({&a});
  EXPECT_TRUE(is_free({&b, &c}));
  EXPECT_FALSE(is_free({&a}));
  EXPECT_FALSE(is_free({&c, &a}));
}

TEST_F(TurnThreads, ThoseOfOneThreadOverlapAndEachEndsForItself) {
  Turn outer({&a, &b});
  Turn inner({&b, &b, &c});
  outer.end();
  outer.end();
  EXPECT_TRUE(is_free({&a}));
  EXPECT_FALSE(is_free({&b}));
  inner.end();
  EXPECT_TRUE(is_free({&a, &b, &c}));
}

TEST_F(TurnThreads, AnEndMayBeInAnotherThread) {
  auto turn = std::make_unique<Turn>(Things{&a});
  std::thread([&] { turn.reset(); }).join();
  EXPECT_TRUE(is_free({&a}));
}

/// Another thread's turn.
class Held {
 public:
  explicit Held(const Things& things)
      : turn_(
            std::async(std::launch::async, [&] { return std::make_unique<Turn>(things); }).get()) {}

 private:
  std::unique_ptr<Turn> turn_;
};

TEST_F(TurnThreads, WhoHasOneDoesNotWaitForAnother) {
  const Held held({&a});
  const Turn own({&b});
  EXPECT_THROW(const Turn refused({&a, &c}), c10::Error);
  EXPECT_TRUE(is_free({&c}));
}

TEST_F(TurnThreads, WhoIsMakingSomethingDoesNotWait) {
  const Held held({&a});
  const auto storage = make_lazy_storage(8);
  int calls = 0;
  const auto make = [&](c10::ArrayRef<c10::Storage> lazy) {
    ++calls;
    EXPECT_THROW(const Turn refused({&a}), c10::Error);
    auto* impl = lazy[0].unsafeGetStorageImpl();
    auto memory = allocate(8);
    commit(impl, *history_of(impl),
           std::move(memory.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
  };
  make_each_once({storage}, {make, [] {}, {}});
  EXPECT_EQ(calls, 1);
}

TEST_F(TurnThreads, WhatIsThrownWhileWaitingEndsTheWait) {
  const Held held({&a});
  const auto stop = [] { throw std::runtime_error("stop"); };
  EXPECT_THROW(const Turn stopped({&a, &b}, stop), std::runtime_error);
  EXPECT_TRUE(is_free({&b}));
  EXPECT_FALSE(is_free({&a}));
}

TEST_F(TurnThreads, EndsAreCounted) {
  const auto before = Turn::ended();
  Turn turn({&a});
  EXPECT_EQ(Turn::ended(), before);
  turn.end();
  turn.end();
  EXPECT_EQ(Turn::ended(), before + 1);
}

TEST_F(TurnThreads, ManyAreNeverTwoAtATime) {
  std::atomic<int> now{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 50; ++round) {
        const Turn turn(i % 2 == 0 ? Things{&a, &b} : Things{&c, &b});
        EXPECT_EQ(++now, 1);
        std::this_thread::yield();
        --now;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

}  // namespace
}  // namespace dormant::record
