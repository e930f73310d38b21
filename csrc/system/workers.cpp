#include "system/workers.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "system/dispatch_state.h"
#include "system/fork.h"

namespace dormant::system {
namespace {

constexpr auto kInterval = std::chrono::milliseconds(50);

}  // namespace

void Workers::run(size_t count, const std::function<void(size_t)>& work) {
  next_ = 0;
  if (forked()) {
    run_in_new_threads(count, work);
  } else {
    at::parallel_for(0, threads_, 1, [&](int64_t begin, int64_t end) {
      for (auto worker = begin; worker < end; ++worker) {
        run_here(count, work);
      }
    });
  }
  const MutexLock lock(mutex_);
  if (error_) {
    std::rethrow_exception(error_);
  }
}

void Workers::run_in_new_threads(size_t count, const std::function<void(size_t)>& work) {
  const auto wanted = std::min(static_cast<size_t>(threads_), count);
  std::vector<std::thread> threads;
  threads.reserve(wanted);
  try {
    while (threads.size() + 1 < wanted) {
      threads.emplace_back([&] { run_here(count, work); });
    }
  } catch (const std::exception&) {
    // The system gives no more threads, or no memory for them: those that there are do the work.
  }
  run_here(count, work);
  for (auto& thread : threads) {
    thread.join();
  }
}

void Workers::run_here(size_t count, const std::function<void(size_t)>& work) noexcept {
  // Modes and recording belong to the calling thread; the others have their own.
  const PlainDispatch plain;
  {
    const std::lock_guard<std::mutex> lock(waiting_);
    ++at_work_;
  }
  try {
    for (size_t i = next_++; i < count && !stopped_; i = next_++) {
      work(i);
    }
    wait_for_others();
  } catch (...) {
    const MutexLock lock(mutex_);
    if (!error_) {
      error_ = std::current_exception();
    }
    stopped_ = true;
  }
  const std::lock_guard<std::mutex> lock(waiting_);
  --at_work_;
  left_.notify_all();
}

/// The runtime's barrier, in which a thread would wait else, knows no signals.
void Workers::wait_for_others() {
  if (std::this_thread::get_id() != caller_) {
    return;
  }
  std::unique_lock<std::mutex> lock(waiting_);
  while (!left_.wait_for(lock, kInterval, [&] { return at_work_ == 1; })) {
    lock.unlock();
    tell();
    lock.lock();
  }
}

bool Workers::advance(size_t bytes) {
  done_ += bytes;
  if (std::this_thread::get_id() == caller_ && Clock::now() - told_ >= kInterval) {
    tell();
  }
  return !stopped_;
}

void Workers::tell() {
  told_ = Clock::now();
  if (on_progress_) {
    on_progress_(done_);
  }
}

}  // namespace dormant::system
