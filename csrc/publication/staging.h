// Hidden folders for files that have no name yet, and their removal when their maker was killed:
// the same as python/dormant/publication/staging.py makes, so that each removes what the other
// left.
//
// The maker holds a lock (flock) on a file in the folder for as long as the folder is in use, and
// the system releases it with the process. So what nobody holds is abandoned, where the locks of
// all makers are seen: the name says on which boot of the system and on which mounted filesystem
// the folder was made, and folders made elsewhere are left alone, as are those that were made where
// there are no locks.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "publication/descriptor.h"

namespace dormant::publication {

/// A hidden folder, which is removed with the object. All happens in the folder that was opened,
/// wherever its path leads by then.
class Staging {
 public:
  /// Makes one in `folder`. std::system_error where nothing can be created there.
  explicit Staging(const std::string& folder);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// A folder for whatever shall get its name later.
  std::string files() const;
  /// Has nobody ever remove it, and returns where it is.
  std::string keep();

 private:
  friend void remove_abandoned(const std::string& folder);
  struct Abandoned {};

  /// Opens what somebody else made.
  Staging(Abandoned, std::string path);
  void open();
  /// Whether the folder is there and ours: locked where there are locks.
  bool try_make(const std::string& folder, std::string& place);
  bool open_lock(int flags);
  std::optional<bool> take_lock();
  void remove();
  void remove_if_abandoned();

  std::string path_;
  Descriptor folder_;
  Descriptor lock_;
  pid_t maker_ = 0;  ///< a process that was forked meanwhile does not own it
};

/// Removes what killed processes of this user left in `folder`; errors leave it there. Whatever
/// else has such a name stays: what a living process uses, what may have been made on another
/// machine, links, folders of other users.
void remove_abandoned(const std::string& folder);

/// So many random hexadecimal digits.
std::string random_digits(size_t count);

}  // namespace dormant::publication
