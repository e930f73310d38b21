#include "checkpoint/torch_archive.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <set>
#include <utility>

#include "checkpoint/file.h"
#include "checkpoint/zip_directory.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using text::in_quotes;

// The pickle of the number that the older layout begins with.
constexpr std::string_view kLegacyPrefix("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
                                         14);
constexpr int64_t kLegacyProtocol = 1001;
constexpr uint64_t kCountSize = 8;

constexpr std::string_view kPickle = "data.pkl";
// Where the tensors of a TorchScript program are that torch.jit.freeze has made part of its code.
constexpr const char* kConstants = "constants.pkl";
constexpr uint64_t kLongestByteOrder = 64;
constexpr size_t kNamed = 5;  // storages that a message lists

constexpr const char* kDamaged = "Cause: the file is damaged. Next: download or save it again.";
constexpr const char* kOtherOrder = "Next: load and save it on a big-endian machine.";

bool is_tar(std::string_view first_bytes) {
  return (first_bytes.size() >= 262 && first_bytes.substr(257, 5) == "ustar") ||
         first_bytes.starts_with(std::string_view("storages\0", 9));
}

std::string about(const File& file) { return "open_checkpoint: " + file.name(); }

// The zip layout.

/// TorchScript compresses the sources of its programs, which are not read.
bool is_code(std::string_view name) {
  const auto slash = name.find('/');
  return slash != std::string_view::npos && name.substr(slash + 1).starts_with("code/");
}

/// The records without the archive's name before theirs.
std::map<std::string, ZipRecord> without_prefix(const File& file, std::vector<ZipRecord> records) {
  std::vector<std::string> prefixes;
  for (const auto& record : records) {
    const auto slash = record.name.find('/');
    if (slash != std::string::npos && record.name.substr(slash + 1) == kPickle) {
      prefixes.push_back(record.name.substr(0, slash + 1));
    }
  }
  TORCH_CHECK_VALUE(prefixes.size() == 1, about(file), " is a zip file with ", records.size(),
                    " records, ", prefixes.size(),
                    " of them named 'NAME/data.pkl', expected one, as torch.save writes. Next: if "
                    "it is an archive of checkpoints, unpack it.");
  std::map<std::string, ZipRecord> named;
  for (auto& record : records) {
    TORCH_CHECK_VALUE(record.name.starts_with(prefixes[0]), about(file), ": record ",
                      in_quotes(record.name), " at byte ", record.offset,
                      " does not belong to the archive ", in_quotes(prefixes[0]),
                      ". Cause: torch.save did not write this file.");
    auto name = record.name.substr(prefixes[0].size());
    const auto offset = record.offset;
    const auto [known, added] = named.try_emplace(std::move(name), std::move(record));
    TORCH_CHECK_VALUE(added, about(file), " has two records ", in_quotes(known->second.name),
                      ", at bytes ", known->second.offset, " and ", offset,
                      ". Cause: the file may be malicious, since programs disagree about which "
                      "record to read. Next: do not use it.");
  }
  return named;
}

void check_byte_order(const File& file, const std::map<std::string, ZipRecord>& records) {
  const auto found = records.find("byteorder");
  if (found == records.end()) {
    return;
  }
  const auto& record = found->second;
  TORCH_CHECK_VALUE(record.nbytes <= kLongestByteOrder, about(file), ": record ",
                    in_quotes(record.name), " at byte ", record.offset, " has ", record.nbytes,
                    " bytes, expected at most ", kLongestByteOrder, ". ", kDamaged);
  std::string order(record.nbytes, '\0');
  file.read(record.offset, order.size(), order.data());
  TORCH_CHECK_VALUE(order == "little", about(file), ": record ", in_quotes(record.name),
                    " at byte ", record.offset, " says ", in_quotes(order), ", expected 'little'. ",
                    kOtherOrder);
}

std::unique_ptr<TorchArchive> read_pickle(const File& file, const ZipRecord& record) {
  TORCH_CHECK_VALUE(record.nbytes <= kLongestPickle, about(file), ": record ",
                    in_quotes(record.name), " at byte ", record.offset, " has ", record.nbytes,
                    " bytes, expected at most ", kLongestPickle,
                    ". Cause: it is not a checkpoint.");
  std::string data(record.nbytes, '\0');
  file.read(record.offset, data.size(), data.data());
  return std::make_unique<TorchArchive>(
      Pickle::parse(std::move(data), c10::str("record ", in_quotes(record.name), " at byte ",
                                              record.offset, " of ", file.name())));
}

