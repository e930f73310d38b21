// What a zip file says it holds: records of bytes under names, stored without compression.
//
// The format keeps every fact twice, in the directory at the end and in a header before each
// record, and programs differ in which they take. So nothing is believed before both agree, and no
// byte belongs to two records (APPNOTE.TXT of PKWARE, 4.3).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "system/export.h"

namespace dormant::checkpoint {

class File;

/// With what a record, and so the file, begins.
inline constexpr std::string_view kZipMagic("PK\x03\x04", 4);
/// A directory of more bytes is refused.
inline constexpr uint64_t kLongestZipDirectory = uint64_t{1} << 28;

struct ZipRecord {
  std::string name;
  uint64_t offset;  ///< of its bytes in the file
  uint64_t nbytes;
  /// Of its bytes; none where they are compressed, since then it is of others.
  std::optional<uint32_t> crc;
};

/// The records of a zip file in the order of their bytes, folders left out. c10::ValueError where
/// there is no readable directory, it contradicts the records, records overlap, are encrypted, or
/// compressed though `may_be_compressed` is not true of the name, a name leads out of the archive,
/// or something lies before the first record.
DORMANT_BINDINGS_API std::vector<ZipRecord> read_zip_directory(
    const File& file, bool (*may_be_compressed)(std::string_view name) = nullptr);

}  // namespace dormant::checkpoint
