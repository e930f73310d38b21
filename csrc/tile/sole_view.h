// Views that alone refer to their storages: only what they show has to be made.
//
// Such a storage shrinks to the bytes from the view's first element to its last, and the view's
// offset with it; sizes and strides stay. Nobody can see the rest: no other tensor is there, and
// as_strided refuses what lies outside the storage.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <cstddef>
#include <optional>
#include <unordered_map>

#include "tile/mapping.h"
#include "tile/program.h"

namespace dormant::tile {

using SoleViews = std::unordered_map<const c10::StorageImpl*, at::Tensor>;

/// Those among `tensors` whose lazy storages nothing else refers to. Ask before making a reference
/// to any of the storages.
SoleViews sole_views(c10::ArrayRef<at::Tensor> tensors);

/// What is made of a storage for a view that alone owns it.
struct Part {
  at::Tensor view;
  Run elements;   ///< of the storage, from the view's first to its last
  size_t nbytes;  ///< of these
  /// References to the storage while it is made: where there are more in the end, somebody has made
  /// another view meanwhile, and all of it has to be made after all.
  size_t uses;

  /// The view's offset in the storage that holds the part alone.
  void rebase() const;
};

/// The part of the storage that the view needs, where that saves much.
std::optional<Part> part_of(const at::Tensor& view, const Program& program, size_t uses);

/// Memory for a part of a storage of `nbytes`: also what a view of another offset could reach
/// belongs to the process, without taking memory. Null where the system has no such memory.
c10::DataPtr reserve_part(const Part& part, size_t nbytes, size_t itemsize);

/// Zeros, of which only what is written takes memory; null where the system has no such memory.
c10::DataPtr reserve(size_t nbytes);

}  // namespace dormant::tile
