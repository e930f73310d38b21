// Processes made by fork.
//
// Only the thread that forks lives on in the child. The threads of OpenMP do not, and the runtime
// of GCC waits for them forever; a lock that another thread held stays locked.
#pragma once

#include <optional>

#include "system/thread_count.h"

namespace dormant::system {

/// Whether this process was made by fork after this library was loaded.
bool forked() noexcept;

/// In such a process: PyTorch uses one thread while this lives. Threads of our own have no pool of
/// OpenMP's to wait for.
class OneThreadIfForked {
 public:
  OneThreadIfForked();
  ~OneThreadIfForked();
  OneThreadIfForked(const OneThreadIfForked&) = delete;
  OneThreadIfForked& operator=(const OneThreadIfForked&) = delete;

  /// How many threads of our own may work: PyTorch's number, which an open guard hides.
  static int own_thread_count();

 private:
  std::optional<ThreadCount> one_;
};

}  // namespace dormant::system
