// A file as what reads checkpoints sees it, wherever its bytes lie: of known size, read at any
// position by any number of threads.
//
// There are two kinds: a file of this machine's filesystems (local_file.h), and one whose bytes
// somebody hands over in ranges, such as an object behind a URL (remote_file.h). Parsers take a
// `const File&` and know no more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "record/source.h"
#include "system/export.h"

namespace dormant::checkpoint {

/// What reads over a network ask for at a time: enough that the way there and back costs little,
/// and few enough that several of them fit into memory.
inline constexpr size_t kFarReadBytes = 8 << 20;

class DORMANT_BINDINGS_API File : public record::Source {
 public:
  /// Opens a regular file of this machine for reading. std::system_error where the system refuses;
  /// c10::ValueError where it is no regular file.
  static std::shared_ptr<const File> open(const std::string& path);
  ~File() override = default;

  uint64_t size() const noexcept { return size_; }
  /// An absolute path; of a file elsewhere the URL or name that it is known by.
  const std::string& path() const noexcept { return path_; }
  /// The path as it can be printed.
  const std::string& name() const final { return name_; }

  /// c10::ValueError unless bytes [offset, offset + count) exist.
  void check_range(uint64_t offset, uint64_t count) const;

  /// Says that the programs that write such files rewrite them in place, so that a mapping would
  /// have to be copied sooner or later: none is made that asks for a guard.
  virtual void copy_always() const noexcept {}

 protected:
  explicit File(std::string path);
  void set_size(uint64_t size) noexcept { size_ = size; }

 private:
  const std::string path_;
  const std::string name_;
  uint64_t size_ = 0;
};

}  // namespace dormant::checkpoint
