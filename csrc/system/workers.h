// All threads, working through one list of pieces.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "system/mutex.h"

namespace dormant::system {

/// Belongs to the thread that makes it, the calling thread.
class Workers {
 public:
  /// `on_progress` is called on the calling thread with the bytes done so far, at intervals; what
  /// it throws stops the work.
  Workers(int threads, std::function<void(size_t)> on_progress)
      : threads_(threads), on_progress_(std::move(on_progress)) {}

  /// Calls work(i) for every i below `count`, in order, each on some thread where modes and
  /// recording are off, until none is left or something was thrown anywhere, which is thrown again
  /// here. The calling thread calls `on_progress` also while it only waits for the others.
  void run(size_t count, const std::function<void(size_t)>& work);

  /// Tells of so many more bytes; any thread. Whether to go on: work that is told not to returns.
  bool advance(size_t bytes);

  /// Calls `on_progress` now, where only a signal shall be looked for. On the calling thread.
  void tell();

 private:
  /// For a process made by fork, whose OpenMP threads are gone.
  void run_in_new_threads(size_t count, const std::function<void(size_t)>& work);
  void run_here(size_t count, const std::function<void(size_t)>& work) noexcept;
  void wait_for_others();

  using Clock = std::chrono::steady_clock;

  const int threads_;
  const std::function<void(size_t)> on_progress_;
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<size_t> next_{0};
  std::atomic<size_t> done_{0};
  std::atomic<bool> stopped_{false};
  std::mutex waiting_;
  std::condition_variable left_;
  int at_work_ = 0;  ///< threads; guarded by waiting_
  Clock::time_point told_ = Clock::now();
  Mutex mutex_;
  std::exception_ptr error_ DORMANT_GUARDED_BY(mutex_);
};

}  // namespace dormant::system
