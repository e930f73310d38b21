// Histories that do not depend on the default dtype at replay. By type promotion it is the dtype of
// what integers and Python's fractions give (torch.arange(4) / 2); a recorded call must compute in
// the dtype of the time when it was made, and replay must not set the process's, which other
// threads see.
//
// Recording a call goes like this, once `results` is known, below autograd:
//
//   std::optional<torch::jit::Stack> converted;
//   if (depends_on_default_dtype(call, results)) {
//     converted = convert_integers(call, results);
//     if (!converted) {
//       return false;  // run it for real
//     }
//   }
//   const Call recorded(call.op, call.keys, converted ? &*converted : call.stack);
//
// and the node is made of `recorded`; the results and the caller's stack are those of `call`.
#pragma once

#include <dormant/export.h>

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Whether the default dtype decides what the call computes, `results` being the geometry of what
/// it returns or writes: no tensor that it reads is floating or complex, but a result, or a Python
/// scalar among the arguments, is. False where the call moves data, draws random numbers or names
/// its dtype. Takes no lock, runs no operator.
DORMANT_API bool depends_on_default_dtype(const Call& call, const std::vector<Geometry>& results);

/// The arguments of a pointwise call that depends on the default dtype, integers and bools
/// converted to it, but not conditions and masks: with them the operator gives the same bits in the
/// same geometry whatever the default dtype is, for converting is what TensorIterator does first.
/// Python scalars stay what they are, unless there is no other tensor. The conversions of lazy
/// tensors are recorded, recording being on or not.
///
/// Empty where the call is not pointwise, changes an integer in place, or would have other results.
/// Runs operators and Meta kernels: to be called without locks.
DORMANT_API std::optional<torch::jit::Stack> convert_integers(const Call& call,
                                                              const std::vector<Geometry>& results);

}  // namespace dormant::record
