// The shape of a tensor over a storage: everything a view is, but the memory.
//
// A node of a history speaks about tensors that may be gone by the time it is replayed, so it keeps
// their geometry instead, and replay lays the same geometry over whatever memory the storage has
// got by then.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/Storage.h>
#include <c10/util/SmallVector.h>

#include <cstdint>

#include "system/export.h"

namespace dormant::record {

struct DORMANT_BINDINGS_API Geometry {
  c10::SmallVector<int64_t, 5> sizes;
  c10::SmallVector<int64_t, 5> strides;  ///< in elements
  int64_t offset = 0;                    ///< in elements
  c10::ScalarType dtype = c10::ScalarType::Float;
  bool wrapped_number = false;  ///< a Python scalar: takes part in type promotion as one
  bool conjugate = false;
  bool negative = false;

  /// The geometry of a strided tensor. Reads no memory.
  static Geometry of(const at::Tensor& tensor);

  /// All bytes of a storage of `nbytes`, as one flat uint8 tensor.
  static Geometry bytes(size_t nbytes);

  static Geometry contiguous(c10::IntArrayRef sizes, c10::ScalarType dtype);

  /// A tensor with this geometry over `storage`, without autograd history. The caller vouches that
  /// it fits.
  at::Tensor over(const c10::Storage& storage) const;

  int64_t numel() const;

  /// Bytes a storage needs for this geometry. ValueError on a negative size, stride or offset, or
  /// on overflow.
  size_t nbytes_needed() const;

  /// Whether its elements are distinct and fill one range of memory, in whatever order of
  /// dimensions.
  bool dense() const;

  /// Whether a write through this geometry replaces every byte of a storage of `nbytes`.
  bool covers(size_t nbytes) const;

  bool operator==(const Geometry& other) const = default;
};

}  // namespace dormant::record
