// Turning a call into a node: what it reads and writes, its random position, its ambient state.
#pragma once

#include <ATen/core/Tensor.h>

#include "record/call.h"
#include "record/node.h"
#include "system/export.h"

namespace dormant::record {

/// Real tensors up to this many bytes are copied into the history when a node reads them: their
/// owner may change them later, also through numpy, which no version counter sees. A call that
/// reads a larger one runs at once.
inline constexpr size_t kCaptureLimit = size_t{64} * 1024;

/// True if the call became part of histories, or created an empty one, and its results are on the
/// stack. False where it must run for real; then nothing was changed, the generator included. No
/// lock is held meanwhile: Meta kernels may be written in Python.
bool record(const Call& call);

/// Whether eager refuses any write to the tensor: one of inference mode, outside it.
bool refuses_writes(const at::Tensor& tensor);

/// Counts a write as ADInplaceOrView, which is below the fallback, does in eager.
void bump_version(const at::Tensor& tensor);

/// A new storage whose bytes are a copy of `source`'s, lazy where that is: how a lazy tensor is
/// deep-copied, also while another thread materializes it.
DORMANT_BINDINGS_API c10::Storage clone_storage(const c10::Storage& source);

}  // namespace dormant::record
