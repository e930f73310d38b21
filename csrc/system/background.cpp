#include "system/background.h"

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace dormant::system {
namespace {

struct Running {
  std::mutex mutex;
  std::condition_variable none;
  int threads = 0;
  bool finished = false;
};

// Never destroyed: threads may outlive static objects. A process made by fork has none of the
// threads and a lock that one of them may have held, so it gets another one.
Running* running = new Running;

void in_child() {
  const bool finished = running->finished;
  running = new Running;
  running->finished = finished;
}

[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, in_child);

}  // namespace

bool run_in_background(std::function<void()> work) {
  auto* const here = running;
  {
    const std::lock_guard<std::mutex> lock(here->mutex);
    if (here->finished) {
      return false;
    }
    ++here->threads;
  }
  const auto leave = [here] {
    const std::lock_guard<std::mutex> lock(here->mutex);
    --here->threads;
    here->none.notify_all();
  };
  try {
    std::thread([work = std::move(work), leave]() mutable {
      work();
      work = nullptr;  // what it holds goes before the thread is no longer counted
      leave();
    }).detach();
  } catch (const std::exception&) {
    leave();
    return false;
  }
  return true;
}

void finish_background() {
  std::unique_lock<std::mutex> lock(running->mutex);
  running->finished = true;
  running->none.wait(lock, [] { return running->threads == 0; });
}

}  // namespace dormant::system
