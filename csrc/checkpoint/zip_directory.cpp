#include "checkpoint/zip_directory.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "checkpoint/file.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using text::in_quotes;

constexpr std::string_view kEntryMagic("PK\x01\x02", 4);
constexpr std::string_view kEndMagic("PK\x05\x06", 4);
constexpr std::string_view kWideEndMagic("PK\x06\x06", 4);
constexpr std::string_view kLocatorMagic("PK\x06\x07", 4);

constexpr uint64_t kHeaderSize = 30;
constexpr uint64_t kEntrySize = 46;
constexpr uint64_t kEndSize = 22;
constexpr uint64_t kWideEndSize = 56;
constexpr uint64_t kLocatorSize = 20;
constexpr uint64_t kLongestComment = 0xffff;
// Of a header's extra field, in one read with the header: PyTorch fills up to 64 bytes.
constexpr uint64_t kUsualExtra = 128;

constexpr uint16_t kEscape16 = 0xffff;
constexpr uint32_t kEscape32 = 0xffffffff;
constexpr uint16_t kWideSizes = 1;  // tag of the extra field with 64-bit numbers
constexpr uint16_t kDeflated = 8;
constexpr uint16_t kEncrypted = 0x1;
constexpr uint16_t kSizesFollow = 0x8;
constexpr uint16_t kUtf8 = 0x800;
constexpr uint32_t kFolder = 0x10;  // among the attributes of MS-DOS

constexpr const char* kDamaged =
    "Cause: the file is truncated or damaged. Next: download or save it again.";

template <typename Integer>
Integer integer_at(std::string_view bytes, size_t place) {
  Integer value = 0;
  for (size_t i = sizeof(Integer); i > 0; --i) {
    value = static_cast<Integer>(value << 8 | static_cast<uint8_t>(bytes[place + i - 1]));
  }
  return value;
}

std::string bytes_of(const File& file, uint64_t offset, uint64_t count) {
  std::string bytes(count, '\0');
  file.read(offset, count, bytes.data());
  return bytes;
}

[[noreturn]] void no_directory(const File& file, const std::string& why) {
  TORCH_CHECK_VALUE(false, "open_checkpoint: ", file.name(),
                    " begins like a zip file, but has no readable directory in its ", file.size(),
                    " bytes: ", why, ". ", kDamaged);
}

struct Directory {
  uint64_t offset;
  uint64_t nbytes;
  uint64_t count;
};

