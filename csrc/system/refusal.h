// Which exceptions of an operator that is only tried are about its arguments. Recording asks Meta
// kernels, rules and CPU kernels whether they accept a call; where they don't, the real operator
// runs and raises its own error. An interrupt or exhausted memory says nothing about the call: the
// caller must see it.
#pragma once

#include <exception>

#include "system/export.h"

namespace dormant::system {

/// Whether `error` is std::bad_alloc, or what PyTorch's allocator makes of it.
bool is_exhausted_memory(const std::exception& error);

/// Whether `error` means that an operator refuses its arguments. To be asked while it is being
/// handled; where the answer is no, rethrow it unchanged. Any thread, with or without Python's
/// lock.
bool is_refusal(const std::exception& error);

using RefusalTest = bool (*)(const std::exception&);

/// `test` decides about exceptions that are neither PyTorch's nor std::bad_alloc: the bindings know
/// Python's. Without it they all are refusals.
DORMANT_BINDINGS_API void set_refusal_test(RefusalTest test);

}  // namespace dormant::system
