// The geometry of results without values: operators' own Meta kernels, which also check the
// arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Geometry of what a functional call returns, lists flattened. Empty when the Meta kernel is
/// missing, refuses the arguments (the real kernel will raise the proper error), or returns
/// anything but fresh strided tensors.
std::optional<std::vector<Geometry>> infer_results(const Call& call);

/// Geometry that a writing call leaves its written arguments with, in the order of traits.written.
/// Empty as above.
std::optional<std::vector<Geometry>> infer_written(const Call& call);

/// Whether every value of the call's index arguments is in bounds. The index tensors must be real.
bool indices_in_bounds(const Call& call);

/// Whether eager looks at the values of this tensor argument of a random operator: probabilities,
/// deviations.
bool is_checked_parameter(const Call& call, size_t argument);

/// Whether the real tensor parameters of a random operator are ones that eager accepts: 0 <= p <=
/// 1, 0 <= std.
bool parameters_in_range(const Call& call);

}  // namespace dormant::record
