#include "system/lease.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace dormant::system {
namespace {

/// A file of its own, which goes with the test.
class Scratch {
 public:
  Scratch() {
    auto pattern = std::string(::testing::TempDir()) + "dormant-lease-XXXXXX";
    const int made = ::mkstemp(pattern.data());
    EXPECT_GE(made, 0);
    EXPECT_EQ(::write(made, "0123456789", 10), 10);
    ::close(made);
    path_ = pattern;
  }
  ~Scratch() { ::unlink(path_.c_str()); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  int open(int flags) const { return ::open(path_.c_str(), flags | O_CLOEXEC); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A lease on a file, taken through a descriptor that is closed at once.
std::unique_ptr<Lease> take(const Scratch& file, std::function<void()> before_write) {
  const int descriptor = file.open(O_RDONLY);
  auto lease = Lease::take(descriptor, std::move(before_write));
  ::close(descriptor);
  return lease;
}

#ifdef __linux__
TEST(Lease, AWriterOfThisProcessWaitsForWhatComesBefore) {
  const Scratch file;
  std::atomic<bool> told{false};
  const auto lease = take(file, [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    told = true;
  });
  if (!lease) {
    GTEST_SKIP() << "the filesystem of " << file.path() << " has no leases";
  }
  const int reader = file.open(O_RDONLY);
  EXPECT_FALSE(told);
  const int writer = file.open(O_WRONLY | O_TRUNC);
  EXPECT_TRUE(told);
  ::close(writer);
  ::close(reader);
}

TEST(Lease, TruncationByPathAndAnotherProcessWaitToo) {
  for (const bool in_child : {false, true}) {
    const Scratch file;
    std::atomic<int> told{0};
    const auto lease = take(file, [&] { ++told; });
    if (!lease) {
      GTEST_SKIP() << "the filesystem of " << file.path() << " has no leases";
    }
    const auto command = "printf x > " + file.path();
    EXPECT_EQ(in_child ? std::system(command.c_str()) : ::truncate(file.path().c_str(), 1), 0);
    EXPECT_EQ(told, 1);
    EXPECT_EQ(::truncate(file.path().c_str(), 0), 0);
    EXPECT_EQ(told, 1) << "once";
  }
}

TEST(Lease, ThereIsNoneForAFileThatIsOpenForWriting) {
  const Scratch file;
  const int writer = file.open(O_WRONLY);
  EXPECT_EQ(take(file, [] {}), nullptr);
  ::close(writer);
}

TEST(Lease, WhatRunsWhileItIsHeldComesBeforeAnyWriter) {
  const Scratch file;
  const auto lease = take(file, [] {});
  if (!lease) {
    GTEST_SKIP() << "the filesystem of " << file.path() << " has no leases";
  }
  bool ran = false;
  EXPECT_TRUE(lease->run_if_held([&] { ran = true; }));
  EXPECT_TRUE(ran);
  ::close(file.open(O_WRONLY));
  EXPECT_FALSE(lease->run_if_held([&] { ran = false; }));
  EXPECT_TRUE(ran);
}

TEST(Lease, AnEndedOneHoldsNobodyUp) {
  const Scratch file;
  std::atomic<bool> told{false};
  take(file, [&] { told = true; }).reset();
  ::close(file.open(O_WRONLY));
  EXPECT_FALSE(told);
}

TEST(Lease, AProcessMadeByForkHearsOfWritersItself) {
  const Scratch file;
  std::atomic<bool> told{false};
  auto lease = take(file, [&] { told = true; });
  if (!lease) {
    GTEST_SKIP() << "the filesystem of " << file.path() << " has no leases";
  }
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const auto child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char byte = 0;
    ::close(ends[1]);
    ::_exit(::read(ends[0], &byte, 1) == 0 && told ? 0 : 1);
  }
  ::close(ends[0]);
  lease.reset();  // the child's stays
  ::close(file.open(O_WRONLY));
  EXPECT_FALSE(told);
  ::close(ends[1]);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Lease, ThreadsTakeAndEndThemBesideWriters) {
  const Scratch file;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 50; ++j) {
        if (i % 2 == 0) {
          const auto lease = take(file, [] {});
        } else {
          ::close(file.open(O_WRONLY));
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
}
#endif

}  // namespace
}  // namespace dormant::system
