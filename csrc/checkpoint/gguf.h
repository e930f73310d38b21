// The header of a GGUF file, which may come from anyone.
//
// A file is a header, metadata by key, a description of each tensor, and from the next multiple of
// an alignment the bytes of the tensors (docs/gguf.md of ggml). Versions 2 and 3, which differ in
// nothing but that 3 knows files of big-endian machines. A file that this reader accepts is one
// that ggml's own accepts, or could: it refuses arrays in arrays and more than four dimensions as
// ggml does, and where readers might be led astray: a key or a tensor given twice, names that are
// not UTF-8, bytes that two tensors share, booleans that are neither 0 nor 1. It accepts holes
// between the tensors.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "checkpoint/entry.h"
#include "decode/gguf_types.h"
#include "record/source.h"
#include "system/export.h"

namespace dormant::checkpoint {

class File;

/// More than any vocabulary takes.
inline constexpr uint64_t kLongestGgufHeader = 1ULL << 30;
/// Keys, and tensors: many times what the largest models have.
inline constexpr uint64_t kMostGgufNames = 1 << 20;
/// ggml's limit, GGML_MAX_DIMS.
inline constexpr uint32_t kMostGgufDimensions = 4;
/// The format's limit for keys; ggml's for tensors is shorter.
inline constexpr uint64_t kLongestGgufName = 65535;

/// The types of values, by the format's numbers.
enum class GgufValueType : uint32_t {
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  float32,
  boolean,
  string,
  array,
  uint64,
  int64,
  float64,
};

/// An array that stays in the file: those of a vocabulary are long, and few ask for them.
struct GgufArray {
  GgufValueType type;  ///< of its elements, never an array
  uint64_t count;
  uint64_t offset;  ///< of its first element, in the file
  uint64_t nbytes;  ///< of all its elements

  bool operator==(const GgufArray& other) const = default;
};

/// Numbers in the widest type of their kind; a string as its bytes, which need not be UTF-8.
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray>;

/// A tensor whose entry has the dtype and the sizes of what is stored: of blocks their bytes, a row
/// of blocks for each row.
struct GgufTensor {
  Entry entry;
  const decode::GgufType* type;
  std::vector<int64_t> sizes;  ///< of its elements, the outermost dimension first
};

struct Gguf {
  uint32_t version;
  std::vector<std::pair<std::string, GgufValue>> metadata;  ///< in the order of the file
  std::vector<GgufTensor> tensors;                          ///< likewise
};

/// Whether a file with these first bytes is meant to be GGUF.
bool is_gguf(const std::string& first_bytes) noexcept;

/// Reads and parses the header of a file of `file_size` bytes. c10::ValueError, with file, key or
/// tensor, byte, what was found and what was expected, where anything is wrong with it;
/// c10::NotImplementedError for version 1 and for big-endian files; std::system_error where it
/// cannot be read.
Gguf parse_gguf(const record::Source& source, uint64_t file_size);
DORMANT_BINDINGS_API Gguf read_gguf(const File& file);

/// The files of a checkpoint that was split, by the name of one of them; else this one alone.
std::vector<std::string> gguf_parts(const std::string& path);

/// A value as text; of an array its length.
std::string to_text(const GgufValue& value);

/// The elements of an array of strings, or of numbers as GgufValue has them.
DORMANT_BINDINGS_API std::vector<GgufValue> read_gguf_array(const record::Source& source,
                                                            const GgufArray& array);

}  // namespace dormant::checkpoint
