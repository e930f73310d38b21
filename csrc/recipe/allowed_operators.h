// The operators that recipes may contain.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

namespace dormant::recipe {

/// Whether `op` is on the list: what building real models records, and its relatives. None of them
/// trusts its arguments, needs memory beyond its results in proportion to a number in them, loops
/// as often as a value says, returns a list, or touches anything but its tensors.
bool is_allowed(const c10::OperatorHandle& op);

/// Whether the kernel of an allowed operator crashes for some values of these operands.
bool may_crash(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments);

}  // namespace dormant::recipe
