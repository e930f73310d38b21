#include "checkpoint/gguf.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>
#include <unordered_set>

#include "checkpoint/file.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they lie");

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kDefaultAlignment = 32;
constexpr const char* kAlignmentKey = "general.alignment";
/// Of a key and a value, and of a description of a tensor, at least: a count beyond what the file
/// has room for is refused before anything is made.
constexpr uint64_t kShortestPair = 8 + 4 + 1;
constexpr uint64_t kShortestTensor = 8 + 4 + 4 + 8;
constexpr size_t kWindow = 1 << 20;
constexpr const char* kDamaged =
    "Cause: the file is damaged or incomplete, or has another format. Next: download or make it "
    "again.";

/// Bytes of a value of a type that has a size of its own; zero for strings and arrays.
uint64_t width_of(GgufValueType type) {
  switch (type) {
    case GgufValueType::uint8:
    case GgufValueType::int8:
    case GgufValueType::boolean:
      return 1;
    case GgufValueType::uint16:
    case GgufValueType::int16:
      return 2;
    case GgufValueType::uint32:
    case GgufValueType::int32:
    case GgufValueType::float32:
      return 4;
    case GgufValueType::uint64:
    case GgufValueType::int64:
    case GgufValueType::float64:
      return 8;
    default:
      return 0;
  }
}

/// Reads a file from its beginning, in pieces: nobody knows how long the header is.
class Reader {
 public:
  Reader(const record::Source& source, uint64_t begin, uint64_t end)
      : source_(source), position_(begin), end_(end), window_begin_(begin) {}

  uint64_t position() const noexcept { return position_; }
  uint64_t left() const noexcept { return end_ - position_; }
  /// What begins here, for messages: "the number of tensors".
  void expect(std::string what) {
    what_ = std::move(what);
    begin_ = position_;
  }
  std::string here() const {
    return "open_checkpoint: " + source_.name() + ": " + what_ + " at byte " +
           std::to_string(begin_);
  }

  template <class T>
  T number() {
    T value;
    take(sizeof value, &value);
    return value;
  }

  std::string text(uint64_t longest) {
    const auto size = length(longest);
    std::string value(size, '\0');
    take(size, value.data());
    return value;
  }

  void skip_text() { skip(length(kLongestGgufHeader)); }

  void skip(uint64_t count) {
    need(count);
    position_ += count;
  }

  /// c10::ValueError unless `count` more bytes exist.
  void need(uint64_t count) const {
    TORCH_CHECK_VALUE(count <= left(), here(), " takes ", count, " bytes, expected at most ",
                      left(), ", which is what is left of the file. ", kDamaged);
  }

 private:
  uint64_t length(uint64_t longest) {
    const auto size = number<uint64_t>();
    TORCH_CHECK_VALUE(size <= std::min(longest, left()), here(), " has ", size,
                      " bytes, expected at most ", std::min(longest, left()), ". ", kDamaged);
    return size;
  }

  void take(size_t count, void* out) {
    need(count);
    auto* to = static_cast<char*>(out);
    while (count > 0) {
      const auto begin = position_ - window_begin_;
      if (begin >= window_.size()) {
        fill();
        continue;
      }
      const auto part = std::min<uint64_t>(count, window_.size() - begin);
      std::memcpy(to, window_.data() + begin, part);
      to += part;
      position_ += part;
      count -= part;
    }
  }

  void fill() {
    window_begin_ = position_;
    window_.resize(std::min<uint64_t>(kWindow, end_ - position_));
    source_.read(window_begin_, window_.size(), window_.data());
  }

  const record::Source& source_;
  uint64_t position_;
  const uint64_t end_;
  uint64_t window_begin_;
  std::string window_;
  std::string what_;
  uint64_t begin_ = 0;
};

GgufValue read_value(Reader& reader, GgufValueType type) {
  switch (type) {
    case GgufValueType::uint8:
      return uint64_t{reader.number<uint8_t>()};
    case GgufValueType::int8:
      return int64_t{reader.number<int8_t>()};
    case GgufValueType::uint16:
      return uint64_t{reader.number<uint16_t>()};
    case GgufValueType::int16:
      return int64_t{reader.number<int16_t>()};
    case GgufValueType::uint32:
      return uint64_t{reader.number<uint32_t>()};
    case GgufValueType::int32:
      return int64_t{reader.number<int32_t>()};
    case GgufValueType::uint64:
      return reader.number<uint64_t>();
    case GgufValueType::int64:
      return reader.number<int64_t>();
    case GgufValueType::float32:
      return double{reader.number<float>()};
    case GgufValueType::float64:
      return reader.number<double>();
    case GgufValueType::boolean: {
      const auto value = reader.number<uint8_t>();
      TORCH_CHECK_VALUE(value <= 1, reader.here(), " is ", static_cast<int>(value),
                        ", expected 0 or 1. ", kDamaged);
      return value == 1;
    }
    case GgufValueType::string:
      return reader.text(kLongestGgufHeader);
    case GgufValueType::array:
      break;
  }
  TORCH_CHECK_VALUE(false, reader.here(), " is an array inside an array. ", kDamaged);
}

