// Hears of every writer to a file before it writes.
//
// Linux has leases for that (fcntl(2), F_SETLEASE): whoever opens the file for writing or truncates
// it, in whatever process of this machine, waits until the lease is given back, or for
// /proc/sys/fs/lease-break-time seconds (45). The system tells by a signal. It goes to a thread of
// ours that has it blocked and waits for it, so no handler is installed and no other thread sees
// it.
//
// A process made by fork gets a thread and leases of its own.
#pragma once

#include <functional>
#include <memory>

#include "system/export.h"

namespace dormant::system {

class DORMANT_BINDINGS_API Lease {
 public:
  /// A lease on the file behind a descriptor. Null where the system gives none: the file is open
  /// for writing somewhere, belongs to another user, lies on a filesystem without leases, or the
  /// system is not Linux. `before_write` is called at most once in each process, from the thread of
  /// ours, while the writer waits. It must neither throw nor take locks.
  static std::unique_ptr<Lease> take(int descriptor, std::function<void()> before_write);
  /// Waits for a `before_write` that is running.
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  /// Runs `change`, which must not take locks, before any `before_write`. False, without running
  /// it, where a writer came already.
  bool run_if_held(const std::function<void()>& change);

 private:
  friend class LeaseWatcher;
  explicit Lease(std::function<void()> before_write);

  /// An open file of this lease alone: the system knows leases by their open file.
  int descriptor_ = -1;
  const std::function<void()> before_write_;
  bool held_ = false;  // as all of this, touched under the watcher's lock
};

}  // namespace dormant::system