std::unique_ptr<TorchArchive> read_zip(const File& file) {
  auto directory = read_zip_directory(file, is_code);
  // torch.serialization.set_crc32_options(False) writes zeros.
  const bool checked = std::any_of(directory.begin(), directory.end(),
                                   [](const auto& one) { return one.crc.value_or(0) != 0; });
  std::vector<CheckedRun> checksums;
  for (const auto& record : directory) {
    checksums.push_back(
        {record.name, record.offset, record.nbytes, checked ? record.crc : std::nullopt});
  }
  const auto records = without_prefix(file, std::move(directory));
  check_byte_order(file, records);
  auto archive = read_pickle(file, records.at(std::string(kPickle)));
  std::string folder = "data/";
  const auto constants = records.find(kConstants);
  if (archive->objects.storages().empty() && constants != records.end()) {
    archive = read_pickle(file, constants->second);
    folder = "constants/";
  }
  archive->checksums = std::move(checksums);
  for (const auto& [key, storage] : archive->objects.storages()) {
    const auto name = folder + key;
    const auto found = records.find(name);
    TORCH_CHECK_VALUE(found != records.end(), "open_checkpoint: ", archive->pickle.where(),
                      ": storage ", in_quotes(key), " has no record ", in_quotes(name), ". ",
                      kDamaged);
    const auto& record = found->second;
    TORCH_CHECK_VALUE(record.nbytes == storage.nbytes, "open_checkpoint: ", archive->pickle.where(),
                      ": record ", in_quotes(record.name), " at byte ", record.offset, " has ",
                      record.nbytes, " bytes, expected ", storage.nbytes, " for ", storage.numel,
                      " elements of ", storage.dtype, ". ", kDamaged);
    archive->storages.emplace(key, TorchArchive::Run{record.offset, record.nbytes});
  }
  return archive;
}

// The older layout.

/// Reads the pickles one after the other.
class Sequence {
 public:
  explicit Sequence(const File& file) : file_(file) {}

  Pickle next(const char* part) {
    auto pickle = Pickle::read(
        file_, position_, c10::str("the ", part, " of ", file_.name(), " at byte ", position_));
    position_ += pickle.nbytes();
    return pickle;
  }
  uint64_t position() const noexcept { return position_; }

 private:
  const File& file_;
  uint64_t position_ = 0;
};

/// Steps over the storages, which lie in the order of `keys` without gaps.
void find_storages(const File& file, TorchArchive& archive, const Pickle& keys, uint64_t position) {
  const auto root = keys.root();
  const bool is_list = keys.is(root, PickleKind::list);
  const auto items = is_list ? keys.items(root) : std::span<const PickleId>();
  const bool all_text = std::all_of(items.begin(), items.end(),
                                    [&](PickleId item) { return keys.is(item, PickleKind::text); });
  TORCH_CHECK_VALUE(is_list && all_text, about(file), ": the list of storages is a ",
                    keys.describe(root), ", expected a list of text. ", kDamaged);
  const auto& expected = archive.objects.storages();
  std::set<std::string> listed;
  for (const auto item : items) {
    listed.emplace(keys.text(item));
  }
  std::set<std::string> differing;
  for (const auto& key : listed) {
    if (!expected.contains(key)) {
      differing.insert(key);
    }
  }
  for (const auto& [key, storage] : expected) {
    if (!listed.contains(key)) {
      differing.insert(key);
    }
  }
  std::string some;
  size_t count = 0;
  for (const auto& key : differing) {
    if (++count <= kNamed) {
      some += (some.empty() ? "" : ", ") + in_quotes(key);
    }
  }
  TORCH_CHECK_VALUE(count == 0 && listed.size() == items.size(), about(file), " lists ",
                    items.size(), " storages, and its tensors use ", expected.size(),
                    "; only one of the two has [", some, "], expected the same storages. ",
                    kDamaged);
  const auto size = file.size();
  constexpr const char* kCut = "Cause: the file is truncated. Next: download or save it again.";
  for (const auto item : items) {
    const std::string key(keys.text(item));
    const auto& storage = expected.at(key);
    TORCH_CHECK_VALUE(size - position >= kCountSize, about(file), " ends at byte ", size,
                      ", expected storage ", in_quotes(key), " at byte ", position, ". ", kCut);
    uint8_t bytes[kCountSize];
    file.read(position, kCountSize, bytes);
    uint64_t numel = 0;
    for (size_t i = kCountSize; i > 0; --i) {
      numel = numel << 8 | bytes[i - 1];
    }
    TORCH_CHECK_VALUE(numel == storage.numel, about(file), ": storage ", in_quotes(key),
                      " at byte ", position, " has ", static_cast<int64_t>(numel),
                      " elements, but its tensors expect ", storage.numel, ". ", kDamaged);
    position += kCountSize;
    TORCH_CHECK_VALUE(storage.nbytes <= size - position, about(file), " ends at byte ", size,
                      ", expected storage ", in_quotes(key), " of ", storage.nbytes,
                      " bytes at byte ", position, ". ", kCut);
    archive.storages.emplace(key, TorchArchive::Run{position, storage.nbytes});
    position += storage.nbytes;
  }
  TORCH_CHECK_VALUE(position == size, about(file), " has ", size,
                    " bytes, but its last storage ends at byte ", position,
                    ". Cause: something was appended, or the file is damaged.");
}