GgufValueType read_type(Reader& reader) {
  const auto number = reader.number<uint32_t>();
  TORCH_CHECK_VALUE(number <= static_cast<uint32_t>(GgufValueType::float64), reader.here(),
                    " has a value of type ", number, ", expected 0 to ",
                    static_cast<uint32_t>(GgufValueType::float64),
                    ". Cause: the file is damaged, or has a newer format.");
  return static_cast<GgufValueType>(number);
}

GgufArray read_array(Reader& reader) {
  const auto type = read_type(reader);
  const auto count = reader.number<uint64_t>();
  TORCH_CHECK_VALUE(type != GgufValueType::array, reader.here(),
                    " is an array of arrays, which ggml does not read. ", kDamaged);
  const auto offset = reader.position();
  const auto width = std::max<uint64_t>(width_of(type), type == GgufValueType::string ? 8 : 1);
  TORCH_CHECK_VALUE(count <= reader.left() / width, reader.here(), " is an array of ", count,
                    " elements, expected at most ", reader.left() / width,
                    ", for which there is room in the file. ", kDamaged);
  if (type == GgufValueType::string) {
    for (uint64_t i = 0; i < count; ++i) {
      reader.skip_text();
    }
  } else if (type == GgufValueType::boolean) {
    for (uint64_t i = 0; i < count; ++i) {
      read_value(reader, type);
    }
  } else {
    reader.skip(count * width);
  }
  return {type, count, offset, reader.position() - offset};
}

std::string read_name(Reader& reader) {
  auto name = reader.text(kLongestGgufName);
  TORCH_CHECK_VALUE(!name.empty(), reader.here(), " is empty, expected text. ", kDamaged);
  const auto wrong = text::first_not_utf8(name);
  TORCH_CHECK_VALUE(wrong == std::string::npos, reader.here(), " is ", text::in_quotes(name),
                    ", which is not UTF-8 at its byte ", wrong, ". ", kDamaged);
  return name;
}

uint64_t read_count(Reader& reader, const char* of, uint64_t shortest) {
  reader.expect(std::string("the number of ") + of);
  const auto count = reader.number<uint64_t>();
  TORCH_CHECK_VALUE(count <= reader.left() / shortest, reader.here(), " is ", count,
                    ", expected at most ", reader.left() / shortest,
                    ", for which there is room in the file. ", kDamaged);
  TORCH_CHECK_VALUE(count <= kMostGgufNames, reader.here(), " is ", count, ", expected at most ",
                    kMostGgufNames, ". ", kDamaged);
  return count;
}

uint32_t read_version(Reader& reader) {
  reader.expect("the version");
  const auto version = reader.number<uint32_t>();
  TORCH_CHECK_NOT_IMPLEMENTED(
      (version & 0xffff) != 0 || version == 0, reader.here(), " is ", version,
      ", which indicates a big-endian file; expected a little-endian one. Next: "
      "convert it with gguf-convert-endian from the Python package gguf.");
  TORCH_CHECK_NOT_IMPLEMENTED(
      version != 1, reader.here(),
      " is 1, expected 2 or 3: version 1 was used only in the "
      "summer of 2023. Next: convert the file with a llama.cpp of that time.");
  TORCH_CHECK_VALUE(version == 2 || version == 3, reader.here(), " is ", version,
                    ", expected 2 or 3. Cause: the file is damaged, or has a newer format.");
  return version;
}

/// a * b, unless it does not fit a signed 64-bit integer, as PyTorch counts elements and bytes.
std::optional<int64_t> product(std::optional<int64_t> a, int64_t b) {
  int64_t result = 0;
  if (!a || __builtin_mul_overflow(*a, b, &result)) {
    return std::nullopt;
  }
  return result;
}

