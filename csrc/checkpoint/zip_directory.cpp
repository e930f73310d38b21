#include "checkpoint/zip_directory.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <set>
#include <utility>

#include "checkpoint/file.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

// An archive of one tensor has its pickle within the first of these bytes, its directory within
// the last.
constexpr uint64_t kHead = 1024;
constexpr uint64_t kTail = 1024;
constexpr uint64_t kLongestDirectory = uint64_t{1} << 28;

// PKWARE's APPNOTE.TXT, 4.3: sizes of the fixed parts.
constexpr uint64_t kLocalHeader = 30;
constexpr uint64_t kEntry = 46;
constexpr uint64_t kEnd = 22;
constexpr uint64_t kEnd64 = 56;
constexpr uint64_t kLocator64 = 20;
constexpr uint32_t kEscape = 0xFFFFFFFF;
constexpr uint16_t kZip64 = 1;  ///< tag of the extra field with 64-bit numbers
constexpr uint16_t kEncrypted = 0x1;
constexpr uint16_t kSizesFollow = 0x8;
constexpr uint32_t kFolder = 0x10;  ///< among MS-DOS attributes

/// Little-endian numbers of text that is long enough.
uint64_t number(std::string_view text, size_t at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(text[at + i])) << (8 * i);
  }
  return value;
}
uint16_t short_at(std::string_view text, size_t at) {
  return static_cast<uint16_t>(number(text, at, 2));
}
uint32_t int_at(std::string_view text, size_t at) {
  return static_cast<uint32_t>(number(text, at, 4));
}

/// Replaces, in this order, those of `values` that are escaped by what the extra field has. False
/// where it lacks one.
bool widen(std::string_view extra, std::initializer_list<uint64_t*> values) {
  std::string_view wide;
  for (size_t at = 0; at + 4 <= extra.size();) {
    const auto size = short_at(extra, at + 2);
    if (short_at(extra, at) == kZip64 && at + 4 + size <= extra.size()) {
      wide = extra.substr(at + 4, size);
      break;
    }
    at += 4 + size_t{size};
  }
  for (auto* value : values) {
    if (*value == kEscape) {
      if (wide.size() < 8) {
        return false;
      }
      *value = number(wide, 0, 8);
      wide.remove_prefix(8);
    }
  }
  return true;
}

bool leads_out(std::string_view name) {
  if (name.empty() || name.front() == '/' || name.find('\0') != name.npos ||
      name.find('\\') != name.npos) {
    return true;
  }
  for (size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") {
      return true;
    }
    begin = end + 1;
  }
  return false;
}

}  // namespace

ZipDirectory::ZipDirectory(const File& file, uint64_t offset, uint64_t length, std::string where)
    : file_(file), offset_(offset), length_(length), where_(std::move(where)) {
  file_.check_range(offset_, length_);
  const auto read = [&](uint64_t begin, uint64_t count) {
    std::string text(count, '\0');
    file_.read(offset_ + begin, count, text.data());
    return text;
  };
  head_ = read(0, std::min(kHead, length_));
  const auto tail = std::min(kTail, length_);
  tail_ = length_ <= kHead ? head_ : read(length_ - tail, tail);
  read_directory();
}

void ZipDirectory::refuse(const std::string& what) const {
  TORCH_CHECK_VALUE(false, "dormant: open_checkpoint: ", where_, ": ", what,
                    ". Cause: the file is damaged, incomplete or made to deceive. Next: get it "
                    "again.");
}

std::string ZipDirectory::bytes(uint64_t begin, uint64_t count) const {
  if (begin > length_ || count > length_ - begin) {
    refuse("got " + std::to_string(count) + " bytes at byte " + std::to_string(begin) +
           " of an archive, expected them within its " + std::to_string(length_) + " bytes");
  }
  if (begin + count <= head_.size()) {
    return head_.substr(begin, count);
  }
  if (const auto tail = length_ - tail_.size(); begin >= tail) {
    return tail_.substr(begin - tail, count);
  }
  std::string text(count, '\0');
  file_.read(offset_ + begin, count, text.data());
  return text;
}

