#include "system/background.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>

namespace dormant::system {
namespace {

TEST(BackgroundThread, RunsWorkElsewhereAndDropsWhatItHeld) {
  std::promise<std::thread::id> ran;
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> left = held;
  ASSERT_TRUE(run_in_background(
      [&ran, held = std::move(held)] { ran.set_value(std::this_thread::get_id()); }));
  EXPECT_NE(ran.get_future().get(), std::this_thread::get_id());
  while (!left.expired()) {
    std::this_thread::yield();
  }
}

TEST(BackgroundThread, WorkRunsAtTheSameTime) {
  constexpr int kThreads = 8;
  std::atomic<int> arrived{0};
  std::promise<void> all;
  for (int i = 0; i < kThreads; ++i) {
    ASSERT_TRUE(run_in_background([&] {
      if (++arrived == kThreads) {
        all.set_value();
      }
      while (arrived < kThreads) {
        std::this_thread::yield();
      }
      ++arrived;
    }));
  }
  all.get_future().get();
  while (arrived < 2 * kThreads) {
    std::this_thread::yield();
  }
}

}  // namespace
}  // namespace dormant::system
