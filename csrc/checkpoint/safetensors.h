// The header of a safetensors file, which may come from anyone.
//
// A file is the length of the header (8 bytes, little endian), the header (a JSON object), and the
// bytes of the tensors without gaps (https://github.com/huggingface/safetensors, "Format"). A file
// that this reader accepts is one that the format's own library accepts, with the same tensors. It
// refuses a little more, where the format's text does, or where readers might disagree or be led
// astray: a name given twice, an empty name, an unknown field, metadata that is null, fields as a
// list without their names, white space before the header, more than kMostDimensions dimensions,
// sizes whose product overflows although one of them is zero; and dtypes whose elements share
// bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/entry.h"
#include "system/export.h"

namespace dormant::checkpoint {

class File;

/// What the format's library accepts at most.
inline constexpr uint64_t kLongestHeader = 100'000'000;
/// PyTorch's reductions take no more (dim_bitset_size in ATen/WrapDimUtilsMulti.h).
inline constexpr size_t kMostDimensions = 64;

struct Safetensors {
  std::vector<Entry> entries;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// Bytes of the header whose length the first 8 bytes of a file state. `file` is printable text for
/// messages. c10::ValueError where a file of `file_size` bytes cannot have such a header.
uint64_t safetensors_header_size(std::string_view first_bytes, uint64_t file_size,
                                 const std::string& file);

/// Parses the header of a file of `file_size` bytes. c10::ValueError, with file, tensor, byte, what
/// was found and what was expected, where anything is wrong with it.
Safetensors parse_safetensors_header(std::string_view header, uint64_t file_size,
                                     const std::string& file);

/// Reads and parses the header of a file; std::system_error where it cannot be read.
DORMANT_BINDINGS_API Safetensors read_safetensors_header(const File& file);

}  // namespace dormant::checkpoint