/// What stands behind the directory, with 64-bit numbers where there are any.
Directory find_directory(const File& file) {
  const auto size = file.size();
  if (size < kEndSize) {
    no_directory(file, "it is too short for one");
  }
  uint64_t tail_begin = 0;
  std::string tail;
  auto place = std::string_view::npos;
  // Most ends have no comment, and many archives are small: what follows is not read needlessly.
  for (const auto most : {kEndSize, kEndSize + kLongestComment}) {
    const auto tail_size = std::min(size, most);
    tail_begin = size - tail_size;
    tail = bytes_of(file, tail_begin, tail_size);
    place = std::string_view(tail).rfind(kEndMagic, tail_size - kEndSize);
    while (place != std::string_view::npos &&
           place + kEndSize + integer_at<uint16_t>(tail, place + 20) != tail_size) {
      place =
          place == 0 ? std::string_view::npos : std::string_view(tail).rfind(kEndMagic, place - 1);
    }
    if (place != std::string_view::npos) {
      break;
    }
  }
  if (place == std::string_view::npos) {
    no_directory(file, "it has no end record");
  }
  const auto end = tail_begin + place;
  Directory found{integer_at<uint32_t>(tail, place + 16), integer_at<uint32_t>(tail, place + 12),
                  integer_at<uint16_t>(tail, place + 10)};
  bool parts = integer_at<uint16_t>(tail, place + 4) != 0 ||
               integer_at<uint16_t>(tail, place + 6) != 0 ||
               integer_at<uint16_t>(tail, place + 8) != found.count;
  auto directory_end = end;
  if (end >= kLocatorSize) {
    const auto locator = bytes_of(file, end - kLocatorSize, kLocatorSize);
    if (locator.starts_with(kLocatorMagic)) {
      const auto at = integer_at<uint64_t>(locator, 8);
      const auto room = end - kLocatorSize;
      if (room < kWideEndSize || at > room - kWideEndSize) {
        no_directory(file, "its 64-bit end record would be at byte " + std::to_string(at));
      }
      const auto wide = bytes_of(file, at, kWideEndSize);
      if (!wide.starts_with(kWideEndMagic)) {
        no_directory(file, "there is no 64-bit end record at byte " + std::to_string(at));
      }
      const Directory full{integer_at<uint64_t>(wide, 48), integer_at<uint64_t>(wide, 40),
                           integer_at<uint64_t>(wide, 32)};
      const bool agree = (found.offset == kEscape32 || found.offset == full.offset) &&
                         (found.nbytes == kEscape32 || found.nbytes == full.nbytes) &&
                         (found.count == kEscape16 || found.count == full.count);
      if (!agree) {
        no_directory(file, "its two end records differ");
      }
      parts = integer_at<uint32_t>(wide, 16) != 0 || integer_at<uint32_t>(wide, 20) != 0 ||
              integer_at<uint64_t>(wide, 24) != full.count;
      found = full;
      directory_end = at;
    }
  }
  if (parts) {
    no_directory(file, "the archive is divided into several files");
  }
  if (found.nbytes > kLongestZipDirectory) {
    no_directory(file, "a directory of " + std::to_string(found.nbytes) +
                           " bytes, expected at most " + std::to_string(kLongestZipDirectory));
  }
  if (found.nbytes > directory_end || found.offset > directory_end - found.nbytes) {
    no_directory(file, "a directory of " + std::to_string(found.nbytes) + " bytes at byte " +
                           std::to_string(found.offset) + " would end after byte " +
                           std::to_string(directory_end) + ", where its end record is");
  }
  const auto before = directory_end - found.nbytes - found.offset;
  TORCH_CHECK_VALUE(before == 0, "open_checkpoint: ", file.name(), " has ", before,
                    " bytes before the archive whose directory is at its end, expected none. "
                    "Cause: the file may be malicious, since programs disagree about which archive "
                    "to read. Next: do not use it.");
  return found;
}

/// A line of the directory.
struct Entry {
  std::string name;
  uint64_t header;
  uint64_t stored;
  uint64_t nbytes;
  uint32_t crc;
  uint32_t attributes;
  uint16_t flags;
  uint16_t method;
};

class Refusal {
 public:
  Refusal(const File& file, const Entry& entry) : file_(file), entry_(entry) {}

  void require(bool condition, const std::string& got, const std::string& expected) const {
    TORCH_CHECK_VALUE(condition, "open_checkpoint: ", file_.name(), ": record ",
                      in_quotes(entry_.name), ", whose header is at byte ", entry_.header, ": got ",
                      got, ", expected ", expected,
                      ". Cause: the file is damaged, or torch.save did not write it.");
  }

 private:
  const File& file_;
  const Entry& entry_;
};

/// The 64-bit numbers of an extra field; none where it has no such field, or one that is cut.
std::optional<std::string_view> wide_field(std::string_view extra) {
  for (size_t place = 0; place + 4 <= extra.size();) {
    const auto tag = integer_at<uint16_t>(extra, place);
    const auto size = integer_at<uint16_t>(extra, place + 2);
    if (tag == kWideSizes) {
      return extra.size() - place - 4 < size ? std::nullopt
                                             : std::optional(extra.substr(place + 4, size));
    }
    place += 4U + size;
  }
  return std::nullopt;
}

