// Dimensions of a tensor in some order, as they lie in its storage.
#pragma once

#include <c10/util/SmallVector.h>

#include <cstddef>
#include <cstdint>

#include "record/geometry.h"

namespace dormant::tile {

/// Outermost first; dimensions that follow each other in the storage are merged. Never empty: a
/// tensor of one element has one dimension of it.
struct Layout {
  c10::SmallVector<int64_t, 5> sizes = {1};
  c10::SmallVector<int64_t, 5> strides = {1};
  int64_t offset = 0;  ///< of the first element

  /// Adds a dimension inside the others; not one of size 1.
  void append(int64_t size, int64_t stride);

  /// The element of the storage at a place, counted in the order of dimensions.
  int64_t element_at(int64_t place) const;
};

/// The dimensions of more than one element, outermost in memory first.
c10::SmallVector<size_t, 5> memory_order(const record::Geometry& geometry);

/// Whether the elements lie in logical order, without gaps.
bool is_contiguous(const record::Geometry& geometry);

}  // namespace dormant::tile
