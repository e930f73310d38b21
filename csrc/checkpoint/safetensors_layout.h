// Where everything in a safetensors file will lie, before anything is written.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "system/export.h"

namespace dormant::checkpoint {

/// The name that a header uses for something else.
inline constexpr std::string_view kSafetensorsMetadata = "__metadata__";

struct TensorToWrite {
  std::string name;
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
};

struct SafetensorsLayout {
  std::string prefix;             ///< the bytes before the first tensor
  std::vector<uint64_t> offsets;  ///< of the first byte of each tensor, in the order given
  uint64_t nbytes;                ///< of the file
};

/// Lays tensors out as the format's own library does: wide elements first, then by name. Metadata
/// keeps its order. c10::ValueError where a name is not UTF-8, is given twice or is reserved, the
/// format has no such dtype, sizes overflow, or the header would be longer than readers accept.
DORMANT_BINDINGS_API SafetensorsLayout
lay_out_safetensors(c10::ArrayRef<TensorToWrite> tensors,
                    c10::ArrayRef<std::pair<std::string, std::string>> metadata);

}  // namespace dormant::checkpoint
