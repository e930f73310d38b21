// Zip files of records that are stored as they are, for tests and fuzz targets.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dormant::checkpoint {

struct StoredRecord {
  std::string name;
  std::string bytes;
};

inline uint32_t crc32_of(std::string_view bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int i = 0; i < 8; ++i) {
      crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320U : 0);
    }
  }
  return ~crc;
}

template <typename Integer>
std::string little_endian(Integer value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(Integer); ++i) {
    bytes.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
  }
  return bytes;
}

/// `wide` writes the end in 64 bits as well, as PyTorch does.
inline std::string zip_bytes(const std::vector<StoredRecord>& records, bool wide = false) {
  std::string body;
  std::string directory;
  const std::string plain = little_endian<uint16_t>(0) + little_endian<uint16_t>(0);
  for (const auto& [name, bytes] : records) {
    const auto size = static_cast<uint32_t>(bytes.size());
    const auto facts = little_endian<uint16_t>(0x800) + plain + little_endian<uint16_t>(0) +
                       little_endian(crc32_of(bytes)) + little_endian(size) + little_endian(size) +
                       little_endian(static_cast<uint16_t>(name.size())) +
                       little_endian<uint16_t>(0);
    directory += std::string("PK\x01\x02", 4) + plain + facts + std::string(12 - 2, '\0') +
                 little_endian(static_cast<uint32_t>(body.size())) + name;
    body += std::string("PK\x03\x04", 4) + little_endian<uint16_t>(0) + facts + name + bytes;
  }
  const auto count = static_cast<uint16_t>(records.size());
  const auto begin = static_cast<uint32_t>(body.size());
  const auto size = static_cast<uint32_t>(directory.size());
  std::string end;
  if (wide) {
    end = std::string("PK\x06\x06", 4) + little_endian<uint64_t>(44) + plain +
          little_endian<uint32_t>(0) + little_endian<uint32_t>(0) + little_endian<uint64_t>(count) +
          little_endian<uint64_t>(count) + little_endian<uint64_t>(size) +
          little_endian<uint64_t>(begin);
    end += std::string("PK\x06\x07", 4) + little_endian<uint32_t>(0) +
           little_endian(static_cast<uint64_t>(body.size() + directory.size())) +
           little_endian<uint32_t>(1);
  }
  end += std::string("PK\x05\x06", 4) + plain + little_endian(count) + little_endian(count) +
         little_endian(size) + little_endian(begin) + little_endian<uint16_t>(0);
  return body + directory + end;
}

}  // namespace dormant::checkpoint
