// Memory of another device that a tensor has, as a source that histories read.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include "record/source.h"

namespace dormant::record {

/// All bytes of a storage, which is kept alive. Any thread.
class DeviceMemory final : public Source {
 public:
  explicit DeviceMemory(const c10::Storage& storage);

  /// Waits for the copy. c10::Error where the device fails.
  void read(uint64_t offset, size_t count, void* out) const override;
  /// That of memory on the CPU: what is read is in no file.
  const std::string& name() const override;

 private:
  const at::Tensor bytes_;
};

}  // namespace dormant::record
