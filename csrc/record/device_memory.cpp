#include "record/device_memory.h"

#include <ATen/ops/from_blob.h>

#include "record/geometry.h"
#include "system/dispatch_state.h"

namespace dormant::record {

DeviceMemory::DeviceMemory(const c10::Storage& storage)
    : bytes_(Geometry::bytes(storage.nbytes()).over(storage)) {}

void DeviceMemory::read(uint64_t offset, size_t count, void* out) const {
  if (count == 0) {
    return;
  }
  const system::PlainDispatch plain;
  const auto size = static_cast<int64_t>(count);
  at::from_blob(out, {size}, at::kByte).copy_(bytes_.narrow(0, static_cast<int64_t>(offset), size));
}

const std::string& DeviceMemory::name() const {
  static const std::string name = "memory";
  return name;
}

}  // namespace dormant::record