/// A description of a tensor; its offset is from the beginning of the data.
GgufTensor read_tensor(Reader& reader) {
  reader.expect("the name of a tensor");
  GgufTensor tensor;
  auto& entry = tensor.entry;
  entry.name = read_name(reader);
  reader.expect("tensor " + text::in_quotes(entry.name));
  const auto dimensions = reader.number<uint32_t>();
  TORCH_CHECK_VALUE(dimensions <= kMostGgufDimensions, reader.here(), " has ", dimensions,
                    " dimensions, expected at most ", kMostGgufDimensions, ". ", kDamaged);
  tensor.sizes.resize(dimensions);
  for (auto size = tensor.sizes.rbegin(); size != tensor.sizes.rend(); ++size) {
    const auto number = reader.number<uint64_t>();
    TORCH_CHECK_VALUE(number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
                      reader.here(), " has the size ", number, ", expected at most ",
                      std::numeric_limits<int64_t>::max(), ". ", kDamaged);
    *size = static_cast<int64_t>(number);
  }
  const auto number = reader.number<uint32_t>();
  tensor.type = decode::find_gguf_type(number);
  TORCH_CHECK_VALUE(tensor.type != nullptr, reader.here(), " has type ", number,
                    ", expected a type of ggml. Cause: the file is damaged, or its type is newer "
                    "than this release, or was removed from ggml.");
  const auto& type = *tensor.type;
  entry.dtype = type.dtype;
  entry.sizes = tensor.sizes;
  if (type.packed()) {
    TORCH_CHECK_VALUE(dimensions > 0 && entry.sizes.back() % type.elements == 0, reader.here(),
                      " has shape ", c10::IntArrayRef(tensor.sizes),
                      ", expected rows of whole blocks of ", type.name, ", ", type.elements,
                      " elements each. ", kDamaged);
    entry.encoding = decode::gguf_encoding(type);
    const auto row = product(entry.sizes.back() / type.elements, type.bytes);
    entry.sizes.back() = row.value_or(std::numeric_limits<int64_t>::max());
  }
  // As floats, too; and the strides of a tensor without elements count its other sizes.
  std::optional<int64_t> nbytes = static_cast<int64_t>(c10::elementSize(type.dtype));
  std::optional<int64_t> extent = nbytes;
  std::optional<int64_t> floats = int64_t{sizeof(double)};
  for (size_t i = 0; i < dimensions; ++i) {
    nbytes = product(nbytes, entry.sizes[i]);
    extent = product(extent, std::max<int64_t>(entry.sizes[i], 1));
    floats = product(floats, std::max<int64_t>(tensor.sizes[i], 1));
  }
  TORCH_CHECK_VALUE(nbytes && extent && floats, reader.here(), " has shape ",
                    c10::IntArrayRef(tensor.sizes), ", which overflows; expected at most ",
                    std::numeric_limits<int64_t>::max(), " bytes. ", kDamaged);
  entry.nbytes = static_cast<uint64_t>(*nbytes);
  entry.offset = reader.number<uint64_t>();
  return tensor;
}

uint64_t alignment_of(const Gguf& header, const record::Source& source) {
  const auto found = std::find_if(header.metadata.begin(), header.metadata.end(),
                                  [](const auto& pair) { return pair.first == kAlignmentKey; });
  if (found == header.metadata.end()) {
    return kDefaultAlignment;
  }
  const auto* value = std::get_if<uint64_t>(&found->second);
  TORCH_CHECK_VALUE(value != nullptr && std::has_single_bit(*value) && *value <= UINT32_MAX,
                    "open_checkpoint: ", source.name(), ": ", kAlignmentKey, " is ",
                    value != nullptr ? std::to_string(*value) : "not an unsigned number",
                    ", expected a power of two that fits 32 bits. ", kDamaged);
  return *value;
}

/// Lets the offsets be those in the file; c10::ValueError where a tensor does not lie in it, apart
/// from the others.
void place(Gguf& header, uint64_t header_size, uint64_t file_size, const record::Source& source) {
  const auto alignment = alignment_of(header, source);
  // Less than 2^33 more than the header has.
  const auto data = (header_size + alignment - 1) / alignment * alignment;
  const auto room = file_size - std::min(data, file_size);
  std::vector<const Entry*> sorted;
  for (auto& tensor : header.tensors) {
    auto& entry = tensor.entry;
    const auto title =
        "open_checkpoint: " + source.name() + ": tensor " + text::in_quotes(entry.name);
    TORCH_CHECK_VALUE(entry.offset % alignment == 0, title, ": its bytes start at ", entry.offset,
                      " of the data, expected a multiple of the alignment, ", alignment, ". ",
                      kDamaged);
    TORCH_CHECK_VALUE(entry.offset <= room && entry.nbytes <= room - entry.offset, title, ": ",
                      entry.nbytes, " bytes at ", entry.offset,
                      " of the data, expected a range within its ", room,
                      " bytes, which start at byte ", data, " of ", file_size, ". ", kDamaged);
    entry.offset += data;
    sorted.push_back(&entry);
  }
  std::sort(sorted.begin(), sorted.end(), [](const Entry* a, const Entry* b) {
    return std::pair(a->offset, a->nbytes) < std::pair(b->offset, b->nbytes);
  });
  const Entry* before = nullptr;
  for (const auto* entry : sorted) {
    if (entry->nbytes == 0) {
      continue;
    }
    TORCH_CHECK_VALUE(before == nullptr || before->offset + before->nbytes <= entry->offset,
                      "open_checkpoint: ", source.name(), ": tensor ", text::in_quotes(entry->name),
                      ": its bytes start at ", entry->offset, ", expected at least ",
                      before->offset + before->nbytes, ", where tensor ",
                      text::in_quotes(before->name), " ends, so they overlap. ", kDamaged);
    before = entry;
  }
}

}  // namespace

