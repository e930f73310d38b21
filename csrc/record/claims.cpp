#include "record/claims.h"

#include <c10/util/DeadlockDetection.h>
#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "record/lazy_storage.h"
#include "system/mutex.h"

namespace dormant::record {
namespace {

constexpr auto kBetweenLooks = std::chrono::milliseconds(50);

struct Registry {
  system::Mutex mutex;
  std::condition_variable_any released;
  std::unordered_map<const c10::StorageImpl*, std::thread::id> owners DORMANT_GUARDED_BY(mutex);
};

Registry& registry() {
  static auto* registry = new Registry;  // NOLINT: threads may outlive static destructors
  return *registry;
}

/// The threads that claimed anything are gone.
void in_child() { std::construct_at(&registry()); }

[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, in_child);

thread_local int claims_of_this_thread = 0;

/// The storages that nobody else has claimed, claimed for this thread until destroyed.
class Claims {
 public:
  /// The destructor also runs where this throws half-way: no claim outlives its thread's interest.
  explicit Claims(c10::ArrayRef<c10::Storage> wanted) : Claims() {
    auto& all = registry();
    const system::MutexLock lock(all.mutex);
    const auto me = std::this_thread::get_id();
    claimed_.reserve(wanted.size());
    for (const auto& storage : wanted) {
      const auto [found, is_new] = all.owners.emplace(storage.unsafeGetStorageImpl(), me);
      if (is_new) {
        claimed_.push_back(found->first);
      }
      // What this thread is making already, and a callback wants, cannot be waited for.
      (found->second == me ? mine : others).push_back(storage);
    }
  }
  ~Claims() {
    auto& all = registry();
    {
      const system::MutexLock lock(all.mutex);
      for (const auto* storage : claimed_) {
        all.owners.erase(storage);
      }
    }
    --claims_of_this_thread;
    all.released.notify_all();
  }
  Claims(const Claims&) = delete;
  Claims& operator=(const Claims&) = delete;

  std::vector<c10::Storage> mine;
  std::vector<c10::Storage> others;

 private:
  Claims() { ++claims_of_this_thread; }

  std::vector<const c10::StorageImpl*> claimed_;
};

/// Until nobody has claimed the storage, or about as long as `kBetweenLooks`.
void wait_for(const c10::Storage& storage) {
  const auto end = std::chrono::steady_clock::now() + kBetweenLooks;
  auto& all = registry();
  const system::MutexLock lock(all.mutex);
  while (all.owners.count(storage.unsafeGetStorageImpl()) != 0 &&
         all.released.wait_until(all.mutex, end) != std::cv_status::timeout) {
  }
}

std::vector<c10::Storage> wanted_of(c10::ArrayRef<c10::Storage> storages, const Making& making) {
  std::vector<c10::Storage> wanted;
  std::unordered_set<const c10::StorageImpl*> seen;
  for (const auto& storage : storages) {
    const auto* impl = storage.unsafeGetStorageImpl();
    if ((making.is_wanted ? making.is_wanted(impl) : is_lazy(impl)) && seen.insert(impl).second) {
      wanted.push_back(storage);
    }
  }
  return wanted;
}

}  // namespace

bool has_claims_in_this_thread() noexcept { return claims_of_this_thread != 0; }

void make_each_once(c10::ArrayRef<c10::Storage> storages, const Making& making) {
  const bool may_wait = claims_of_this_thread == 0 && !c10::impl::check_python_gil();
  for (auto wanted = wanted_of(storages, making); !wanted.empty();
       wanted = wanted_of(storages, making)) {
    std::vector<c10::Storage> others;
    {
      Claims claims(wanted);
      const bool waits = may_wait && !claims.others.empty();
      // What another thread made between the look and the claim is made.
      const auto mine = wanted_of(waits ? claims.mine : wanted, making);
      if (!mine.empty()) {
        making.make(mine);
      }
      if (!waits) {
        continue;
      }
      others = std::move(claims.others);
    }
    making.while_waiting();
    wait_for(others.front());
  }
}

}  // namespace dormant::record
