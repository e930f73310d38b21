#include "publication/publication.h"

#include <sys/statvfs.h>

#include <array>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <utility>

#include "publication/folder_lock.h"
#include "text/printable.h"

namespace dormant::publication {
namespace {

namespace fs = std::filesystem;
using text::printable;

/// What systems answer where a filesystem gives a file one name only, as FAT does.
bool has_no_links(int error) {
  return error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK ||
         error == EXDEV;
}

/// And where it has nothing to do for a folder that shall reach the device.
bool has_no_sync(int error) { return error == EINVAL || error == EOPNOTSUPP || error == EBADF; }

/// The permissions of the file that one of this name will replace; std::nullopt where there is
/// none, also where a link leads nowhere. EACCES where it must not be written.
std::optional<mode_t> mode_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) {
      return std::nullopt;
    }
    refuse(errno, "cannot create " + printable(path));
  }
  while (::access(path.c_str(), W_OK) != 0) {
    // A file that another save removes in between answers as one that is read-only.
    const auto asked = status;
    if (::stat(path.c_str(), &status) != 0) {
      return std::nullopt;
    }
    if (is_same_file(asked, status)) {
      refuse(EACCES, "cannot create " + printable(path) +
                         ": a file of this name is read-only. Next: check that the folder and the "
                         "file can be written");
    }
  }
  return S_ISREG(status.st_mode) ? std::optional<mode_t>(status.st_mode & 07777) : std::nullopt;
}

std::string in_units(double bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text.data();
}

}  // namespace

MadeFolder::MadeFolder(const std::string& folder) {
  std::vector<std::string> absent;
  std::error_code error;
  for (auto place = fs::path(folder); !place.empty() && !fs::exists(place, error);
       place = place.parent_path()) {
    if (place.has_filename()) {
      absent.push_back(place.string());
    }
  }
  made_.reserve(absent.size());  // nothing below it throws but what says so
  int failure = 0;
  for (auto place = absent.rbegin(); failure == 0 && place != absent.rend(); ++place) {
    if (attempt([&] { return ::mkdir(place->c_str(), 0777); }) == 0) {
      made_.push_back(std::move(*place));
    } else if (errno != EEXIST) {
      failure = errno;
    }
  }
  if (failure == 0 && !fs::is_directory(folder, error)) {
    failure = ENOTDIR;
  }
  if (failure != 0) {
    remove();
    refuse(failure, "making the folder " + printable(folder));
  }
}

MadeFolder::~MadeFolder() { remove(); }

void MadeFolder::remove() {
  for (auto made = made_.rbegin(); made != made_.rend(); ++made) {
    ::rmdir(made->c_str());
  }
  made_.clear();
}

Publication::Publication(std::string folder) : folder_(std::move(folder)) {
  remove_abandoned(folder_);
}

void Publication::check_room(uint64_t nbytes) const {
  struct statvfs status{};
  if (::statvfs(folder_.c_str(), &status) != 0) {
    return;  // what creates the files says what is wrong
  }
  const auto free = static_cast<double>(status.f_bavail) * static_cast<double>(status.f_frsize);
  // Some filesystems count no blocks.
  if (status.f_blocks != 0 && static_cast<double>(nbytes) > free) {
    refuse(ENOSPC, in_units(static_cast<double>(nbytes)) + " do not fit into " +
                       printable(folder_) + ", whose device has " + in_units(free) + " free");
  }
}

std::string Publication::temporary_path() {
  if (!staging_) {
    staging_.emplace(folder_);
  }
  return staging_->files() + "/" + std::to_string(next_++) + ".tmp";
}

void Publication::create(const std::string& name, const std::function<void(int descriptor)>& fill) {
  const auto mode = mode_of(path_of(name));
  const auto path = temporary_path();
  constexpr int kFlags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;
  const Descriptor file(attempt([&] { return ::open(path.c_str(), kFlags, 0666); }));
  if (!file) {
    refuse(errno, "cannot create " + printable(path_of(name)) +
                      ". Next: check that the folder exists, and that it and the file can be "
                      "written");
  }
  if (mode) {
    // Some filesystems know no modes.
    [[maybe_unused]] const int ignored = ::fchmod(file.get(), *mode);
  }
  fill(file.get());
  if (attempt([&] { return ::fsync(file.get()); }) != 0) {
    refuse(errno, "cannot flush to the device: " + printable(path_of(name)));
  }
  waiting_[name] = path;
}

