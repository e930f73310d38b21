#include "publication/staging.h"

#include <c10/util/hash.h>
#include <dirent.h>
#include <sys/file.h>

#include <array>
#include <filesystem>
#include <memory>
#include <new>
#include <random>
#include <string_view>

#include "system/folder.h"
#include "text/printable.h"

namespace dormant::publication {
namespace {

constexpr const char* kLock = "lock";
constexpr const char* kFiles = "files";
constexpr const char* kUnlocked = "unlocked";
constexpr const char* kBoot = "/proc/sys/kernel/random/boot_id";
constexpr size_t kDigits = 16;

/// Stands for all processes that see each other's locks on files in `folder`.
std::string place_of(const std::string& folder) {
  // Not by streams, which pass over exhausted memory and give less than there is.
  const Descriptor file(::open(kBoot, O_RDONLY | O_CLOEXEC));
  std::array<char, 64> boot{};
  const auto length = file ? ::read(file.get(), boot.data(), boot.size()) : -1;
  struct stat status{};
  if (length <= 0) {
    return kUnlocked;
  }
  if (::stat(folder.c_str(), &status) != 0) {
    refuse(errno, "cannot create files in " + text::printable(folder));
  }
  c10::sha1 hash(std::string(boot.data(), static_cast<size_t>(length)) + " " +
                 std::to_string(status.st_dev));
  auto digits = hash.str();
  if (digits.size() != 40) {  // it is made by a stream
    throw std::bad_alloc();
  }
  digits.resize(kDigits);
  return digits;
}

using OpenFolder = std::unique_ptr<DIR, int (*)(DIR*)>;

/// Removes a file, or a folder and what is in it, as far as the system lets it.
void remove_tree(int parent, const char* name) {
  if (::unlinkat(parent, name, 0) == 0 || (errno != EISDIR && errno != EPERM)) {
    return;
  }
  const int descriptor = ::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0) {
    return;
  }
  const OpenFolder folder(::fdopendir(descriptor), &::closedir);
  if (!folder) {
    ::close(descriptor);
    return;
  }
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is this thread's
  while (const auto* entry = ::readdir(folder.get())) {
    const std::string_view found = entry->d_name;
    if (found != "." && found != "..") {
      remove_tree(descriptor, entry->d_name);
    }
  }
  ::unlinkat(parent, name, AT_REMOVEDIR);
}

}  // namespace

std::string random_digits(size_t count) {
  constexpr std::string_view kAll = "0123456789abcdef";
  std::random_device random;
  std::string digits;
  while (digits.size() < count) {
    digits.push_back(kAll[random() % kAll.size()]);
  }
  return digits;
}

Staging::Staging(const std::string& folder) : maker_(::getpid()) {
  auto place = place_of(folder);
  try {
    while (!try_make(folder, place)) {
    }
  } catch (...) {
    remove();
    throw;
  }
}

Staging::Staging(Abandoned /*whose*/, std::string path) : path_(std::move(path)) { open(); }

Staging::~Staging() {
  if (maker_ == ::getpid()) {
    remove();
  }
}

void Staging::open() {
  folder_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

bool Staging::try_make(const std::string& folder, std::string& place) {
  remove();
  path_ = folder + "/.dormant-" + place + "-" + random_digits(kDigits) + ".tmp";
  const auto refused = [&] {
    refuse(errno, "cannot create files in " + text::printable(folder) +
                      ". Next: check that the folder exists and can be written");
  };
  if (attempt([&] { return ::mkdir(path_.c_str(), 0700); }) != 0) {
    refused();
  }
  open();
  if (!folder_) {
    if (errno == ENOENT && is_there(folder)) {
      return false;  // taken for abandoned before it was locked
    }
    refused();
  }
  if (place != kUnlocked) {
    if (!open_lock(O_CREAT | O_EXCL)) {
      if (errno == ENOENT) {
        return false;
      }
      refused();
    }
    const auto taken = take_lock();
    if (!taken) {
      place = kUnlocked;  // the system has no locks
      return false;
    }
    if (!*taken) {
      return false;  // another process was faster, and removes the folder
    }
  }
  if (attempt([&] { return ::mkdirat(folder_.get(), kFiles, 0777); }) != 0) {
    if (errno == ENOENT) {
      return false;
    }
    refused();
  }
  return true;
}

std::string Staging::files() const { return path_ + "/" + kFiles; }

std::string Staging::keep() {
  maker_ = 0;
  const auto folder = std::filesystem::path(path_).parent_path();
  const auto kept = (folder / (".dormant-kept-" + random_digits(kDigits) + ".tmp")).string();
  if (::rename(path_.c_str(), kept.c_str()) == 0) {
    path_ = kept;
  }
  return path_;
}

bool Staging::open_lock(int flags) {
  flags |= O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  lock_ = Descriptor(::openat(folder_.get(), kLock, flags, 0600));
  return static_cast<bool>(lock_);
}

/// Whether it is ours now: not where another one has it, or had it and removed it. std::nullopt
/// where the system has no locks.
std::optional<bool> Staging::take_lock() {
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return errno == EWOULDBLOCK ? std::optional(false) : std::nullopt;
  }
  struct stat mine{};
  struct stat there{};
  return ::fstat(lock_.get(), &mine) == 0 &&
         ::fstatat(folder_.get(), kLock, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
         is_same_file(mine, there);
}

/// What there is to lose goes first: without a lock there is nothing.
void Staging::remove() {
  if (folder_) {
    remove_tree(folder_.get(), kFiles);
    struct stat status{};
    if (::fstatat(folder_.get(), kFiles, &status, AT_SYMLINK_NOFOLLOW) != 0) {
      ::unlinkat(folder_.get(), kLock, 0);
    }
  }
  if (!path_.empty()) {
    ::rmdir(path_.c_str());
  }
  folder_ = Descriptor();
  lock_ = Descriptor();
}

void Staging::remove_if_abandoned() {
  struct stat status{};
  if (!folder_ || ::fstat(folder_.get(), &status) != 0 || status.st_uid != ::geteuid()) {
    return;
  }
  if (!open_lock(0)) {
    if (errno == ENOENT) {
      // Its maker may live and be about to make the lock; then it is no longer empty.
      ::rmdir(path_.c_str());
    }
    return;
  }
  if (take_lock() == true) {
    remove();
  }
}

void remove_abandoned(const std::string& folder) {
  try {
    const auto place = place_of(folder);
    if (place == kUnlocked) {
      return;
    }
    const auto begin = ".dormant-" + place + "-";
    constexpr std::string_view kEnd = ".tmp";
    for (const auto& name : system::names_in(folder, "save")) {
      if (name.size() == begin.size() + kDigits + kEnd.size() && name.starts_with(begin) &&
          name.ends_with(kEnd) &&
          name.find_first_not_of("0123456789abcdef", begin.size()) == begin.size() + kDigits) {
        Staging(Staging::Abandoned{}, folder + "/" + name).remove_if_abandoned();
      }
    }
  } catch (const std::system_error&) {
    return;
  }
}

}  // namespace dormant::publication
