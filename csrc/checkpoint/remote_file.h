// A file whose bytes somebody hands over in ranges: an object behind a URL, or whatever a program
// reads by other means.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/file.h"
#include "system/export.h"

namespace dormant::checkpoint {

/// Gives ranges of bytes; any number of threads call it at a time, without a lock of ours.
class DORMANT_BINDINGS_API RangeReader {
 public:
  RangeReader() = default;
  virtual ~RangeReader() = default;
  RangeReader(const RangeReader&) = delete;
  RangeReader& operator=(const RangeReader&) = delete;

  /// Copies bytes [offset, offset + count) to `out`, all of them or it throws.
  virtual void read(uint64_t offset, size_t count, void* out) const = 0;
  /// Throws where the bytes are no longer those that were there when the reader was made.
  virtual void check() const {}
};

class DORMANT_BINDINGS_API RemoteFile final : public File {
 public:
  /// `path` is what the file is known by, without credentials. It has `size` bytes.
  RemoteFile(std::string path, uint64_t size, std::unique_ptr<const RangeReader> reader);

  /// Whatever the reader throws.
  void read(uint64_t offset, size_t count, void* out) const override;
  void check() const override;
  size_t preferred_read_bytes() const override { return kFarReadBytes; }

 private:
  const std::unique_ptr<const RangeReader> reader_;
};

}  // namespace dormant::checkpoint
