// For tests: GGUF files byte by byte, well formed or not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace dormant::checkpoint::gguf_bytes {

inline const std::string kMagic = "GGUF";

template <class T>
std::string number(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::string u32(uint32_t value) { return number(value); }
inline std::string u64(uint64_t value) { return number(value); }
inline std::string text(std::string_view value) { return u64(value.size()) + std::string(value); }

inline std::string pair(std::string_view key, uint32_t type, const std::string& value) {
  return text(key) + u32(type) + value;
}

inline std::string tensor(std::string_view name, const std::vector<uint64_t>& sizes, uint32_t type,
                          uint64_t offset) {
  std::string bytes = text(name) + u32(static_cast<uint32_t>(sizes.size()));
  for (const auto size : sizes) {
    bytes += u64(size);
  }
  return bytes + u32(type) + u64(offset);
}

/// A file of these pairs and tensors, and `data` bytes of tensors.
inline std::string gguf(const std::vector<std::string>& pairs,
                        const std::vector<std::string>& tensors, size_t data,
                        size_t alignment = 32) {
  std::string bytes = kMagic + u32(3) + u64(tensors.size()) + u64(pairs.size());
  for (const auto& each : pairs) {
    bytes += each;
  }
  for (const auto& each : tensors) {
    bytes += each;
  }
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  return bytes + std::string(data, '\1');
}

}  // namespace dormant::checkpoint::gguf_bytes