/// Replaces numbers that are escapes by those of the field, which has them in this order.
bool widen(std::string_view extra, std::initializer_list<uint64_t*> numbers) {
  const bool escapes = std::any_of(numbers.begin(), numbers.end(),
                                   [](const auto* number) { return *number == kEscape32; });
  if (!escapes) {
    return true;
  }
  auto field = wide_field(extra);
  if (!field) {
    return true;  // a number that happens to be it
  }
  for (auto* number : numbers) {
    if (*number == kEscape32) {
      if (field->size() < sizeof(uint64_t)) {
        return false;
      }
      *number = integer_at<uint64_t>(*field, 0);
      field->remove_prefix(sizeof(uint64_t));
    }
  }
  return true;
}

Entry entry_at(const File& file, std::string_view directory, size_t& place) {
  const auto left = directory.substr(place);
  const bool whole = left.size() >= kEntrySize && left.starts_with(kEntryMagic);
  const uint64_t name_size = whole ? integer_at<uint16_t>(left, 28) : 0;
  const uint64_t extra_size = whole ? integer_at<uint16_t>(left, 30) : 0;
  const uint64_t comment_size = whole ? integer_at<uint16_t>(left, 32) : 0;
  const auto size = kEntrySize + name_size + extra_size + comment_size;
  if (!whole || size > left.size()) {
    no_directory(file, "byte " + std::to_string(place) + " is not a complete entry");
  }
  Entry entry{std::string(left.substr(kEntrySize, name_size)),
              integer_at<uint32_t>(left, 42),
              integer_at<uint32_t>(left, 20),
              integer_at<uint32_t>(left, 24),
              integer_at<uint32_t>(left, 16),
              integer_at<uint32_t>(left, 38),
              integer_at<uint16_t>(left, 8),
              integer_at<uint16_t>(left, 10)};
  const auto extra = left.substr(kEntrySize + name_size, extra_size);
  if (!widen(extra, {&entry.nbytes, &entry.stored, &entry.header})) {
    no_directory(file, "byte " + std::to_string(place) + " is an entry without its 64-bit numbers");
  }
  if ((entry.flags & kUtf8) != 0 && text::first_not_utf8(entry.name) != std::string::npos) {
    no_directory(file, "the name at byte " + std::to_string(place) + " is not UTF-8");
  }
  place += size;
  return entry;
}

bool leads_out(std::string_view name) {
  if (name.find('\0') != std::string_view::npos || name.find('\\') != std::string_view::npos ||
      name.starts_with('/')) {
    return true;
  }
  while (!name.empty()) {
    const auto slash = name.find('/');
    if (name.substr(0, slash) == "..") {
      return true;
    }
    name = slash == std::string_view::npos ? std::string_view() : name.substr(slash + 1);
  }
  return false;
}

