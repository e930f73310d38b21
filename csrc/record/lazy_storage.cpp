#include "record/lazy_storage.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/TensorImpl.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "record/torch_version.h"
#include "system/mutex.h"

namespace dormant::record {
namespace {

/// Guards what every History of a storage says, and the storages' change between lazy and real.
system::Mutex& mutex() {
  static system::Mutex mutex;
  return mutex;
}

/// What a thread that is gone held this for was a few instructions: the lock can be made anew.
void in_child() { std::construct_at(&mutex()); }

[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, in_child);

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

/// The history in the storage itself; null where it has memory.
History* find_history(const c10::StorageImpl* storage) noexcept DORMANT_REQUIRES(mutex()) {
  if (storage == nullptr) {
    return nullptr;
  }
  // The checked accessors raise on a lazy storage: this is the one place that may look.
  const auto& data_ptr = const_cast<c10::StorageImpl*>(storage)->_mutable_data_ptr_no_checks();
  return data_ptr.get_deleter() == &delete_history ? static_cast<History*>(data_ptr.get_context())
                                                   : nullptr;
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) noexcept {
  const auto* impl = tensor.unsafeGetTensorImpl();
  return tensor.defined() && impl->has_storage() ? impl->unsafe_storage().unsafeGetStorageImpl()
                                                 : nullptr;
}

/// `memory`, which nobody is to see who asks now, is there for who has asked before.
c10::DataPtr lazy_data_ptr(const History& history, const void* memory) {
  auto context = std::make_unique<History>(history);
  live_count.fetch_add(1, std::memory_order_relaxed);
  return {const_cast<void*>(memory), context.release(), &delete_history,
          c10::Device(c10::DeviceType::CPU)};
}

/// PyTorch calls it when somebody asks for a mutable pointer to a storage that nothing was written
/// to.
void give_memory(c10::StorageImpl* storage) {
  auto memory = c10::GetCPUAllocator()->allocate(storage->nbytes());
  const system::MutexLock lock(mutex());
  if (find_history(storage) != nullptr) {
    std::swap(storage->_mutable_data_ptr_no_checks(), memory);
  }
}

/// How a storage answers who asks for its pointer: with memory of its own where nothing was
/// written to it (and PyTorch lets it), else with an error. The caller holds the mutex, or alone
/// knows the storage.
void guard_pointer(c10::StorageImpl* storage, const History& history) noexcept {
  if (history.tail) {
    refuse_pointer(storage, kRawAccess);
  } else {
    give_pointer(storage, &give_memory, kRawAccess);
  }
}

// TensorImpl keeps its key set protected and offers no way to remove DeferredInit; a pointer to the
// member, formed in a derived class, is the sanctioned way to reach it. Threads that share a tensor
// may meet here, so it is read and written in one piece.
struct KeySet : c10::TensorImpl {
  static c10::DispatchKeySet load(c10::TensorImpl& impl) noexcept {
    c10::DispatchKeySet keys;
    __atomic_load(&(impl.*(&KeySet::key_set_)), &keys, __ATOMIC_RELAXED);
    return keys;
  }
  static void store(c10::TensorImpl& impl, c10::DispatchKeySet keys) noexcept {
    __atomic_store(&(impl.*(&KeySet::key_set_)), &keys, __ATOMIC_RELAXED);
  }
};

/// PyTorch reads the number at any time, without a lock: it is not written where nothing changes.
void set_nbytes(c10::StorageImpl* storage, size_t nbytes) {
  if (storage->nbytes() != nbytes) {
    storage->set_nbytes(nbytes);
  }
}

}  // namespace

std::optional<History> history_of(const c10::StorageImpl* storage) {
  const system::MutexLock lock(mutex());
  const auto* history = find_history(storage);
  return history == nullptr ? std::nullopt : std::make_optional(*history);
}

std::optional<History> history_of(const at::Tensor& tensor) {
  return history_of(storage_of(tensor));
}

std::variant<History, Memory> history_or_memory_of(const c10::StorageImpl* storage) {
  const system::MutexLock lock(mutex());
  if (const auto* history = find_history(storage)) {
    return *history;
  }
  return Memory{storage->data(), storage->nbytes()};
}

std::variant<History, at::Tensor> history_or_values_of(const at::Tensor& tensor) {
  if (!tensor.has_storage() || !tensor.is_cpu() || tensor.is_quantized() ||
      tensor.layout() != c10::kStrided) {
    return tensor;
  }
  auto found = history_or_memory_of(storage_of(tensor));
  if (auto* history = std::get_if<History>(&found)) {
    return std::move(*history);
  }
  auto owner = std::make_unique<c10::Storage>(tensor.storage());
  const auto memory = std::get<Memory>(found);
  const auto nbytes = static_cast<int64_t>(memory.nbytes);
  c10::DataPtr pointer(
      const_cast<void*>(memory.data), owner.release(),
      [](void* context) { delete static_cast<c10::Storage*>(context); }, tensor.device());
  return Geometry::of(tensor).over(
      c10::Storage(c10::Storage::use_byte_size_t(), nbytes, std::move(pointer)));
}

bool is_lazy(const c10::StorageImpl* storage) noexcept {
  const system::MutexLock lock(mutex());
  return find_history(storage) != nullptr;
}

bool is_lazy(const at::Tensor& tensor) noexcept { return is_lazy(storage_of(tensor)); }

BufferPtr make_buffer(size_t nbytes, c10::StorageImpl* storage) {
  auto buffer = c10::make_intrusive<Buffer>(nbytes);
  if (storage != nullptr) {
    buffer->owner = c10::weak_intrusive_ptr<c10::StorageImpl>(
        c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage));
  }
  return buffer;
}