void ZipDirectory::read_directory() {
  if (length_ < kEnd || int_at(bytes(length_ - kEnd, kEnd), 0) != 0x06054B50) {
    refuse("got no zip directory at the end of its " + std::to_string(length_) +
           " bytes, expected an archive of torch.save");
  }
  const auto end = bytes(length_ - kEnd, kEnd);
  uint64_t count = short_at(end, 10);
  uint64_t size = int_at(end, 12);
  uint64_t start = int_at(end, 16);
  auto directory_end = length_ - kEnd;
  if (length_ >= kEnd + kLocator64 + kEnd64) {
    const auto locator = bytes(length_ - kEnd - kLocator64, kLocator64);
    if (int_at(locator, 0) == 0x07064B50) {
      directory_end = number(locator, 8, 8);
      if (directory_end != length_ - kEnd - kLocator64 - kEnd64 ||
          int_at(bytes(directory_end, kEnd64), 0) != 0x06064B50) {
        refuse("its zip64 directory is said to end at byte " + std::to_string(directory_end) +
               ", where it does not");
      }
      const auto end64 = bytes(directory_end, kEnd64);
      const auto agree = [](uint64_t narrow, uint64_t wide, uint64_t escape) {
        return narrow == wide || narrow == escape;
      };
      if (!agree(count, number(end64, 32, 8), 0xFFFF) ||
          !agree(size, number(end64, 40, 8), kEscape) ||
          !agree(start, number(end64, 48, 8), kEscape)) {
        refuse("its two ends of the directory disagree");
      }
      count = number(end64, 32, 8);
      size = number(end64, 40, 8);
      start = number(end64, 48, 8);
    }
  }
  if (short_at(end, 20) != 0 || start > directory_end || size != directory_end - start) {
    refuse("its directory is said to be " + std::to_string(size) + " bytes from byte " +
           std::to_string(start) + " on, expected an end at byte " + std::to_string(directory_end));
  }
  if (size > kLongestDirectory || count > size / kEntry) {
    refuse("its directory has " + std::to_string(count) + " entries in " + std::to_string(size) +
           " bytes");
  }
  end_of_records_ = start;
  const auto directory = bytes(start, size);
  std::string_view rest = directory;
  std::set<std::string_view> names;
  records_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const auto at = std::to_string(start + (directory.size() - rest.size()));
    if (rest.size() < kEntry || int_at(rest, 0) != 0x02014B50) {
      refuse("got no entry at byte " + at + " of its directory, expected " + std::to_string(count));
    }
    const auto flags = short_at(rest, 8);
    const auto method = short_at(rest, 10);
    const auto crc = int_at(rest, 16);
    uint64_t stored = int_at(rest, 20);
    uint64_t nbytes = int_at(rest, 24);
    uint64_t header = int_at(rest, 42);
    const uint64_t name_size = short_at(rest, 28);
    const uint64_t extra_size = short_at(rest, 30);
    const uint64_t comment_size = short_at(rest, 32);
    const auto attributes = int_at(rest, 38);
    if (rest.size() - kEntry < name_size + extra_size + comment_size) {
      refuse("the entry at byte " + at + " of its directory is longer than the directory");
    }
    const auto name = rest.substr(kEntry, name_size);
    const bool wide =
        widen(rest.substr(kEntry + name_size, extra_size), {&nbytes, &stored, &header});
    rest.remove_prefix(kEntry + name_size + extra_size + comment_size);
    const auto record = "record " + text::in_quotes(name);
    if (!wide || stored != nbytes || method != 0) {
      refuse(record + " is compressed (method " + std::to_string(method) + ", " +
             std::to_string(stored) + " of " + std::to_string(nbytes) +
             " bytes), expected stored bytes");
    }
    if ((flags & kEncrypted) != 0 || (attributes & kFolder) != 0 || leads_out(name)) {
      refuse(record + " is encrypted, a folder or leads out of the archive");
    }
    if (header > end_of_records_ || end_of_records_ - header < kLocalHeader ||
        nbytes > end_of_records_ - header - kLocalHeader) {
      refuse(record + " has " + std::to_string(nbytes) + " bytes from byte " +
             std::to_string(header) + " on, expected them before the directory at byte " +
             std::to_string(end_of_records_));
    }
    records_.push_back({std::string(name), header, nbytes, crc});
  }
  if (!rest.empty()) {
    refuse("its directory has " + std::to_string(rest.size()) + " bytes more than its entries");
  }
  constexpr std::string_view kPickle = "/data.pkl";
  for (const auto& record : records_) {
    const std::string_view name = record.name;
    if (!names.insert(name).second) {
      refuse("two records are called " + text::in_quotes(name));
    }
    if (name.ends_with(kPickle) && std::count(name.begin(), name.end(), '/') == 1) {
      if (!prefix_.empty()) {
        refuse("it has two pickles, " + text::in_quotes(prefix_ + "data.pkl") + " and " +
               text::in_quotes(name));
      }
      prefix_ = name.substr(0, name.size() - kPickle.size() + 1);
    }
  }
}

const ZipRecord* ZipDirectory::find(std::string_view name) const {
  const auto found = std::find_if(records_.begin(), records_.end(), [&](const ZipRecord& record) {
    const std::string_view own = record.name;
    return !prefix_.empty() && own.starts_with(prefix_) && own.substr(prefix_.size()) == name;
  });
  return found == records_.end() ? nullptr : &*found;
}

uint64_t ZipDirectory::place(const ZipRecord& record) const {
  const auto header = bytes(record.header, kLocalHeader);
  const uint64_t name_size = short_at(header, 26);
  const uint64_t extra_size = short_at(header, 28);
  const auto what = "the header at byte " + std::to_string(record.header) + " of record " +
                    text::in_quotes(record.name);
  const auto names = bytes(record.header + kLocalHeader, name_size + extra_size);
  if (int_at(header, 0) != 0x04034B50 || short_at(header, 8) != 0 ||
      std::string_view(names).substr(0, name_size) != record.name) {
    refuse(what + " is of another record, compressed, or none");
  }
  if ((short_at(header, 6) & kSizesFollow) == 0) {
    uint64_t stored = int_at(header, 18);
    uint64_t nbytes = int_at(header, 22);
    if (!widen(std::string_view(names).substr(name_size), {&nbytes, &stored}) ||
        stored != record.nbytes || nbytes != record.nbytes || int_at(header, 14) != record.crc) {
      refuse(what + " says " + std::to_string(nbytes) + " bytes, expected " +
             std::to_string(record.nbytes) + " and the CRC of the directory");
    }
  }
  const auto begin = record.header + kLocalHeader + name_size + extra_size;
  if (begin > end_of_records_ || record.nbytes > end_of_records_ - begin) {
    refuse(what + " leads to bytes from " + std::to_string(begin) +
           " on, expected them before the directory at byte " + std::to_string(end_of_records_));
  }
  return offset_ + begin;
}

std::string ZipDirectory::read(const ZipRecord& record, uint64_t most) const {
  if (record.nbytes > most) {
    refuse("record " + text::in_quotes(record.name) + " has " + std::to_string(record.nbytes) +
           " bytes, expected at most " + std::to_string(most));
  }
  return bytes(place(record) - offset_, record.nbytes);
}

}  // namespace dormant::checkpoint