/// Checks a line of the directory against the header before the record's bytes.
ZipRecord record_of(const File& file, const Entry& entry, uint64_t end, bool compressed) {
  const Refusal refusal(file, entry);
  const auto method = [](uint16_t value) { return "compression method " + std::to_string(value); };
  constexpr const char* kStored = "stored bytes (method 0)";
  refusal.require(!leads_out(entry.name), "a name that leaves the archive", "a name inside it");
  refusal.require(entry.method == (compressed ? kDeflated : 0), method(entry.method), kStored);
  refusal.require((entry.flags & kEncrypted) == 0, "encrypted bytes", "plain bytes");
  // torch.load takes such a record for a folder and leaves the tensor's memory as it happens to be.
  refusal.require((entry.attributes & kFolder) == 0, "attributes of a folder", "those of a file");
  refusal.require(compressed || entry.stored == entry.nbytes,
                  std::to_string(entry.stored) + " stored bytes",
                  "its size, " + std::to_string(entry.nbytes));
  refusal.require(end >= kHeaderSize && entry.header <= end - kHeaderSize, "no room for a header",
                  "a header before the directory at byte " + std::to_string(end));
  auto header =
      bytes_of(file, entry.header,
               std::min(kHeaderSize + entry.name.size() + kUsualExtra, end - entry.header));
  refusal.require(header.starts_with(kZipMagic), in_quotes(std::string_view(header).substr(0, 4)),
                  "a header, which begins with " + in_quotes(kZipMagic));
  const uint64_t name_size = integer_at<uint16_t>(header, 26);
  const uint64_t extra_size = integer_at<uint16_t>(header, 28);
  const auto header_size = kHeaderSize + name_size + extra_size;
  refusal.require(header_size <= end - entry.header,
                  "a header of " + std::to_string(header_size) + " bytes",
                  "an end before the directory at byte " + std::to_string(end));
  if (header_size > header.size()) {
    header = bytes_of(file, entry.header, header_size);
  }
  const auto own_name = std::string_view(header).substr(kHeaderSize, name_size);
  refusal.require(own_name == entry.name, "the name " + in_quotes(own_name) + " in the header",
                  "the name in the directory");
  const auto own_method = integer_at<uint16_t>(header, 8);
  refusal.require(own_method == entry.method, method(own_method) + " in the header", kStored);
  if ((integer_at<uint16_t>(header, 6) & kSizesFollow) == 0) {
    const auto crc = integer_at<uint32_t>(header, 14);
    uint64_t stored = integer_at<uint32_t>(header, 18);
    uint64_t nbytes = integer_at<uint32_t>(header, 22);
    const auto extra = std::string_view(header).substr(kHeaderSize + name_size, extra_size);
    const bool readable = widen(extra, {&nbytes, &stored});
    refusal.require(
        readable && stored == entry.stored && nbytes == entry.nbytes && crc == entry.crc,
        c10::str(stored, " bytes in the header, ", nbytes, " unpacked, CRC ", crc),
        c10::str(entry.nbytes, " and CRC ", entry.crc, ", as in the directory"));
  }
  const auto offset = entry.header + header_size;
  refusal.require(entry.stored <= end - offset,
                  c10::str(entry.stored, " bytes from byte ", offset, " on"),
                  c10::str("an end before the directory at byte ", end));
  return {entry.name, offset, entry.stored, compressed ? std::nullopt : std::optional(entry.crc)};
}

}  // namespace

std::vector<ZipRecord> read_zip_directory(const File& file,
                                          bool (*may_be_compressed)(std::string_view name)) {
  const auto found = find_directory(file);
  const auto directory = bytes_of(file, found.offset, found.nbytes);
  std::vector<std::pair<uint64_t, ZipRecord>> records;
  uint64_t count = 0;
  for (size_t place = 0; place < directory.size(); ++count) {
    const auto entry = entry_at(file, directory, place);
    if (!entry.name.ends_with('/')) {
      const bool compressed = entry.method == kDeflated && may_be_compressed != nullptr &&
                              may_be_compressed(entry.name);
      records.emplace_back(entry.header, record_of(file, entry, found.offset, compressed));
    }
  }
  if (count != found.count) {
    no_directory(file, c10::str("it has ", count, " entries, expected ", found.count));
  }
  std::stable_sort(records.begin(), records.end(), [](const auto& one, const auto& other) {
    return std::pair(one.first, one.second.offset) < std::pair(other.first, other.second.offset);
  });
  TORCH_CHECK_VALUE(records.empty() || records.front().first == 0, "open_checkpoint: ", file.name(),
                    " has ", records.front().first,
                    " bytes before the archive whose directory is at its end, expected none. "
                    "Cause: the file may be malicious, since programs disagree about which archive "
                    "to read. Next: do not use it.");
  std::vector<ZipRecord> result;
  for (auto& [header, record] : records) {
    if (!result.empty()) {
      const auto& before = result.back();
      TORCH_CHECK_VALUE(header >= before.offset + before.nbytes, "open_checkpoint: ", file.name(),
                        ": records ", in_quotes(before.name), " and ", in_quotes(record.name),
                        " overlap: the first ends at byte ", before.offset + before.nbytes,
                        ", the second begins at byte ", header,
                        ". Cause: the file is damaged or malicious. Next: do not use it.");
    }
    result.push_back(std::move(record));
  }
  return result;
}

}  // namespace dormant::checkpoint
