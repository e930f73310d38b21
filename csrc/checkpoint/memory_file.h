// A file in memory, for tests and fuzz targets.
#pragma once

#include <cstring>
#include <string>
#include <utility>

#include "checkpoint/file.h"

namespace dormant::checkpoint {

class MemoryFile final : public File {
 public:
  explicit MemoryFile(std::string bytes) : File("/memory"), bytes_(std::move(bytes)) {
    set_size(bytes_.size());
  }
  void read(uint64_t offset, size_t count, void* out) const override {
    check_range(offset, count);
    std::memcpy(out, bytes_.data() + offset, count);
  }

 private:
  const std::string bytes_;
};

}  // namespace dormant::checkpoint
