// The releases of torch differ, for dormant, in how a storage answers who asks for its pointer. All
// of that is here. What differs in values is nowhere: an exact kernel is tried against the running
// PyTorch before it is believed.
//
// Since 2.13 a storage takes a function that is called when it is first written to, which is also
// how copy-on-write works (c10/core/StorageMaterializer.h). Before, copy-on-write was known by the
// deleter of the DataPtr, and a storage without memory can only refuse. 2.11 has no way back from
// that, so the storage's private members are used for both of the older releases.
//
// Who calls these functions alone knows the storage, or holds the lock that guards its change.
#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/core/impl/COW.h>
#include <torch/headeronly/version.h>

#include <new>

#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR < 11
#error "dormant needs torch 2.11 or later"
#endif
#define DORMANT_TORCH_HAS_MATERIALIZERS (TORCH_VERSION_MINOR >= 13)

namespace dormant::record {

#if !DORMANT_TORCH_HAS_MATERIALIZERS
// An explicit instantiation may name private members, and hand them out through friends.
bool& raises_on_access(c10::StorageImpl& storage);
void refresh_checks(c10::StorageImpl& storage);

template <bool c10::StorageImpl::* Raises, void (c10::StorageImpl::*Refresh)()>
struct StorageMembers {
  friend bool& raises_on_access(c10::StorageImpl& storage) { return storage.*Raises; }
  friend void refresh_checks(c10::StorageImpl& storage) { (storage.*Refresh)(); }
};

template struct StorageMembers<&c10::StorageImpl::throw_on_immutable_data_ptr_,
                               &c10::StorageImpl::refresh_has_data_ptr_check>;
#endif

/// From now on the storage hands out its pointer, and nothing is called or copied first.
inline void allow_pointer(c10::StorageImpl* storage) noexcept {
#if DORMANT_TORCH_HAS_MATERIALIZERS
  storage->clear_materializer();
  storage->clear_data_ptr_access_error_msg_();
#else
  if (raises_on_access(*storage)) {
    raises_on_access(*storage) = false;
    storage->get_extra_meta().custom_data_ptr_error_msg_.reset();
  }
  refresh_checks(*storage);
#endif
}

/// From now on the storage raises `error` when somebody asks for its pointer.
inline void refuse_pointer(c10::StorageImpl* storage, const char* error) noexcept {
#if DORMANT_TORCH_HAS_MATERIALIZERS
  storage->clear_materializer();
#endif
  try {
    storage->release_data_and_set_meta_custom_data_ptr_error_msg_(error);
  } catch (const std::bad_alloc&) {
    // No memory for our text: it refuses already, in PyTorch's words, once it looks.
#if DORMANT_TORCH_HAS_MATERIALIZERS
    storage->clear_materializer();
#else
    refresh_checks(*storage);
#endif
  }
}

/// From now on `give_memory` is called when somebody asks for a pointer to write to; before 2.13
/// that raises `error`, as reading does.
inline void give_pointer(c10::StorageImpl* storage,
                         [[maybe_unused]] void (*give_memory)(c10::StorageImpl*),
                         [[maybe_unused]] const char* error) noexcept {
#if DORMANT_TORCH_HAS_MATERIALIZERS
  allow_pointer(storage);
  storage->set_materializer(give_memory);
#else
  refuse_pointer(storage, error);
#endif
}

/// Whether the storage's memory is copied when it is first written to.
inline bool copies_on_write(c10::StorageImpl* storage) noexcept {
#if DORMANT_TORCH_HAS_MATERIALIZERS
  if (!storage->has_materializer()) {
    return false;
  }
#endif
  return c10::impl::cow::is_cow_data_ptr(storage->_mutable_data_ptr_no_checks());
}

/// After allow_pointer: the memory that it has, of which copies_on_write was true, is copied when
/// it is first written to. Before 2.13 the memory itself says so.
inline void copy_on_write([[maybe_unused]] c10::StorageImpl* storage) noexcept {
#if DORMANT_TORCH_HAS_MATERIALIZERS
  storage->set_materializer(&c10::impl::cow::materialize_cow);
#endif
}

}  // namespace dormant::record
