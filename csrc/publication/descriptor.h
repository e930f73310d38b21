// An open file or folder that is closed with the object.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "system/faults.h"

namespace dormant::publication {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) noexcept : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) {
      ::close(number_);
    }
  }

  int get() const noexcept { return number_; }
  explicit operator bool() const noexcept { return number_ >= 0; }

 private:
  int number_ = -1;
};

/// What a system call that names, creates, syncs or removes files gives: -1 and errno where it
/// fails, or where a test lets it.
template <typename Call>
int attempt(Call&& call) {
  if (system::is_due(system::Fault::publish)) {
    return -1;
  }
  int result = 0;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

/// The same for a second name of a file, which some filesystems do not have.
template <typename Call>
int attempt_link(Call&& call) {
  return system::is_due(system::Fault::link) ? -1 : attempt(call);
}

/// std::system_error with the system's number. `what` has no end of a sentence: the system's words
/// follow.
[[noreturn]] inline void refuse(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), "save: " + what);
}

/// Whether something of this name is there, a link that leads nowhere too.
inline bool is_there(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0;
}

inline bool is_same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace dormant::publication