c10::Storage make_lazy_storage(size_t nbytes) {
  return make_first_storage({make_buffer(nbytes, nullptr), nullptr});
}

c10::Storage make_first_storage(const History& history) {
  auto storage = make_twin_storage(history);
  history.buffer->owner = storage.getWeakStorageImpl();  // before anybody else can see it
  return storage;
}

c10::Storage make_twin_storage(const History& history) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<int64_t>(history.buffer->nbytes),
      lazy_data_ptr(history), c10::GetCPUAllocator(), /*resizable=*/true);
  guard_pointer(storage.get(), history);
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
  return make_lazy_tensor({make_buffer(geometry.nbytes_needed(), nullptr), nullptr}, geometry);
}

at::Tensor make_lazy_tensor(const History& history, const Geometry& geometry) {
  auto tensor = geometry.over(make_first_storage(history));
  auto& impl = *tensor.unsafeGetTensorImpl();
  KeySet::store(impl, KeySet::load(impl).add(c10::DispatchKey::DeferredInit));
  return tensor;
}

bool exchange(c10::ArrayRef<Exchange> exchanges) {
  // What the storages had is released when the lock is: that may run destructors of any kind.
  c10::SmallVector<History, 2> released;
  released.reserve(exchanges.size());
  const system::MutexLock lock(mutex());
  for (const auto& each : exchanges) {
    const auto* history = find_history(each.storage);
    if (history == nullptr || *history != each.before) {
      return false;
    }
  }
  for (const auto& each : exchanges) {
    auto& history = *find_history(each.storage);
    released.push_back(std::exchange(history, each.after));
    if (each.before.buffer != each.after.buffer) {
      set_nbytes(each.storage, each.after.buffer->nbytes);
    }
    if ((each.before.tail == nullptr) != (each.after.tail == nullptr)) {
      guard_pointer(each.storage, each.after);
    }
  }
  return true;
}

bool commit(c10::StorageImpl* storage, const History& before, c10::DataPtr memory,
            std::optional<size_t> nbytes) {
  // Leaves the lock with what the storage had.
  c10::DataPtr released = std::move(memory);
  const system::MutexLock lock(mutex());
  const auto* history = find_history(storage);
  if (history == nullptr || *history != before) {
    return false;
  }
  std::swap(storage->_mutable_data_ptr_no_checks(), released);
  allow_pointer(storage);
  if (nbytes) {
    set_nbytes(storage, *nbytes);
  }
  return true;
}

c10::DataPtr lazy_data_ptr(const History& history) { return lazy_data_ptr(history, nullptr); }

c10::DataPtr swap_memory(c10::StorageImpl* storage, c10::DataPtr memory, size_t nbytes,
                         bool& copies_on_write) noexcept {
  c10::DataPtr released = std::move(memory);
  const system::MutexLock lock(mutex());
  const bool was = record::copies_on_write(storage);
  std::swap(storage->_mutable_data_ptr_no_checks(), released);
  set_nbytes(storage, nbytes);
  if (const auto* history = find_history(storage)) {
    guard_pointer(storage, *history);
  } else {
    allow_pointer(storage);
    if (copies_on_write) {
      copy_on_write(storage);
    }
  }
  copies_on_write = was;
  return released;
}

std::optional<c10::DataPtr> take_memory(c10::StorageImpl* storage, const void* memory,
                                        const History& history, bool& copies_on_write) {
  // Who has asked the storage whether it may be read, and reads its pointer next, finds the memory.
  auto exchanged = lazy_data_ptr(history, memory);
  const system::MutexLock lock(mutex());
  auto& pointer = storage->_mutable_data_ptr_no_checks();
  if (find_history(storage) != nullptr || pointer.get() != memory) {
    return std::nullopt;
  }
  copies_on_write = record::copies_on_write(storage);
  std::swap(pointer, exchanged);
  guard_pointer(storage, history);
  return exchanged;
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
  const auto* storage = storage_of(tensor);
  // Looked at and written in one step: another thread may change what the storage is, and
  // synchronize, at any moment.
  const system::MutexLock lock(mutex());
  const bool lazy = find_history(storage) != nullptr;
  if (carries_key(tensor) != lazy) {
    const auto keys = KeySet::load(impl);
    KeySet::store(impl, lazy ? keys.add(c10::DispatchKey::DeferredInit)
                             : keys.remove(c10::DispatchKey::DeferredInit));
  }
}

void settle(const at::Tensor& tensor) {
  sync_key(tensor);
  if (tensor.defined() && tensor.is_view()) {
    sync_key(at::Tensor(tensor._base()));
  }
}

bool carries_key(const at::Tensor& tensor) noexcept {
  return tensor.defined() &&
         KeySet::load(*tensor.unsafeGetTensorImpl()).has(c10::DispatchKey::DeferredInit);
}

int64_t live_storages() noexcept { return live_count.load(std::memory_order_relaxed); }

StorageToCome::StorageToCome() noexcept { live_count.fetch_add(1, std::memory_order_relaxed); }

StorageToCome::~StorageToCome() { live_count.fetch_sub(1, std::memory_order_relaxed); }

}  // namespace dormant::record
