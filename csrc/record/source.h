// Bytes that exist elsewhere, such as the contents of a file: what a read node gives its storage.
#pragma once

#include <c10/core/Allocator.h>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "system/export.h"

namespace dormant::record {

/// What memory that shows bytes in place must be safe from: whoever changes the bytes later.
enum class Guard : uint8_t { required, if_possible };

class DORMANT_BINDINGS_API Source {
 public:
  Source() = default;
  virtual ~Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  /// Copies bytes [offset, offset + count) to `out`; any number of threads at a time. Whoever makes
  /// a read node has checked that they exist. std::system_error where the system cannot read them,
  /// c10::ValueError where they are no longer what they were.
  virtual void read(uint64_t offset, size_t count, void* out) const = 0;

  /// Bytes [offset, offset + count) as memory of its own, which shows them without a copy until it
  /// is written to, and which keeps what it needs alive. A null DataPtr where there is no such
  /// memory, or no `guard` for it.
  virtual c10::DataPtr map(uint64_t offset, size_t count, Guard guard) const {
    static_cast<void>(offset);
    static_cast<void>(count);
    static_cast<void>(guard);
    return {};
  }

  /// c10::ValueError where the bytes can no longer be trusted to be what they were when whoever
  /// made a read node looked at them. Called once before the reads or maps of one materialization:
  /// a mapping has no other chance to notice.
  virtual void check() const {}

  /// Tells that these bytes will be read soon.
  virtual void will_read(uint64_t offset, size_t count) const {
    static_cast<void>(offset);
    static_cast<void>(count);
  }

  /// How many bytes one read should ask for where every read takes its time, however few bytes it
  /// asks for, as over a network; 0 where the system reads ahead by itself. Who reads much of it
  /// keeps several reads of about that size under way (tile/read_ahead.h).
  virtual size_t preferred_read_bytes() const { return 0; }

  /// The memory of this process that the bytes are read from, if it is somebody's who may write to
  /// it; empty otherwise.
  virtual std::span<const std::byte> memory() const { return {}; }

  /// For messages and reports: the path of a file.
  virtual const std::string& name() const = 0;
};

}  // namespace dormant::record
