// One at a time in a folder, of any thread or process, Python's too
// (python/dormant/publication/locking.py).
#pragma once

#include <string>

#include "publication/descriptor.h"

namespace dormant::publication {

/// An open folder that nobody else has from here. The lock is the folder's own (flock): it needs no
/// file, and a killed process holds none. NFS and others lock files only; there it is a file. Where
/// files have no locks either, nobody waits.
class FolderLock {
 public:
  /// Waits for it. std::system_error where the folder cannot be opened.
  explicit FolderLock(const std::string& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  int folder() const noexcept { return folder_.get(); }

 private:
  void lock_file();

  Descriptor folder_;
  Descriptor file_;
  bool owns_file_ = false;
};

}  // namespace dormant::publication
