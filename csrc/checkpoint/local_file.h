// An open file of this machine as a source of bytes that are read once, or shown through a mapping.
//
// What a read node promises was true when the file was opened. Files are truncated and rewritten by
// other processes meanwhile, so a file remembers what it was, reads positionally and checks; only a
// mapping cannot (a page that is gone raises SIGBUS). So who asks for a guard gets a mapping with a
// lease (file_mapping.h) or none.
// A file that was removed, or replaced by a new one under its name as `dormant.save` does, stays as
// it is: the descriptor and the mappings are of the file, whatever its name leads to now.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/file.h"
#include "system/mutex.h"

struct stat;

namespace dormant::checkpoint {

class FileMapping;

class LocalFile final : public File {
 public:
  /// As File::open.
  static std::shared_ptr<const LocalFile> open(const std::string& path);
  ~LocalFile() override;

  void copy_always() const noexcept override { copied_ = true; }

  void read(uint64_t offset, size_t count, void* out) const override;
  /// A private copy-on-write mapping. No two DataPtrs that live, or have lived over the same
  /// mapping, share bytes: a tensor may have been written to. There is no guard on a network
  /// filesystem, and none after `copy_always`. c10::ValueError as for `check`.
  c10::DataPtr map(uint64_t offset, size_t count, record::Guard guard) const override;
  void will_read(uint64_t offset, size_t count) const override;
  /// c10::ValueError if the file was written to since it was opened. One that was removed or
  /// replaced is still the one it was.
  void check() const override;
  size_t preferred_read_bytes() const override { return is_local_ ? 0 : kFarReadBytes; }

 private:
  /// What a file that did not change keeps.
  struct Identity {
    uint64_t size;
    int64_t modified;  ///< nanoseconds
  };

  explicit LocalFile(std::string path);
  static Identity identity_of(const struct ::stat& status) noexcept;
  void check_same(const Identity& now) const;
  static bool is_local(int descriptor);
  [[noreturn]] void fail(int error, const std::string& what) const;

  int descriptor_ = -1;
  Identity identity_{};
  bool is_local_ = true;
  mutable std::atomic<bool> copied_{false};
  mutable system::Mutex mutex_;
  /// The latest; kept alive by its DataPtrs.
  mutable std::weak_ptr<FileMapping> mapping_ DORMANT_GUARDED_BY(mutex_);
};

}  // namespace dormant::checkpoint
