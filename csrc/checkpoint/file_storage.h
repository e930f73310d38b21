// A range of a file as a lazy storage that all who ask for it share: ties within a checkpoint stay
// ties.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <cstdint>
#include <memory>

#include "record/node.h"
#include "record/source.h"
#include "system/export.h"
#include "system/mutex.h"

namespace dormant::checkpoint {

class DORMANT_BINDINGS_API FileStorage {
 public:
  /// Bytes [offset, offset + nbytes) of `source`, of which most tensors see elements of `dtype`.
  /// c10::ValueError where they are no whole number of elements. The caller has checked that the
  /// bytes exist.
  FileStorage(std::shared_ptr<const record::Source> source, c10::ScalarType dtype, uint64_t offset,
              uint64_t nbytes);

  /// A flat lazy tensor over all of it. As long as somebody holds the storage of an earlier one,
  /// and it is still lazy and nothing was written to it since, the storage is that one; else a new
  /// one, with the bytes of the file.
  at::Tensor tensor();

  /// As that of the source: what reading it would find first.
  void check() const { source_->check(); }

 private:
  const std::shared_ptr<const record::Source> source_;
  const c10::ScalarType dtype_;
  const uint64_t offset_;
  const uint64_t nbytes_;
  system::Mutex mutex_;
  c10::weak_intrusive_ptr<c10::StorageImpl> latest_ DORMANT_GUARDED_BY(mutex_);
  /// What the latest storage holds while nobody wrote to it.
  record::NodePtr read_ DORMANT_GUARDED_BY(mutex_);
};

}  // namespace dormant::checkpoint
