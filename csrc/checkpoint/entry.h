// A tensor in a checkpoint: what it is and where its bytes lie.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace dormant::checkpoint {

struct Entry {
  std::string name;
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
  uint64_t offset;  ///< in the file, in bytes
  uint64_t nbytes;
  /// Where the file's format says that elements are packed in some way: how. Else empty.
  std::string encoding = {};
};

}  // namespace dormant::checkpoint
