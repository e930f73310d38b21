// Some bytes of a file as a file of their own: what reads files reads archives within them as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "checkpoint/file.h"

namespace dormant::checkpoint {

class DORMANT_BINDINGS_API FilePart final : public File {
 public:
  /// Bytes [offset, offset + size) of `whole`, under whose name it goes. c10::ValueError where they
  /// do not exist.
  FilePart(std::shared_ptr<const File> whole, uint64_t offset, uint64_t size);

  void read(uint64_t offset, size_t count, void* out) const override;
  c10::DataPtr map(uint64_t offset, size_t count, record::Guard guard) const override;
  void will_read(uint64_t offset, size_t count) const override;
  void check() const override { whole_->check(); }
  size_t preferred_read_bytes() const override { return whole_->preferred_read_bytes(); }
  void copy_always() const noexcept override { whole_->copy_always(); }

 private:
  const std::shared_ptr<const File> whole_;
  const uint64_t offset_;
};

}  // namespace dormant::checkpoint
