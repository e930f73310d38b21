#include "record/twin.h"

#include <c10/util/intrusive_ptr.h>

#include <utility>

namespace dormant::record {
namespace {

History checked_history(const c10::Storage& storage) {
  auto history = history_of(storage.unsafeGetStorageImpl());
  TORCH_CHECK_VALUE(history, "dormant: a storage that has memory has no twin");
  return *std::move(history);
}

/// The memory of a storage, which lives as long as this does.
c10::DataPtr shared_memory(c10::Storage storage) {
  auto* memory = storage.mutable_data();
  const auto device = storage.device();
  return {memory, storage.unsafeReleaseStorageImpl(),
          [](void* impl) {
            c10::intrusive_ptr<c10::StorageImpl>::reclaim(static_cast<c10::StorageImpl*>(impl));
          },
          device};
}

}  // namespace

Twin::Twin(c10::Storage storage)
    : storage_(std::move(storage)),
      history_(checked_history(storage_)),
      bytes_(make_tensor(make_twin_storage(history_), Geometry::bytes(history_.buffer->nbytes))) {}

void Twin::give() const {
  TORCH_CHECK_VALUE(!is_lazy(bytes_), "dormant: the bytes of a twin do not exist yet");
  commit(storage_.unsafeGetStorageImpl(), history_, shared_memory(bytes_.storage()));
}

}  // namespace dormant::record
