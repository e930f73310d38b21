// Whether the CPU operator accepts a call, found out by running it once on small stand-ins of the
// arguments. Meta kernels know shapes; which dtypes, scalars and overlaps a CPU kernel takes, and
// whether it looks at values, only the kernel itself knows.
#pragma once

#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Whether the CPU operator accepts the call whatever the values of its tensors are, `results`
/// being what its Meta kernel says of what it returns or writes.
///
/// Stand-ins have the dtypes, ranks and aliasing of the arguments, and their sizes and strides
/// where they are small, else shrunk ones. Of small arguments any refusal counts. A refusal of
/// shrunk ones may be due to a number that does not fit the smaller sizes; it counts where the same
/// call with other dtypes or Python scalars is accepted, or where a dimension is out of range.
/// Otherwise the Meta kernel, which has accepted the call, is believed.
///
/// Takes no lock, reads no memory of the arguments but that of Python scalars, and touches no
/// generator but its own. Rethrows what is not a refusal (system/refusal.h).
bool cpu_accepts(const Call& call, const std::vector<Geometry>& results);

/// A call with small stand-ins, and what the CPU operator returned.
struct Sample {
  torch::jit::Stack arguments;
  c10::IValue result;
};

/// Runs a call of one return that draws nothing and whose tensors are on the CPU. Empty where the
/// operator refuses, or where numbers among the arguments ask for much. Otherwise as above.
std::optional<Sample> try_small(const Call& call);

}  // namespace dormant::record
