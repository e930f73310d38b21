// The types of tensors in GGUF files, by ggml's numbers (ggml.h, enum ggml_type).
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "decode/gguf_kernels.h"
#include "system/export.h"

namespace dormant::decode {

struct GgufType {
  uint32_t number;
  std::string_view name;
  int64_t elements;       ///< of a block, which never spans rows
  int64_t bytes;          ///< of a block
  c10::ScalarType dtype;  ///< of what is stored: of blocks their bytes, uint8
  std::optional<BlockCode> code = std::nullopt;

  /// Whether elements are packed in blocks.
  bool packed() const noexcept { return elements > 1; }
};

/// Null for numbers that are no type, or that of one that was removed or is newer than this table.
DORMANT_BINDINGS_API const GgufType* find_gguf_type(uint32_t number);

/// How messages and entries call a type: "GGUF Q4_K".
std::string gguf_encoding(const GgufType& type);

/// The type of such a name; null where it is none.
const GgufType* find_gguf_type(std::string_view encoding);

}  // namespace dormant::decode
