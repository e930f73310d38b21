#include "system/thread_count.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <thread>

namespace dormant::system {
namespace {

int in_another_thread() {
  int count = 0;
  std::thread([&] { count = at::get_num_threads(); }).join();
  return count;
}

TEST(ThreadCount, IsThatOfThisThreadWhileItLives) {
  const int before = at::get_num_threads();
  {
    const ThreadCount outer(before + 3);
    EXPECT_EQ(at::get_num_threads(), before + 3);
    {
      const ThreadCount inner(1);
      EXPECT_EQ(at::get_num_threads(), 1);
    }
    EXPECT_EQ(at::get_num_threads(), before + 3);
  }
  EXPECT_EQ(at::get_num_threads(), before);
}

TEST(ThreadCount, NoOtherThreadNotices) {
  const int before = in_another_thread();
  const ThreadCount threads(at::get_num_threads() + 3);
  EXPECT_EQ(in_another_thread(), before);
}

}  // namespace
}  // namespace dormant::system
