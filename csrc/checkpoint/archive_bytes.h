// For tests: zip archives and pickles, byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dormant::checkpoint::bytes {

inline std::string little(uint64_t value, int size) {
  std::string text;
  for (int i = 0; i < size; ++i) {
    text.push_back(i < 8 ? static_cast<char>(value >> (8 * i)) : '\0');
  }
  return text;
}

/// A zip archive of stored records; checksums are zero, as torch may write them.
inline std::string archive(const std::vector<std::pair<std::string, std::string>>& records) {
  std::string text;
  std::string directory;
  for (const auto& [name, data] : records) {
    const auto header = text.size();
    const auto sizes = little(data.size(), 4) + little(data.size(), 4) + little(name.size(), 2);
    text += "PK\x03\x04" + little(20, 2) + little(0, 12) + sizes + little(0, 2) + name + data;
    directory += "PK\x01\x02" + little(20, 2) + little(20, 2) + little(0, 12) + sizes +
                 little(0, 12) + little(header, 4) + name;
  }
  const auto start = text.size();
  return text + directory + "PK\x05\x06" + little(0, 4) + little(records.size(), 2) +
         little(records.size(), 2) + little(directory.size(), 4) + little(start, 4) + little(0, 2);
}

inline std::string text(std::string_view value) {
  return std::string("X") + little(value.size(), 4) + std::string(value);
}
inline std::string integer(int64_t value) {
  return "\x8a\x08" + little(static_cast<uint64_t>(value), 8);
}
inline std::string global(std::string_view module, std::string_view name) {
  return std::string("c") + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string tuple(const std::vector<std::string>& items) {
  std::string joined = "(";
  for (const auto& item : items) {
    joined += item;
  }
  return joined + "t";
}
inline std::string list(const std::vector<std::string>& items) {
  std::string joined = "](";
  for (const auto& item : items) {
    joined += item;
  }
  return joined + "e";
}
/// Keys and values by turns.
inline std::string dict(const std::vector<std::string>& items) {
  std::string joined = "}(";
  for (const auto& item : items) {
    joined += item;
  }
  return joined + "u";
}
inline std::string integers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const auto value : values) {
    items.push_back(integer(value));
  }
  return tuple(items);
}
inline std::string call(const std::string& function, const std::vector<std::string>& arguments) {
  return function + tuple(arguments) + "R";
}
/// An object of a class without arguments, with such attributes.
inline std::string object(const std::string& type, const std::vector<std::string>& attributes) {
  return type + ")\x81" + dict(attributes) + "b";
}
inline std::string pickle(const std::string& value) { return "\x80\x02" + value + "."; }

/// What torch.save writes of a tensor of 16-bit integers.
inline std::string tensor_archive(const std::vector<int64_t>& sizes,
                                  const std::vector<int64_t>& strides,
                                  const std::vector<int16_t>& elements, int64_t offset = 0) {
  const auto count = static_cast<int64_t>(elements.size());
  const auto storage = tuple({text("storage"), global("torch", "ShortStorage"), text("0"),
                              text("cpu"), integer(count)}) +
                       "Q";
  const auto hooks = call(global("collections", "OrderedDict"), {});
  const auto document =
      pickle(call(global("torch._utils", "_rebuild_tensor_v2"),
                  {storage, integer(offset), integers(sizes), integers(strides), "\x89", hooks}));
  std::string data(reinterpret_cast<const char*>(elements.data()), elements.size() * 2);
  return archive({{"archive/data.pkl", document},
                  {"archive/byteorder", "little"},
                  {"archive/data/0", data},
                  {"archive/version", "3\n"}});
}

}  // namespace dormant::checkpoint::bytes
