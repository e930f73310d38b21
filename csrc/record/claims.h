// Who makes which storage: two threads that want the same one do not both make it.
//
// A thread claims what it is about to make, and waits for what others have claimed only while it
// holds no claim and no lock of Python's: so nobody who is waited for can be waiting. Where it may
// not wait, it makes the storage too; the values are the same, and the first to commit wins.
#pragma once

#include <c10/core/Storage.h>
#include <c10/util/ArrayRef.h>
#include <functional>
#include <vector>

namespace dormant::record {

struct Making {
  /// Makes the storages, each of which is one of those wanted, and lazy.
  std::function<void(c10::ArrayRef<c10::Storage>)> make;
  /// Called several times a second while another thread makes what is wanted; may throw to stop.
  std::function<void()> while_waiting;
  /// Whether a storage is to be made; without it, whether it is lazy.
  std::function<bool(const c10::StorageImpl*)> is_wanted;
};

/// Makes the lazy ones among `storages`, each once, until none of them is wanted any more: those
/// that another thread is making are waited for, and made here if it fails, or if somebody has
/// written to them meanwhile. Any thread may call it; nothing is locked meanwhile.
void make_each_once(c10::ArrayRef<c10::Storage> storages, const Making& making);

/// Whether this thread is making something: then it may wait for nobody.
bool has_claims_in_this_thread() noexcept;

}  // namespace dormant::record
