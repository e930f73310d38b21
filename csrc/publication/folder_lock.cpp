#include "publication/folder_lock.h"

#include <sys/file.h>

#include "text/printable.h"

namespace dormant::publication {
namespace {

// Only where folders cannot be locked; whoever has the lock removes it.
constexpr const char* kLockFile = ".dormant-lock.tmp";

bool wait_for_lock(int descriptor) {
  int result = 0;
  do {
    result = ::flock(descriptor, LOCK_EX);
  } while (result < 0 && errno == EINTR);
  return result == 0;
}

}  // namespace

FolderLock::FolderLock(const std::string& folder)
    : folder_(attempt([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); })) {
  if (!folder_) {
    refuse(errno, "opening the folder " + text::printable(folder));
  }
  if (!wait_for_lock(folder_.get())) {
    lock_file();
  }
}

FolderLock::~FolderLock() {
  if (owns_file_) {
    ::unlinkat(folder_.get(), kLockFile, 0);
  }
}

void FolderLock::lock_file() {
  while (true) {
    Descriptor lock(::openat(folder_.get(), kLockFile,
                             O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666));
    struct stat mine{};
    struct stat there{};
    struct stat folder{};
    if (!lock || ::fstat(lock.get(), &mine) != 0 || !S_ISREG(mine.st_mode)) {
      return;
    }
    // Whoever may write to the folder may lock it.
    if (::fstat(folder_.get(), &folder) == 0) {
      [[maybe_unused]] const int ignored = ::fchmod(lock.get(), folder.st_mode & 0666);
    }
    if (!wait_for_lock(lock.get())) {
      ::unlinkat(folder_.get(), kLockFile, 0);
      return;
    }
    // Unless another one had it, and removed it.
    if (::fstatat(folder_.get(), kLockFile, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
        is_same_file(mine, there)) {
      file_ = std::move(lock);
      owns_file_ = true;
      return;
    }
  }
}

}  // namespace dormant::publication
