// A lazy storage: a StorageImpl of the right size whose memory does not exist yet.
//
// Its DataPtr is null and the DataPtr's context owns the history, so the history lives and dies
// with the storage, and every tensor over it (parameters, views, detached aliases) is only
// geometry. Raw access to such a storage raises an error that says what to do; as long as nothing
// was written to it, asking the storage for a mutable pointer gives it memory instead. Giving it
// memory (`commit`) makes every one of those tensors valid at once.
//
// Threads: any thread may call anything here, with or without Python's lock. One mutex, private to
// lazy_storage.cpp, is held for the few instructions that read or exchange a history, never while
// an operator, a callback, a destructor of somebody else's or Python runs. So histories are read as
// counted values (nodes are immutable), worked on without any lock, and put back by `exchange` and
// `commit`, which change nothing where another thread was faster.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <optional>
#include <variant>

#include "record/node.h"
#include "system/export.h"

namespace dormant::record {

/// What was written to one lazy storage so far.
struct History {
  BufferPtr buffer;
  NodePtr tail;  ///< the last write; null when nothing was written

  bool operator==(const History& other) const = default;
};

/// The history of a lazy storage as it is now; empty where the storage has memory.
DORMANT_BINDINGS_API std::optional<History> history_of(const c10::StorageImpl* storage);
DORMANT_BINDINGS_API std::optional<History> history_of(const at::Tensor& tensor);

/// Where the bytes of a real storage are.
struct Memory {
  const void* data;
  size_t nbytes;
};

/// What a storage is, told in one step, as another thread may make a real one lazy or a lazy one
/// real meanwhile: its history, or its memory, which stays where it is as long as nobody frees it.
/// c10::Error where PyTorch hands out no pointer.
std::variant<History, Memory> history_or_memory_of(const c10::StorageImpl* storage);

/// The same of a tensor: its history, or its values, which are a real tensor over the memory that
/// it has now, whatever another thread makes of the storage. What is not plain (quantized, sparse,
/// not on the CPU) is returned as it is.
std::variant<History, at::Tensor> history_or_values_of(const at::Tensor& tensor);

DORMANT_BINDINGS_API bool is_lazy(const c10::StorageImpl* storage) noexcept;
DORMANT_BINDINGS_API bool is_lazy(const at::Tensor& tensor) noexcept;

/// A new lazy storage of `nbytes` without history.
c10::Storage make_lazy_storage(size_t nbytes);

/// A new lazy storage with a history whose buffer was made for it, and has no owner yet.
c10::Storage make_first_storage(const History& history);

/// A new lazy storage with a history that another one has or had: made separately, it gets the same
/// bytes.
c10::Storage make_twin_storage(const History& history);

/// A new tensor over `storage` (its own key set carries DeferredInit when the storage is lazy).
DORMANT_BINDINGS_API at::Tensor make_tensor(c10::Storage storage, const Geometry& geometry);

/// A new lazy tensor with its own storage, contiguous from `sizes` or with the given strides.
at::Tensor make_lazy_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype);

/// A new lazy tensor over a storage of its own, as make_first_storage gives it.
at::Tensor make_lazy_tensor(const History& history, const Geometry& geometry);

/// A buffer for another history of a lazy storage: `storage` may be null.
BufferPtr make_buffer(size_t nbytes, c10::StorageImpl* storage);

/// What one storage is to have in place of what it had.
struct Exchange {
  c10::StorageImpl* storage;
  History before;
  History after;
};

/// Gives each storage, which is the size of its new buffer from then on, its new history. False,
/// and nothing is changed, where one of them no longer has the history that it had before.
bool exchange(c10::ArrayRef<Exchange> exchanges);

/// Gives a lazy storage its memory; the history is released. `memory` must hold at least the
/// storage's bytes, or `nbytes`, which then is its size. False, and nothing is changed, where its
/// history is no longer `before`.
bool commit(c10::StorageImpl* storage, const History& before, c10::DataPtr memory,
            std::optional<size_t> nbytes = {});

/// A DataPtr that makes a storage lazy, for `swap_memory`.
c10::DataPtr lazy_data_ptr(const History& history);

/// Gives a storage other memory, or other laziness, of `nbytes`, whatever it has; returns what it
/// had. Tensors over it need sync_key. `copies_on_write` says of each whether it is to be, or was,
/// memory that PyTorch copies when it is first written to.
c10::DataPtr swap_memory(c10::StorageImpl* storage, c10::DataPtr memory, size_t nbytes,
                         bool& copies_on_write) noexcept;

/// Makes a storage lazy that has `memory`, and returns what it had: nothing, and it is as it was,
/// where another thread has given it something else meanwhile. Otherwise as `swap_memory`. The
/// memory has to stay where it is: an operator that another thread is just running on it goes on.
std::optional<c10::DataPtr> take_memory(c10::StorageImpl* storage, const void* memory,
                                        const History& history, bool& copies_on_write);

/// Memory for `nbytes` from the CPU allocator.
c10::Storage allocate(size_t nbytes);

/// Makes the tensor's key set agree with its storage: DeferredInit present if and only if the
/// storage is lazy.
void sync_key(const at::Tensor& tensor);

/// sync_key for a tensor and the tensor it is a view of.
DORMANT_BINDINGS_API void settle(const at::Tensor& tensor);

/// Whether the tensor's own key set has DeferredInit.
DORMANT_BINDINGS_API bool carries_key(const at::Tensor& tensor) noexcept;

/// Number of lazy storages alive in this process, and of those to come.
DORMANT_BINDINGS_API int64_t live_storages() noexcept;

/// Counts as a lazy storage while it lives. Who reads histories to make a lazy storage of them
/// holds one from before the first read: so whoever looks in between, when another thread has given
/// the last lazy storage its memory, does not take the process for one without lazy storages.
class StorageToCome {
 public:
  StorageToCome() noexcept;
  ~StorageToCome();
  StorageToCome(const StorageToCome&) = delete;
  StorageToCome& operator=(const StorageToCome&) = delete;
};

}  // namespace dormant::record
