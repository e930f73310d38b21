// The second key of a lazy tensor: where values are read although DeferredInit is turned off.
#pragma once

#include <c10/core/DispatchKey.h>

namespace dormant::record {

/// Below all that callers turn off together with DeferredInit, as torch.tensor does while it goes
/// through nested sequences (internal_new_from_data, torch/csrc/utils/tensor_new.cpp). PyTorch has
/// it for extensions and no operator of its own for it. A lazy tensor carries both keys; operators
/// fall through this one to their kernels, but those that read a value (fallback.cpp).
inline constexpr auto kReadKey = c10::DispatchKey::CustomRNGKeyId;

}  // namespace dormant::record