std::unique_ptr<TorchArchive> read_legacy(const File& file) {
  Sequence sequence(file);
  static_cast<void>(sequence.next("magic number"));  // compared with the file's beginning
  const auto protocol = sequence.next("protocol version");
  const bool known = protocol.is(protocol.root(), PickleKind::integer) &&
                     protocol.integer(protocol.root()) == kLegacyProtocol;
  TORCH_CHECK_VALUE(known, about(file), " has protocol version ",
                    protocol.describe(protocol.root()), ", expected ", kLegacyProtocol,
                    ". Cause: torch.save did not write this file, or it is damaged.");
  const auto system = sequence.next("system information");
  const auto little = system.is(system.root(), PickleKind::dict)
                          ? system.find(system.root(), "little_endian")
                          : std::nullopt;
  TORCH_CHECK_VALUE(little && system.is(*little, PickleKind::boolean) && system.boolean(*little),
                    about(file), " states for the system that wrote it 'little_endian': ",
                    little ? system.describe(*little) : "nothing", ", expected True. ",
                    kOtherOrder);
  auto archive = std::make_unique<TorchArchive>(sequence.next("object"));
  for (const auto& [key, storage] : archive->objects.storages()) {
    TORCH_CHECK_VALUE(storage.nbytes <= file.size(), about(file), ": storage ", in_quotes(key),
                      " has ", storage.nbytes, " bytes, the whole file has ", file.size(), ". ",
                      kDamaged);
  }
  const auto keys = sequence.next("list of storages");
  find_storages(file, *archive, keys, sequence.position());
  archive->checksums.push_back({"the file", 0, file.size(), std::nullopt});
  return archive;
}

}  // namespace

bool is_torch_file(std::string_view first_bytes) {
  return first_bytes.starts_with(kZipMagic) || first_bytes.starts_with(kLegacyPrefix) ||
         is_tar(first_bytes);
}

std::unique_ptr<const TorchArchive> read_torch_archive(const File& file) {
  std::string first(std::min<uint64_t>(file.size(), 512), '\0');
  file.read(0, first.size(), first.data());
  if (first.starts_with(kZipMagic)) {
    return read_zip(file);
  }
  if (first.starts_with(kLegacyPrefix)) {
    return read_legacy(file);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(!is_tar(first), about(file),
                              " has the tar layout of torch before 0.1.10. Next: load it with "
                              "torch.load(weights_only=False), if you trust it, and save it with "
                              "torch.save.");
  TORCH_CHECK_VALUE(false, about(file), " begins with ",
                    in_quotes(std::string_view(first).substr(0, 16)),
                    ", expected a file of torch.save: a zip file or its older layout. Next: load "
                    "a pickle of another kind with the program that wrote it.");
}

}  // namespace dormant::checkpoint
