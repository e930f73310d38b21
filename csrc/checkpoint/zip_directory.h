// Zip archives whose records are stored without compression, as torch.save writes them, at any
// place in a file that may come from anyone.
//
// Nothing is believed before two places agree: the directory at the end with the header before a
// record. Sizes and offsets are compared with the archive's before they are used.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "system/export.h"

namespace dormant::checkpoint {

class File;

/// Bytes of a file under a name.
struct ZipRecord {
  std::string name;
  uint64_t header;  ///< offset of its header in the archive
  uint64_t nbytes;
  uint32_t crc;
};

class ZipDirectory {
 public:
  /// Reads the directory of the archive that is bytes [offset, offset + length) of `file`. `where`
  /// names the archive in messages, printable. c10::ValueError where there is none, it contradicts
  /// itself, records are compressed or encrypted, or a name is given twice or leads out of the
  /// archive; std::system_error where the system cannot read.
  ZipDirectory(const File& file, uint64_t offset, uint64_t length, std::string where);

  const std::vector<ZipRecord>& records() const noexcept { return records_; }
  /// The record PREFIX/`name` of an archive of torch.save, where PREFIX/data.pkl is the only one;
  /// null where there is none.
  const ZipRecord* find(std::string_view name) const;
  /// Where the bytes of a record begin in the file, after comparing its header with the directory.
  uint64_t place(const ZipRecord& record) const;
  /// The bytes of a record of at most `most`.
  std::string read(const ZipRecord& record, uint64_t most) const;

 private:
  [[noreturn]] void refuse(const std::string& what) const;
  /// Bytes of the archive, of which begin and end are at hand.
  std::string bytes(uint64_t begin, uint64_t count) const;
  void read_directory();

  const File& file_;
  const uint64_t offset_;
  const uint64_t length_;
  const std::string where_;
  std::string head_;
  std::string tail_;
  uint64_t end_of_records_ = 0;
  std::string prefix_;
  std::vector<ZipRecord> records_;
};

}  // namespace dormant::checkpoint