void Publication::publish(const std::function<void(Replacement&)>& order) {
  {
    const FolderLock lock(folder_);
    Replacement replacement(*this, lock.folder());
    try {
      order(replacement);
      replacement.sync();
    } catch (const std::exception& error) {
      const int failure = replacement.undo();
      if (failure != 0) {
        refuse(failure, "files of " + printable(folder_) +
                            " cannot be put back after another error (" + error.what() +
                            "). Next: look for their earlier contents in " +
                            printable(staging_->keep()));
      }
      throw;
    }
  }
  // What was replaced may take long to remove: without the lock.
  staging_.reset();
}

void Replacement::place(const std::string& name) {
  const auto path = publication_.path_of(name);
  const auto waiting = publication_.waiting_.at(name);
  set_aside(path, /*replaced=*/true);
  if (attempt([&] { return ::rename(waiting.c_str(), path.c_str()); }) != 0) {
    refuse(errno, "giving a new file the name " + printable(path));
  }
  publication_.waiting_.erase(name);
}

bool Replacement::place_also(const std::string& name, const std::string& other) {
  const auto path = publication_.path_of(other);
  const auto& waiting = publication_.waiting_.at(name);
  steps_.push_back({path, {}});
  if (attempt_link([&] { return ::link(waiting.c_str(), path.c_str()); }) == 0) {
    return true;
  }
  if (!has_no_links(errno)) {
    refuse(errno, "giving a new file the name " + printable(path));
  }
  return false;
}

void Replacement::rename(const std::string& name, const std::string& other) {
  auto found = publication_.waiting_.extract(name);
  publication_.waiting_[other] = std::move(found.mapped());
}

void Replacement::create(const std::string& name, const std::function<void(int descriptor)>& fill) {
  publication_.create(name, fill);
}

void Replacement::remove(const std::string& name) {
  const auto path = publication_.path_of(name);
  if (!is_there(path)) {
    return;
  }
  set_aside(path, /*replaced=*/false);
  if (attempt([&] { return ::unlink(path.c_str()); }) != 0 && errno != ENOENT) {
    refuse(errno, "removing " + printable(path));
  }
}

void Replacement::sync() const {
  if (attempt([&] { return ::fsync(folder_); }) != 0 && !has_no_sync(errno)) {
    refuse(errno, "cannot flush to the device the names in " + printable(folder()));
  }
}

void Replacement::set_aside(const std::string& path, bool replaced) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) {
    steps_.push_back({path, {}});
    return;
  }
  if (S_ISDIR(status.st_mode)) {
    refuse(EISDIR, printable(path) +
                       " is a folder, but a file of this name must be written. Next: remove it, "
                       "or save elsewhere");
  }
  const auto kept = publication_.temporary_path();
  steps_.push_back({path, kept});
  // A second name, so that the first one is never missing while it is replaced.
  if (attempt_link([&] { return ::link(path.c_str(), kept.c_str()); }) == 0) {
    return;
  }
  if (!has_no_links(errno)) {
    refuse(errno, "keeping the earlier " + printable(path));
  }
  if (replaced) {
    // A kill must not meet the name missing, so this step cannot be undone, nor can those before
    // it, on which it stands.
    steps_.clear();
  } else if (attempt([&] { return ::rename(path.c_str(), kept.c_str()); }) != 0) {
    refuse(errno, "keeping the earlier " + printable(path));
  }
}

int Replacement::undo() noexcept {
  int failure = 0;
  for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
    if (step->kept.empty()) {
      ::unlink(step->path.c_str());
      continue;
    }
    if (attempt([&] { return ::rename(step->kept.c_str(), step->path.c_str()); }) == 0) {
      // Where both are names of one file, renaming does nothing.
      ::unlink(step->kept.c_str());
    } else if (errno != ENOENT) {  // else it was never set aside
      failure = errno;
    }
  }
  steps_.clear();
  return failure;
}

}  // namespace dormant::publication
