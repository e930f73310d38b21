// Files that appear in a folder whole and together, or not at all: the protocol of
// python/dormant/publication/publication.py, and under the same locks.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "publication/staging.h"

namespace dormant::publication {

/// Makes a folder and those above it; those that are new go again unless `stay` is called.
class MadeFolder {
 public:
  /// std::system_error where the system refuses, or a file lies there.
  explicit MadeFolder(const std::string& folder);
  ~MadeFolder();
  MadeFolder(const MadeFolder&) = delete;
  MadeFolder& operator=(const MadeFolder&) = delete;

  void stay() { made_.clear(); }

 private:
  void remove();

  std::vector<std::string> made_;  ///< the outermost first
};

class Replacement;

/// New files of one folder, in a hidden folder there until `publish` gives them their names. What
/// was not published goes with the object; a killed process leaves its hidden folder, earlier
/// contents of files among what is in it, for the next publication in the same folder to remove.
/// Of one thread.
class Publication {
 public:
  /// Of an existing folder.
  explicit Publication(std::string folder);

  /// std::system_error (ENOSPC) where the device has no room for so many bytes.
  void check_room(uint64_t nbytes) const;

  /// Creates a file, which `fill` writes to, and has its bytes on the device at the end.
  /// std::system_error where it cannot be created, the file that it is to replace is read-only, or
  /// the device reports that it did not take the bytes; and whatever `fill` throws.
  void create(const std::string& name, const std::function<void(int descriptor)>& fill);

  /// Gives the files their names, by steps of the Replacement that `order` gets. Who publishes in
  /// one folder at the same time waits for the other. Where this throws, the folder has the files
  /// that it had.
  void publish(const std::function<void(Replacement&)>& order);

 private:
  friend class Replacement;
  std::string path_of(const std::string& name) const { return folder_ + "/" + name; }
  /// A path that nothing has, in the hidden folder.
  std::string temporary_path();

  const std::string folder_;
  std::optional<Staging> staging_;
  std::map<std::string, std::string> waiting_;  ///< the written files by name
  uint64_t next_ = 0;
};

/// Steps that give new files their names, each of which can be undone. Each is a rename or a
/// removal, so after a kill the folder is what the steps so far made of it. Where a filesystem has
/// no second names, what is replaced cannot be put back; the steps before an error then stay.
class Replacement {
 public:
  Replacement(Publication& publication, int folder) : publication_(publication), folder_(folder) {}
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;

  const std::string& folder() const noexcept { return publication_.folder_; }

  /// Gives a file its name, in place of what has it.
  void place(const std::string& name);
  /// Gives a file another name besides; whether the filesystem has such second names.
  bool place_also(const std::string& name, const std::string& other);
  /// Says that a file shall have another name than the one it was created for.
  void rename(const std::string& name, const std::string& other);
  /// Creates one more file, not yet in its place.
  void create(const std::string& name, const std::function<void(int descriptor)>& fill);
  /// Removes a file; one that is not there is no error.
  void remove(const std::string& name);
  /// Has all steps so far on the device.
  void sync() const;

 private:
  friend class Publication;
  /// Keeps what is about to be replaced or removed; undoing puts it back.
  void set_aside(const std::string& path, bool replaced);
  /// All steps in reverse order. Returns the system's number where one cannot be undone; then the
  /// hidden folder stays.
  int undo() noexcept;

  Publication& publication_;
  const int folder_;
  struct Step {
    std::string path;
    std::string kept;  ///< where what was there is; empty: nothing was
  };
  std::vector<Step> steps_;
};

}  // namespace dormant::publication
