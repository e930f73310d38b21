// A lazy storage: a StorageImpl of the right size whose memory does not exist yet.
//
// Its DataPtr is null and the DataPtr's context owns the history, so the history lives and dies
// with the storage, and every tensor over it (parameters, views, detached aliases) is only
// geometry. Raw access to such a storage raises an error that says what to do; as long as nothing
// was written to it, asking the storage for a mutable pointer gives it memory instead. Giving it
// memory (`commit`) makes every one of those tensors valid at once.
#pragma once

#include <dormant/export.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <mutex>

#include "record/node.h"

namespace dormant::record {

/// What was written to one lazy storage so far.
struct History {
  BufferPtr buffer;
  NodePtr tail;  ///< the last write; null when nothing was written
};

/// The history of a lazy storage, or null where the storage has memory. The pointer lives as long
/// as the storage is lazy.
DORMANT_API History* history_of(const c10::StorageImpl* storage) noexcept;
DORMANT_API History* history_of(const at::Tensor& tensor) noexcept;

inline bool is_lazy(const at::Tensor& tensor) noexcept { return history_of(tensor) != nullptr; }

/// A new lazy storage of `nbytes` without history.
DORMANT_API c10::Storage make_lazy_storage(size_t nbytes);

/// A new tensor over `storage` (its own key set carries DeferredInit when the storage is lazy).
DORMANT_API at::Tensor make_tensor(c10::Storage storage, const Geometry& geometry);

/// A new lazy tensor with its own storage, contiguous from `sizes` or with the given strides.
DORMANT_API at::Tensor make_lazy_tensor(at::IntArrayRef sizes, at::IntArrayRef strides,
                                        c10::ScalarType dtype);

/// Records `node` as the last write to a lazy storage.
DORMANT_API void append(c10::StorageImpl* storage, NodePtr node);

/// Replaces the buffer of a lazy storage by a new one of `nbytes` without history (it grows, or is
/// written anew).
DORMANT_API void restart(c10::StorageImpl* storage, size_t nbytes);

/// Gives a lazy storage its memory; the history is released. `memory` must hold at least the
/// storage's bytes.
DORMANT_API void commit(c10::StorageImpl* storage, c10::DataPtr memory);

/// Takes the memory of a storage, if it has any, and makes it lazy with `history`. Tensors over it
/// need sync_key.
DORMANT_API c10::DataPtr suspend(c10::StorageImpl* storage, History history);

/// Memory for `nbytes` from the CPU allocator.
DORMANT_API c10::Storage allocate(size_t nbytes);

/// Makes the tensor's key set agree with its storage: DeferredInit present if and only if the
/// storage is lazy.
DORMANT_API void sync_key(const at::Tensor& tensor);

/// sync_key for a tensor and the tensor it is a view of.
DORMANT_API void settle(const at::Tensor& tensor);

/// Whether the tensor's own key set has DeferredInit.
DORMANT_API bool carries_key(const at::Tensor& tensor) noexcept;

/// Held while histories are extended or replayed and while storages get their memory, so that
/// threads may share lazy tensors. Never held while an operator runs for real. Take it without
/// Python's global lock, which replay may need.
DORMANT_API std::recursive_mutex& graph_mutex();

/// Number of lazy storages alive in this process.
DORMANT_API int64_t live_storages() noexcept;

}  // namespace dormant::record
