// A private mapping of a whole file, and which of its bytes somebody has.
//
// Until somebody writes to a page of it, the page is the file's: rewriting the file changes it. And
// truncating the file makes every page SIGBUS, those that were written to as well. A mapping with a
// lease puts memory of its own under its pages before either happens. What another thread writes to
// a page in the very moment in which that is done may be lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "record/source.h"
#include "system/lease.h"

namespace dormant::checkpoint {

class FileMapping {
 public:
  /// Null where the system has no room for it.
  static std::shared_ptr<FileMapping> make(int descriptor, size_t size);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  /// Gives [begin, end) to the caller, who holds the lock that guards all calls of this. False if
  /// any of the bytes was given before, or if `guard` cannot be had.
  bool claim(uint64_t begin, uint64_t end, record::Guard guard);

  std::byte* memory() const noexcept { return memory_; }

 private:
  explicit FileMapping(size_t size) : size_(size) {}
  bool add(uint64_t begin, uint64_t end);
  /// Gives every claimed page memory of its own.
  void detach() noexcept;

  std::byte* memory_ = nullptr;
  const size_t size_;
  std::map<uint64_t, uint64_t> claimed_;  ///< begin -> end; changed only while the lease is held
  std::unique_ptr<system::Lease> lease_;
};

}  // namespace dormant::checkpoint
