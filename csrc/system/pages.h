// Huge or ordinary pages for fresh memory, whichever the machine gives faster.
//
// Clearing fresh 4 KiB pages one fault at a time costs as much as drawing the values, and huge
// pages are several times cheaper where the system has them at hand. On a virtual machine whose
// host must find them first they are several times dearer; the first few may still be cheap, and
// which it is changes while a program runs. So nothing is believed: huge pages are faulted in one
// by one and timed, and the first dear one ends them for a while.
#pragma once

#include <cstddef>
#include <mutex>

namespace dormant::system {

class Pages {
 public:
  /// Chooses the kind of pages of [memory, memory + nbytes), which the calling thread is about to
  /// fill. Overwrites some of the bytes. Any number of threads may call it.
  void prepare(std::byte* memory, size_t nbytes);

 private:
  std::mutex mutex_;
  size_t calls_ = 0;
  double ordinary_seconds_ = 0;  ///< for two megabytes of ordinary pages
  size_t next_attempt_ = 0;      ///< the call from which huge pages are tried again
  size_t pause_ = 0;             ///< calls without huge pages after the last dear one
};

}  // namespace dormant::system
