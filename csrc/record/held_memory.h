// Memory that a tensor has or had, as a source that histories read.
#pragma once

#include <c10/core/Storage.h>
#include <cstddef>
#include <shared_mutex>
#include <vector>

#include "record/source.h"

namespace dormant::record {

/// Shared by the histories that read it and by whoever may write to the memory, who calls `detach`
/// first. Any thread; its mutex is held while bytes are copied and for nothing else.
class HeldMemory final : public Source {
 public:
  /// `nbytes` at `data`, which stay there until this is detached or destroyed, or as long as
  /// `owner` exists, which is kept alive.
  HeldMemory(const void* data, size_t nbytes, c10::Storage owner = {});
  ~HeldMemory() override;

  /// From now on the bytes are those of a copy: the memory may be written to, or freed. Where
  /// std::bad_alloc is thrown, nothing has changed.
  void detach();

  /// The same where the memory changes hands whatever happens: without memory for a copy, reading
  /// fails from now on.
  void detach_or_lose() noexcept;

  /// ValueError where the range is not within the memory, RuntimeError where it is lost.
  void read(uint64_t offset, size_t count, void* out) const override;
  /// Empty once it is detached.
  std::span<const std::byte> memory() const override;
  const std::string& name() const override;

 private:
  mutable std::shared_mutex mutex_;
  c10::Storage storage_;
  const std::byte* data_;  ///< null where it is lost
  const size_t nbytes_;
  std::vector<std::byte> copy_;
};

}  // namespace dormant::record
