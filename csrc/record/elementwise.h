// Geometry of the commonest results without Meta kernels.
//
// Most of PyTorch's Meta kernels for elementwise operators are written in Python and take 50 to 200
// microseconds; constructors compute their tables with just these operators.
#pragma once

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Geometry of what an elementwise operator, cat or stack returns; empty where the rules here do
/// not settle it.
std::optional<std::vector<Geometry>> infer_elementwise(const Call& call);

/// Length of aten::arange.start_out; empty where the rules here do not settle it.
std::optional<int64_t> arange_length(const Call& call);

}  // namespace dormant::record
