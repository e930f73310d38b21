// Writes tensors elsewhere without making lazy ones real: their tiles go from cache to a file, or
// to the memory of another device (device_sink.h).
#pragma once

#include <ATen/core/Tensor.h>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "system/export.h"

namespace dormant::tile {

/// A tensor, lazy or real, and the place in the sink of its first element.
struct Output {
  at::Tensor tensor;
  int64_t offset;
};

/// Where bytes go.
class DORMANT_BINDINGS_API Sink {
 public:
  Sink() = default;
  virtual ~Sink() = default;
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;

  /// Takes all of `nbytes` bytes, whole elements of one tensor, at `offset`. Any number of threads,
  /// each at a place of its own.
  virtual void write(const void* data, size_t nbytes, int64_t offset) const = 0;
};

/// An open file that can be written at any position. It stays the caller's.
class DORMANT_BINDINGS_API FileSink final : public Sink {
 public:
  /// `path` is for messages.
  FileSink(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  /// std::system_error with the system's number where the file cannot be written.
  void write(const void* data, size_t nbytes, int64_t offset) const override;

 private:
  const int descriptor_;
  const std::string path_;
};

/// Called on the calling thread with (done, total) bytes, many times a second; may throw to stop.
using OnBytes = std::function<void(size_t, size_t)>;

struct WriteOptions {
  /// Most bytes that writing may take besides tensors that are real.
  std::optional<size_t> memory_budget = {};
  OnBytes on_bytes = {};
  const char* operation = "save";  ///< for messages
  size_t sink_bytes = 0;           ///< those of `memory_budget` that the sink takes
};

/// Writes the elements of each tensor in logical order, in its dtype, as if it were contiguous.
/// Lazy tensors stay lazy, and of one whose history is a program only a tile for each thread exists
/// at a time (of a transposed one a rectangle of 8 MiB, up to 64 MiB where it is tall). So it is
/// with the packed elements of a quantized one; its statistics, and what has no program, are made
/// whole, in memory of their own, for as long as they are written. Elements that nobody initialized
/// are zero, or whatever memory held where there is no program. Throws what the sink throws;
/// ValueError, before anything is written, where `memory_budget` is too small to work in.
DORMANT_BINDINGS_API void write(c10::ArrayRef<Output> outputs, const Sink& sink,
                                const WriteOptions& options = {});

/// The same ValueError, for who writes several files and wants to know before the first.
DORMANT_BINDINGS_API void check_write_budget(c10::ArrayRef<Output> outputs, size_t memory_budget);

}  // namespace dormant::tile
