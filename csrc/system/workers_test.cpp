#include "system/workers.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "system/fork.h"

namespace dormant::system {
namespace {

constexpr size_t kPieces = 1000;

/// How often each piece was worked on.
std::vector<int> visits(int threads) {
  std::vector<std::atomic<int>> counts(kPieces);
  Workers workers(threads, {});
  workers.run(kPieces, [&](size_t i) { ++counts[i]; });
  return {counts.begin(), counts.end()};
}

TEST(WorkersThreads, WorkOnEachPieceOnce) {
  for (const int threads : {1, 2, 3}) {
    EXPECT_EQ(visits(threads), std::vector<int>(kPieces, 1)) << threads << " threads";
  }
}

TEST(WorkersThreads, WhatIsThrownAnywhereStopsThemAndComesOut) {
  Workers workers(2, {});
  std::atomic<size_t> after{0};
  EXPECT_THROW(workers.run(kPieces,
                           [&](size_t i) {
                             if (i == 3) {
                               throw std::runtime_error("stop");
                             }
                             // Those who are told to stop return: nobody would otherwise.
                             while (i > 3 && workers.advance(0)) {
                               std::this_thread::yield();
                             }
                             after += i > 3 ? 1 : 0;
                           }),
               std::runtime_error);
  EXPECT_LE(after, 1U);  // the other thread's piece
}

TEST(WorkersThreads, TellTheCallingThreadHowFarTheyAre) {
  const auto caller = std::this_thread::get_id();
  std::vector<size_t> told;
  Workers workers(1, [&](size_t done) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    told.push_back(done);
  });
  workers.run(3, [&](size_t) {
    EXPECT_TRUE(workers.advance(10));
    workers.tell();
  });
  EXPECT_EQ(told, (std::vector<size_t>{10, 20, 30}));
}

TEST(WorkersThreads, ProgressThatThrowsStopsThem) {
  Workers workers(1, [](size_t) { throw std::runtime_error("interrupted"); });
  size_t pieces = 0;
  EXPECT_THROW(workers.run(kPieces,
                           [&](size_t) {
                             ++pieces;
                             workers.tell();
                           }),
               std::runtime_error);
  EXPECT_EQ(pieces, 1U);
}

TEST(WorkersThreads, RecordNothingWhoeverCalls) {
  constexpr auto kRecording = c10::DispatchKey::DeferredInit;
  const c10::impl::IncludeDispatchKeyGuard recording(kRecording);
  std::atomic<int> excluded{0};
  Workers workers(2, {});
  workers.run(kPieces, [&](size_t) {
    excluded += c10::impl::tls_is_dispatch_key_excluded(kRecording) ? 1 : 0;
  });
  EXPECT_EQ(excluded, kPieces);
}

TEST(Workers, WorkOnEachPieceOnceInAProcessMadeByFork) {
  const auto child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // The OpenMP threads of the parent are gone here.
    ::_exit(forked() && visits(3) == std::vector<int>(kPieces, 1) ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace dormant::system
