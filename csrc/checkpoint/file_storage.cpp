#include "checkpoint/file_storage.h"

#include <c10/util/Exception.h>

#include <utility>

#include "record/geometry.h"
#include "record/lazy_storage.h"
#include "record/source_node.h"

namespace dormant::checkpoint {

FileStorage::FileStorage(std::shared_ptr<const record::Source> source, c10::ScalarType dtype,
                         uint64_t offset, uint64_t nbytes)
    : source_(std::move(source)),
      dtype_(dtype),
      offset_(offset),
      nbytes_(nbytes),
      latest_(c10::intrusive_ptr<c10::StorageImpl>()) {
  TORCH_CHECK_VALUE(nbytes_ % c10::elementSize(dtype_) == 0, "open_checkpoint: ", source_->name(),
                    ": a storage of ", nbytes_, " bytes at offset ", offset_,
                    ", expected a multiple of ", c10::elementSize(dtype_), " for ", dtype_);
}

at::Tensor FileStorage::tensor() {
  const auto count = static_cast<int64_t>(nbytes_ / c10::elementSize(dtype_));
  const auto all = record::Geometry::contiguous({count}, dtype_);
  const system::MutexLock lock(mutex_);
  if (const auto latest = latest_.lock()) {
    if (const auto history = record::history_of(latest.get()); history && history->tail == read_) {
      return record::make_tensor(c10::Storage(latest), all);
    }
  }
  const auto history =
      record::read_history(source_, offset_, record::make_buffer(nbytes_, nullptr), dtype_);
  const auto storage = record::make_first_storage(history);
  latest_ = storage.getWeakStorageImpl();
  read_ = history.tail;
  return record::make_tensor(storage, all);
}

}  // namespace dormant::checkpoint
