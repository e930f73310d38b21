// Tensors that are held while work is recorded over them, and then materialized in place.
#pragma once

#include <ATen/core/Tensor.h>
#include <vector>

#include "record/snapshot.h"
#include "system/export.h"
#include "tile/engine.h"

namespace dormant::tile {

/// A snapshot of the storages of tensors (record/snapshot.h), which its end, unless `keep` was
/// called, puts back. Belongs to one thread at a time, with or without Python's lock.
class DORMANT_BINDINGS_API HeldTensors {
 public:
  /// Each has a storage. Those that had memory are lazy from now on.
  explicit HeldTensors(std::vector<at::Tensor> tensors);
  ~HeldTensors();
  HeldTensors(const HeldTensors&) = delete;
  HeldTensors& operator=(const HeldTensors&) = delete;

  /// Materializes the lazy ones among `tensors`, and every held storage that had memory and has
  /// been written to since. The bytes of the latter go straight to the memory that they had, unless
  /// something still reads what it holds. Where it throws, to restore or to keep is the caller's.
  std::vector<Materialized> materialize(c10::ArrayRef<at::Tensor> tensors, Options options);

  /// The storages whose memory was written, wholly or in part.
  const std::vector<const c10::StorageImpl*>& begun() const noexcept { return begun_; }

  /// As Snapshot's.
  std::vector<const c10::StorageImpl*> touched() const;
  void restore();
  void keep();

  /// Takes the memory that `keep` needs, which then can't fail. Where std::bad_alloc is thrown,
  /// everything is still held.
  void prepare_to_keep();

 private:
  void settle() const;

  record::Snapshot snapshot_;
  std::vector<at::Tensor> tensors_;
  std::vector<const c10::StorageImpl*> begun_;
};

}  // namespace dormant::tile
