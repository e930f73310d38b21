#include "checkpoint/file_part.h"

#include <utility>

namespace dormant::checkpoint {

FilePart::FilePart(std::shared_ptr<const File> whole, uint64_t offset, uint64_t size)
    : File(whole->path()), whole_(std::move(whole)), offset_(offset) {
  whole_->check_range(offset, size);
  set_size(size);
}

void FilePart::read(uint64_t offset, size_t count, void* out) const {
  check_range(offset, count);
  whole_->read(offset_ + offset, count, out);
}

c10::DataPtr FilePart::map(uint64_t offset, size_t count, record::Guard guard) const {
  check_range(offset, count);
  return whole_->map(offset_ + offset, count, guard);
}

void FilePart::will_read(uint64_t offset, size_t count) const {
  whole_->will_read(offset_ + offset, count);
}

}  // namespace dormant::checkpoint
