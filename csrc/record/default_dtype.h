// Histories that do not depend on the default dtype at replay. By type promotion it is the dtype of
// what integers and Python's fractions give (torch.arange(4) / 2); a recorded call must compute in
// the dtype of the time when it was made, and replay must not set the process's, which other
// threads see.
//
// So a functional call that depends on it is recorded with its integers converted; one that writes,
// or can't be converted, runs at once.
#pragma once

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Whether the default dtype decides what the call computes, `results` being the geometry of the
/// tensors that it returns, if they are new: no tensor that it reads is floating or complex, but a
/// result, one that it writes, or a Python scalar among the arguments, is. False where the call
/// moves data, draws random numbers or names its dtype. Takes no lock, runs no operator.
bool depends_on_default_dtype(const Call& call, const std::vector<Geometry>& results);

/// The arguments of a functional pointwise call that depends on the default dtype, integers and
/// bools converted to it, but not conditions and masks: with them the operator gives the same bits
/// in the same geometry whatever the default dtype is, for converting is what TensorIterator does
/// first. Python scalars stay what they are, unless there is no other tensor. The conversions of
/// lazy tensors are recorded, recording being on or not.
///
/// Empty where the call is not pointwise or would have other results.
/// Runs operators and Meta kernels: to be called without locks.
std::optional<torch::jit::Stack> convert_integers(const Call& call,
                                                  const std::vector<Geometry>& results);

}  // namespace dormant::record
