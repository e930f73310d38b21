// The bytes of a lazy storage, made or received beside it: the storage gets them when they are all
// there, and is lazy until then.
//
// Who sends or receives them in the background holds the memory as well (as a tensor over the
// twin), so it stays where it is even where the storage is made lazy again meanwhile.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include "record/lazy_storage.h"
#include "system/export.h"

namespace dormant::record {

/// Belongs to one thread at a time, with or without Python's lock.
class DORMANT_BINDINGS_API Twin {
 public:
  /// ValueError where `storage` is not lazy.
  explicit Twin(c10::Storage storage);

  /// All bytes, uint8: lazy, with the history of the storage, until somebody materializes them.
  const at::Tensor& bytes() const noexcept { return bytes_; }

  /// Lets the storage have the memory of `bytes`, which both then show. Nothing where the storage
  /// is no longer what it was when this was made. ValueError where the bytes are still lazy.
  void give() const;

 private:
  c10::Storage storage_;
  History history_;
  at::Tensor bytes_;
};

}  // namespace dormant::record