bool is_gguf(const std::string& first_bytes) noexcept { return first_bytes.starts_with(kMagic); }

Gguf parse_gguf(const record::Source& source, uint64_t file_size) {
  Reader reader(source, 0, file_size);
  reader.expect("the header");
  const auto magic = reader.number<uint32_t>();
  TORCH_CHECK_VALUE(std::memcmp(&magic, kMagic.data(), sizeof magic) == 0, reader.here(),
                    " does not follow 'GGUF'. ", kDamaged);
  Gguf header;
  header.version = read_version(reader);
  const auto tensors = read_count(reader, "tensors", kShortestTensor);
  const auto pairs = read_count(reader, "keys", kShortestPair);
  const auto check_length = [&] {
    TORCH_CHECK_VALUE(reader.position() <= kLongestGgufHeader, reader.here(),
                      " is too far from the start, expected the header to end before byte ",
                      kLongestGgufHeader, ". ", kDamaged);
  };
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < pairs; ++i) {
    reader.expect("a key");
    auto key = read_name(reader);
    reader.expect("the value of " + text::in_quotes(key));
    TORCH_CHECK_VALUE(names.insert(key).second, reader.here(), " is given twice. ", kDamaged);
    const auto type = read_type(reader);
    header.metadata.emplace_back(std::move(key), type == GgufValueType::array
                                                     ? GgufValue(read_array(reader))
                                                     : read_value(reader, type));
    check_length();
  }
  names.clear();
  for (uint64_t i = 0; i < tensors; ++i) {
    auto tensor = read_tensor(reader);
    TORCH_CHECK_VALUE(names.insert(tensor.entry.name).second, reader.here(), " is given twice. ",
                      kDamaged);
    header.tensors.push_back(std::move(tensor));
    check_length();
  }
  place(header, reader.position(), file_size, source);
  return header;
}

Gguf read_gguf(const File& file) { return parse_gguf(file, file.size()); }

std::vector<std::string> gguf_parts(const std::string& path) {
  // -00001-of-00003.gguf
  constexpr size_t kDigits = 5;
  constexpr std::string_view kOf = "-of-", kEnding = ".gguf";
  constexpr size_t kSize = 1 + 2 * kDigits + kOf.size() + kEnding.size();
  if (path.size() <= kSize || !path.ends_with(kEnding)) {
    return {path};
  }
  const auto stem = path.substr(0, path.size() - kSize);
  const auto tail = path.substr(stem.size());
  const auto digits = [&](size_t at) {
    const auto text = tail.substr(at, kDigits);
    return text.find_first_not_of("0123456789") == std::string::npos ? std::stoi(text) : 0;
  };
  const int number = digits(1), count = digits(1 + kDigits + kOf.size());
  if (tail[0] != '-' || tail.substr(1 + kDigits, kOf.size()) != kOf || number < 1 ||
      number > count) {
    return {path};
  }
  std::vector<std::string> parts;
  const auto padded = [](int value) {
    const auto text = std::to_string(value);
    return std::string(kDigits - text.size(), '0') + text;
  };
  for (int i = 1; i <= count; ++i) {
    parts.push_back(stem + "-" + padded(i) + std::string(kOf) + padded(count) +
                    std::string(kEnding));
  }
  return parts;
}

std::string to_text(const GgufValue& value) {
  return std::visit(
      [](const auto& each) -> std::string {
        using Value = std::decay_t<decltype(each)>;
        if constexpr (std::is_same_v<Value, std::string>) {
          return each;
        } else if constexpr (std::is_same_v<Value, GgufArray>) {
          return c10::str("an array of ", each.count);
        } else if constexpr (std::is_same_v<Value, bool>) {
          return each ? "true" : "false";
        } else {
          return c10::str(each);
        }
      },
      value);
}

std::vector<GgufValue> read_gguf_array(const record::Source& source, const GgufArray& array) {
  Reader reader(source, array.offset, array.offset + array.nbytes);
  reader.expect("an array");
  std::vector<GgufValue> values;
  for (uint64_t i = 0; i < array.count; ++i) {
    values.push_back(read_value(reader, array.type));
  }
  return values;
}

}  // namespace dormant::checkpoint
