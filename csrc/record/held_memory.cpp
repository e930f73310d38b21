#include "record/held_memory.h"

#include <c10/util/Exception.h>

#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "system/faults.h"

namespace dormant::record {

HeldMemory::HeldMemory(const void* data, size_t nbytes, c10::Storage owner)
    : storage_(std::move(owner)), data_(static_cast<const std::byte*>(data)), nbytes_(nbytes) {}

HeldMemory::~HeldMemory() = default;

void HeldMemory::detach() {
  const std::unique_lock<std::shared_mutex> lock(mutex_);
  if (copy_.empty() && data_ != nullptr && nbytes_ > 0) {
    system::fail_if_due_to_allocate();
    copy_.assign(data_, data_ + nbytes_);
    data_ = copy_.data();
  }
}

void HeldMemory::detach_or_lose() noexcept {
  try {
    detach();
  } catch (const std::bad_alloc&) {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    data_ = nullptr;
  }
}

void HeldMemory::read(uint64_t offset, size_t count, void* out) const {
  TORCH_CHECK_VALUE(offset <= nbytes_ && count <= nbytes_ - offset,
                    "dormant: reading memory: ", count, " bytes at offset ", offset, " of ",
                    nbytes_);
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  TORCH_CHECK(
      data_ != nullptr || nbytes_ == 0, "dormant: reading memory: ", nbytes_,
      " bytes that a tensor was copied from no longer exist. Cause: loading returned them to "
      "their owner, and there was no memory for a copy. Next: build the copy again.");
  if (count > 0) {
    std::memcpy(out, data_ + offset, count);
  }
}

std::span<const std::byte> HeldMemory::memory() const {
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  return data_ == nullptr || data_ == copy_.data() ? std::span<const std::byte>()
                                                   : std::span(data_, nbytes_);
}

const std::string& HeldMemory::name() const {
  static const std::string name = "memory";
  return name;
}

}  // namespace dormant::record
