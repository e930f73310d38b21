// Calling back from work that runs in a dispatch state of its own.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstddef>
#include <functional>
#include <utility>

namespace dormant::record {

using OnStep = std::function<void(size_t done, size_t total)>;

/// `on_step` as if it were called from here: work excludes recording, autograd and the caller's
/// modes, and what the callback computes must not notice. To be called on this thread only.
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

}  // namespace dormant::record
