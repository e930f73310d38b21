// An open file as a source of bytes that are read once, or shown through a mapping.
//
// What a read node promises was true when the file was opened. Files are truncated and rewritten by
// other processes meanwhile, so a file remembers what it was, reads positionally and checks; only a
// mapping cannot (a page that is gone raises SIGBUS), which is why a mapped file must stay as it
// is. A file that was removed, or replaced by a new one under its name as `dormant.save` does,
// stays as it is: the descriptor and the mappings are of the file, whatever its name leads to now.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "record/source.h"
#include "system/export.h"
#include "system/mutex.h"

struct stat;

namespace dormant::checkpoint {

class DORMANT_BINDINGS_API File final : public record::Source {
 public:
  /// Opens a regular file for reading. std::system_error where the system refuses; c10::ValueError
  /// where it is no regular file.
  static std::shared_ptr<const File> open(const std::string& path);
  ~File() override;

  uint64_t size() const noexcept { return identity_.size; }
  /// Absolute.
  const std::string& path() const noexcept { return path_; }

  /// c10::ValueError unless bytes [offset, offset + count) exist.
  void check_range(uint64_t offset, uint64_t count) const;

  void read(uint64_t offset, size_t count, void* out) const override;
  /// A private copy-on-write mapping. No two DataPtrs that live, or have lived over the same
  /// mapping, share bytes: a tensor may have been written to.
  c10::DataPtr map(uint64_t offset, size_t count) const override;
  bool maps_well() const override;
  void will_read(uint64_t offset, size_t count) const override;
  /// c10::ValueError if the file was written to since it was opened. One that was removed or
  /// replaced is still the one it was.
  void check() const override;
  /// The path as it can be printed.
  const std::string& name() const override { return name_; }

 private:
  class Mapping;

  /// What a file that did not change keeps.
  struct Identity {
    uint64_t size;
    int64_t modified;  ///< nanoseconds
  };

  explicit File(std::string path);
  static Identity identity_of(const struct ::stat& status) noexcept;
  void check_same(const Identity& now) const;
  [[noreturn]] void fail(int error, const std::string& what) const;

  const std::string path_;
  const std::string name_;
  int descriptor_ = -1;
  Identity identity_{};
  mutable system::Mutex mutex_;
  /// The latest; kept alive by its DataPtrs.
  mutable std::weak_ptr<Mapping> mapping_ DORMANT_GUARDED_BY(mutex_);
};

}  // namespace dormant::checkpoint
