#include "checkpoint/remote_file.h"

#include <utility>

namespace dormant::checkpoint {

RemoteFile::RemoteFile(std::string path, uint64_t size, std::unique_ptr<const RangeReader> reader)
    : File(std::move(path)), reader_(std::move(reader)) {
  set_size(size);
}

void RemoteFile::read(uint64_t offset, size_t count, void* out) const {
  check_range(offset, count);
  if (count > 0) {
    reader_->read(offset, count, out);
  }
}

void RemoteFile::check() const { reader_->check(); }

}  // namespace dormant::checkpoint
