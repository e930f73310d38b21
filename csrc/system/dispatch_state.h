// The dispatch state that work runs in: neither recording nor any mode of the caller's may change
// what a recorded operator computes, and callbacks must not notice.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstddef>
#include <functional>
#include <utility>

namespace dormant::system {

/// While it lives, operators that this thread calls go straight to their kernels: no recording,
/// autocast, __torch_dispatch__, functorch or autograd.
class PlainDispatch {
 public:
  PlainDispatch() : no_modes_(modes()) {}
  PlainDispatch(const PlainDispatch&) = delete;
  PlainDispatch& operator=(const PlainDispatch&) = delete;

 private:
  static c10::DispatchKeySet modes() {
    return c10::DispatchKeySet({c10::DispatchKey::DeferredInit, c10::DispatchKey::Python,
                                c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::PreDispatch,
                                c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                c10::DispatchKey::FuncTorchDynamicLayerBackMode}) |
           c10::autocast_dispatch_keyset;
  }

  const c10::impl::ExcludeDispatchKeyGuard no_modes_;
  const at::AutoDispatchBelowADInplaceOrView below_autograd_;
};

using OnStep = std::function<void(size_t done, size_t total)>;

/// `on_step` as if it were called from here. To be called on this thread only.
inline OnStep in_this_state(OnStep on_step) {
  if (!on_step) {
    return on_step;
  }
  return [state = c10::impl::tls_local_dispatch_key_set(), on_step = std::move(on_step)](
             size_t done, size_t total) {
    const c10::impl::ForceDispatchKeyGuard as_called(state);
    on_step(done, total);
  };
}

}  // namespace dormant::system
