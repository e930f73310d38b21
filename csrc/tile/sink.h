// Writes tensors to a file without making lazy ones real: their tiles go from cache to the file.
#pragma once

#include <ATen/core/Tensor.h>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "system/export.h"

namespace dormant::tile {

/// A tensor, lazy or real, and the place in the file of its first element.
struct Output {
  at::Tensor tensor;
  int64_t offset;
};

/// An open file that can be written at any position. It stays the caller's.
struct Sink {
  int descriptor;
  std::string path;  ///< for messages
};

/// Called on the calling thread with (done, total) bytes, many times a second; may throw to stop.
using OnBytes = std::function<void(size_t, size_t)>;

struct WriteOptions {
  /// Most bytes that writing may take besides tensors that are real.
  std::optional<size_t> memory_budget;
  OnBytes on_bytes;
};

/// Writes the elements of each tensor in logical order, in its dtype, as if it were contiguous.
/// Lazy tensors stay lazy, and of one whose history is a program only a tile for each thread exists
/// at a time (of a transposed one a rectangle of 8 MiB, up to 64 MiB where it is tall). So it is
/// with the packed elements of a quantized one; its statistics, and what has no program, are made
/// whole, in memory of their own, for as long as they are written. Elements that nobody initialized
/// are zero, or whatever memory held where there is no program. std::system_error with the system's
/// number where the file cannot be written; ValueError, before anything is, where `memory_budget`
/// is too small to work in.
DORMANT_BINDINGS_API void write(c10::ArrayRef<Output> outputs, const Sink& sink,
                                const WriteOptions& options = {});

/// The same ValueError, for who writes several files and wants to know before the first.
DORMANT_BINDINGS_API void check_write_budget(c10::ArrayRef<Output> outputs, size_t memory_budget);

}  // namespace dormant::tile
