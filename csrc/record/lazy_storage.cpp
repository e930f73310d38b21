#include "record/lazy_storage.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/TensorImpl.h>
#include <pthread.h>

#include <atomic>
#include <memory>
#include <utility>

namespace dormant::record {
namespace {

std::atomic<int64_t> live_count{0};

constexpr const char* kRawAccess =
    "dormant: raw access to the memory of a lazy tensor, which has none yet. Cause: code below the "
    "operator level, or a tensor subclass inside its __torch_dispatch__, asked for its data "
    "pointer. Next: call dormant.materialize(tensor) (or materialize the module that owns it) "
    "first.";

// The deleter is also what identifies a lazy storage: no other DataPtr has it.
void delete_history(void* context) {
  delete static_cast<History*>(context);  // NOLINT: the DataPtr context is the one raw owner
  live_count.fetch_sub(1, std::memory_order_relaxed);
}

c10::DataPtr null_data_ptr(BufferPtr buffer) {
  auto* history = new History{std::move(buffer), nullptr};  // NOLINT: owned by the DataPtr below
  live_count.fetch_add(1, std::memory_order_relaxed);
  return {nullptr, history, &delete_history, c10::Device(c10::DeviceType::CPU)};
}

/// PyTorch calls it when somebody asks for a mutable pointer to a storage that nothing was written
/// to.
void give_memory(c10::StorageImpl* storage) {
  storage->set_data_ptr_noswap(c10::GetCPUAllocator()->allocate(storage->nbytes()));
}

// TensorImpl keeps its key set protected and offers no way to remove DeferredInit; a pointer to the
// member, formed in a derived class, is the sanctioned way to reach it.
struct KeySetAccess : c10::TensorImpl {
  static c10::DispatchKeySet& of(c10::TensorImpl& impl) { return impl.*(&KeySetAccess::key_set_); }
};

}  // namespace

History* history_of(const c10::StorageImpl* storage) noexcept {
  if (storage == nullptr) {
    return nullptr;
  }
  // The checked accessors raise on a lazy storage: this is the one place that may look.
  const auto& data_ptr = const_cast<c10::StorageImpl*>(storage)->_mutable_data_ptr_no_checks();
  return data_ptr.get_deleter() == &delete_history ? static_cast<History*>(data_ptr.get_context())
                                                   : nullptr;
}

History* history_of(const at::Tensor& tensor) noexcept {
  const auto* impl = tensor.unsafeGetTensorImpl();
  if (!tensor.defined() || !impl->has_storage()) {
    return nullptr;
  }
  return history_of(impl->unsafe_storage().unsafeGetStorageImpl());
}

c10::Storage make_lazy_storage(size_t nbytes) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<int64_t>(nbytes),
      null_data_ptr(c10::make_intrusive<Buffer>(nbytes)), c10::GetCPUAllocator(),
      /*resizable=*/true);
  storage->set_materializer(&give_memory);
  history_of(storage.get())->buffer->owner = c10::weak_intrusive_ptr<c10::StorageImpl>(storage);
  return c10::Storage(std::move(storage));
}

at::Tensor make_tensor(c10::Storage storage, const Geometry& geometry) {
  auto tensor = geometry.over(storage);
  sync_key(tensor);
  return tensor;
}

at::Tensor make_lazy_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype) {
  Geometry geometry;
  geometry.sizes.assign(sizes.begin(), sizes.end());
  geometry.strides.assign(strides.begin(), strides.end());
  geometry.dtype = dtype;
  return make_tensor(make_lazy_storage(geometry.nbytes_needed()), geometry);
}

void restart(c10::StorageImpl* storage, size_t nbytes) {
  auto* history = history_of(storage);
  TORCH_INTERNAL_ASSERT(history != nullptr);
  auto owner = history->buffer->owner;
  history->buffer = c10::make_intrusive<Buffer>(nbytes);
  history->buffer->owner = std::move(owner);
  history->tail.reset();
  storage->set_nbytes(nbytes);
  storage->clear_data_ptr_access_error_msg_();
  storage->clear_materializer();
  storage->set_materializer(&give_memory);
}

void append(c10::StorageImpl* storage, NodePtr node) {
  auto* history = history_of(storage);
  TORCH_INTERNAL_ASSERT(history != nullptr);
  if (!history->tail) {
    storage->clear_materializer();
    storage->release_data_and_set_meta_custom_data_ptr_error_msg_(kRawAccess);
  }
  history->tail = std::move(node);
}

void commit(c10::StorageImpl* storage, c10::DataPtr memory) {
  storage->clear_materializer();
  storage->set_data_ptr_noswap(std::move(memory));
  storage->clear_data_ptr_access_error_msg_();
}

c10::DataPtr suspend(c10::StorageImpl* storage, History history) {
  storage->clear_materializer();
  storage->clear_data_ptr_access_error_msg_();
  const bool written = history.tail != nullptr;
  auto lazy = null_data_ptr(history.buffer);
  storage->set_nbytes(history.buffer->nbytes);
  auto memory = storage->set_data_ptr(std::move(lazy));
  *history_of(storage) = std::move(history);
  if (written) {
    storage->release_data_and_set_meta_custom_data_ptr_error_msg_(kRawAccess);
  } else {
    storage->set_materializer(&give_memory);
  }
  return memory;
}

c10::Storage allocate(size_t nbytes) {
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<int64_t>(nbytes),
      c10::GetCPUAllocator()->allocate(nbytes), c10::GetCPUAllocator(), /*resizable=*/true));
}

void sync_key(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    return;
  }
  auto& impl = *tensor.unsafeGetTensorImpl();
  auto& keys = KeySetAccess::of(impl);
  keys = is_lazy(tensor) ? keys.add(c10::DispatchKey::DeferredInit)
                         : keys.remove(c10::DispatchKey::DeferredInit);
}

void settle(const at::Tensor& tensor) {
  sync_key(tensor);
  if (tensor.defined() && tensor.is_view()) {
    sync_key(at::Tensor(tensor._base()));
  }
}

bool carries_key(const at::Tensor& tensor) noexcept {
  return tensor.defined() &&
         tensor.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::DeferredInit);
}

std::recursive_mutex& graph_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

namespace {

/// Storages change in the last moments of work only, so what a thread that is gone was about to do
/// is undone by never being done: the lock it held can be made anew.
void in_child() { std::construct_at(&graph_mutex()); }

[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, in_child);

}  // namespace

int64_t live_storages() noexcept { return live_count.load(std::memory_order_relaxed); }

}  // namespace dormant::record
