// The geometry of results without values, from rules of ours (record/known_geometry.h) or the
// operators' own Meta kernels, where the CPU operator accepts the call as well (record/probe.h).
// Remembered per thread for calls with the same key (record/call_key.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Geometry of what a functional call returns, lists flattened. Empty when the Meta kernel is
/// missing, when it or the CPU kernel refuses the arguments (the real kernel will raise the proper
/// error), or when it returns anything but fresh strided tensors. Rethrows what is not a refusal
/// (system/refusal.h).
std::optional<std::vector<Geometry>> infer_results(const Call& call);

/// Geometry that a writing call leaves its written arguments with, in the order of traits.written.
/// Empty as above.
std::optional<std::vector<Geometry>> infer_written(const Call& call);

}  // namespace dormant::record
