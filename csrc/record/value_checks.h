// Checks of values that eager makes at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "record/call.h"

namespace dormant::record {

/// The lazy ones among the tensors whose values eager checks at once.
std::vector<at::Tensor> lazy_checked_tensors(const Call& call);

/// Whether the values that eager checks are as it wants them: indices, which become real, and the
/// tensor parameters of distributions, which stay lazy.
bool values_in_range(const Call& call);

}  // namespace dormant::record
