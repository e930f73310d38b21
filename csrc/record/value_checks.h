// Checks of values that eager makes at once.
#pragma once

#include "record/call.h"

namespace dormant::record {

/// Whether the values that eager checks are as it wants them: indices, which become real, and the
/// tensor parameters of distributions, which stay lazy.
bool values_in_range(const Call& call);

}  // namespace dormant::record
