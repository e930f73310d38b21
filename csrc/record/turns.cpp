#include "record/turns.h"

#include <c10/util/DeadlockDetection.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <unordered_map>
#include <utility>

#include "record/claims.h"
#include "system/mutex.h"

namespace dormant::record {
namespace {

constexpr auto kBetweenLooks = std::chrono::milliseconds(50);

/// Of this thread, and never of another one: std::thread::id is used again, and a turn may outlive
/// its thread.
uint64_t this_thread() {
  static std::atomic<uint64_t> threads{0};
  thread_local const uint64_t number = ++threads;
  return number;
}

struct Owner {
  uint64_t thread = 0;
  size_t turns = 0;
};

struct Registry {
  system::Mutex mutex;
  std::condition_variable_any released;
  std::unordered_map<const void*, Owner> owners DORMANT_GUARDED_BY(mutex);
};

Registry& registry() {
  static auto* registry = new Registry;  // NOLINT: threads may outlive static destructors
  return *registry;
}

/// The threads that have turns are gone, but for the one that made the process, whose turns end
/// as if they had never been.
void in_child() { std::construct_at(&registry()); }

[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, in_child);

std::atomic<uint64_t> ended_turns{0};

void release(Registry& all, const void* thing) DORMANT_REQUIRES(all.mutex) {
  const auto found = all.owners.find(thing);
  if (found != all.owners.end() && --found->second.turns == 0) {
    all.owners.erase(found);
  }
}

bool has_a_turn(Registry& all, uint64_t thread) DORMANT_REQUIRES(all.mutex) {
  return std::any_of(all.owners.begin(), all.owners.end(),
                     [&](const auto& each) { return each.second.thread == thread; });
}

}  // namespace

Turn::Turn(std::vector<const void*> things, const std::function<void()>& while_waiting) {
  std::sort(things.begin(), things.end());
  things.erase(std::unique(things.begin(), things.end()), things.end());
  things_ = std::move(things);
  while (!try_to_take()) {
    auto& all = registry();
    {
      const system::MutexLock lock(all.mutex);
      const bool may_wait = !has_a_turn(all, this_thread()) && !has_claims_in_this_thread() &&
                            !c10::impl::check_python_gil();
      if (!may_wait) {
        things_.clear();
      }
      TORCH_CHECK(may_wait,
                  "load: another thread is loading the same module. Cause: this thread "
                  "cannot wait, because it is in the middle of loading or materializing, or holds "
                  "Python's lock. Next: load the module when the other thread is done.");
      all.released.wait_for(all.mutex, kBetweenLooks);
    }
    if (while_waiting) {
      while_waiting();
    }
  }
}

Turn::~Turn() { end(); }

bool Turn::try_to_take() {
  auto& all = registry();
  const system::MutexLock lock(all.mutex);
  const auto me = this_thread();
  for (const auto* thing : things_) {
    const auto found = all.owners.find(thing);
    if (found != all.owners.end() && found->second.thread != me) {
      return false;
    }
  }
  size_t taken = 0;
  try {
    for (const auto* thing : things_) {
      auto& owner = all.owners[thing];
      owner.thread = me;
      ++owner.turns;
      ++taken;
    }
  } catch (...) {
    for (size_t i = 0; i < taken; ++i) {
      release(all, things_[i]);
    }
    things_.clear();
    throw;
  }
  return true;
}

void Turn::end() noexcept {
  if (things_.empty()) {
    return;
  }
  auto& all = registry();
  {
    const system::MutexLock lock(all.mutex);
    for (const auto* thing : things_) {
      release(all, thing);
    }
    ended_turns.fetch_add(1);
  }
  things_.clear();
  all.released.notify_all();
}

uint64_t Turn::ended() noexcept { return ended_turns.load(); }

}  // namespace dormant::record
