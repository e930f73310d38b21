// Turning a call into a node: what it reads and writes, its random position, its ambient state.
#pragma once

#include <dormant/export.h>

#include <ATen/core/Tensor.h>

#include "record/call.h"
#include "record/node.h"

namespace dormant::record {

/// Real tensors up to this many bytes are copied into the history when a node reads them: their
/// owner may change them later, also through numpy, which no version counter sees. A call that
/// reads a larger one runs at once.
inline constexpr size_t kCaptureLimit = size_t{64} * 1024;

/// aten::empty.memory_format, aten::empty_strided: pushes a lazy tensor. False where the result
/// can't be lazy.
bool record_empty(const Call& call);

/// In-place and out= operators whose written arguments are lazy. False where the call must run for
/// real; then nothing was changed, the generator included.
bool record_in_place(const Call& call);

/// Operators that return new tensors. False as above.
bool record_functional(const Call& call);

/// aten::resize_ of a lazy tensor. False where the storage would have to grow under existing
/// contents.
bool record_resize(const Call& call);

/// Counts a write as ADInplaceOrView, which is below the fallback, does in eager.
void bump_version(const at::Tensor& tensor);

/// A new lazy storage whose bytes are a copy of `source`'s: how a lazy tensor is deep-copied.
DORMANT_API c10::Storage clone_storage(const c10::Storage& source);

}  // namespace dormant::record
