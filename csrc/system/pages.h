// Huge or ordinary pages for fresh memory, whichever the machine gives faster.
//
// Clearing fresh 4 KiB pages one fault at a time costs as much as drawing the values, and huge
// pages are several times cheaper where the system has them at hand. On a virtual machine whose
// host must find them first they are several times dearer; the first few may still be cheap, and
// which it is changes while a program runs. So nothing is believed: huge pages are faulted in one
// by one and timed, and the first dear one ends them for a while.
#pragma once

#include <cstddef>

#include "system/mutex.h"

namespace dormant::system {

class Pages {
 public:
  /// Chooses the kind of pages of [memory, memory + nbytes), which the calling thread is about to
  /// fill. Overwrites some of the bytes. Any number of threads may call it.
  void prepare(std::byte* memory, size_t nbytes);

 private:
  Mutex mutex_;
  size_t calls_ DORMANT_GUARDED_BY(mutex_) = 0;
  /// For two megabytes of ordinary pages.
  double ordinary_seconds_ DORMANT_GUARDED_BY(mutex_) = 0;
  /// The call from which huge pages are tried again.
  size_t next_attempt_ DORMANT_GUARDED_BY(mutex_) = 0;
  /// Calls without huge pages after the last dear one.
  size_t pause_ DORMANT_GUARDED_BY(mutex_) = 0;
};

}  // namespace dormant::system
