// Geometry that PyTorch's Meta kernels need not be asked for. Most of them are written in Python,
// and the first of a process imports sympy, or all of torch._dynamo: a quarter of a second to more
// than one.
//
// A rule knows sizes and strides of a kind of operators. That it holds for an operator, and which
// dtype the result has, is seen in what the CPU operator makes of small stand-ins (record/probe.h).
#pragma once

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Geometry of what a functional call returns; empty where no rule settles it. Whether the CPU
/// operator accepts the call is not said.
std::optional<std::vector<Geometry>> known_results(const Call& call);

/// Geometry that a writing call leaves its written argument with; empty as above.
std::optional<std::vector<Geometry>> known_written(const Call& call);

}  // namespace dormant::record
