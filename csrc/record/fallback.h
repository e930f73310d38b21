// The boxed fallback for DispatchKey::DeferredInit: every operator that meets a lazy tensor, or
// runs inside the context, passes here before autograd and the kernels.
#pragma once

#include <c10/core/Storage.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <string>
#include <unordered_map>

#include "system/export.h"

namespace dormant::record {

/// Whether this thread records: factories give lazy tensors.
DORMANT_BINDINGS_API bool recording() noexcept;

/// Turns recording on or off for this thread; returns what it was.
DORMANT_BINDINGS_API bool set_recording(bool on) noexcept;

/// Operators that needed values while this thread recorded -> bytes that they materialized, since
/// `reset`.
DORMANT_BINDINGS_API const std::unordered_map<std::string, uint64_t>& value_reads() noexcept;
DORMANT_BINDINGS_API void reset_value_reads();

}  // namespace dormant::record
