// Which code produces the exact values of random operators on this machine.
//
// The bits of ATen's random operators depend on the torch build, on the processor level that ATen
// runs at, and on the C library. So own kernels are not believed: the first use compares each with
// ATen's operator.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "random/stream_kernels.h"
#include "system/export.h"

namespace dormant::random {

enum class Path : uint8_t {
  kernel,  // own kernel
  aten,    // ATen's operator; parts of a tensor equal the same parts of the whole
  whole,  // ATen's operator, and only on the whole tensor: parts differ in this build, or the dtype
          // isn't taken
};

// Result of the comparison, one entry for each operator and dtype.
struct ExactPath {
  const StreamKernels* kernels;  // never null; its twist and draw are always right

  // Indexed by c10::ScalarType.
  std::vector<Path> uniform;
  std::vector<Path> normal;
  std::vector<Path> bernoulli;

  // One line for reports: the level of the own kernels, and what they don't produce.
  std::string description;
};

// Compares on first use (about a millisecond), then costs a load. Any thread may call it.
DORMANT_BINDINGS_API const ExactPath& exact_path();

// The comparison itself, for a given level.
ExactPath check_exactness(const StreamKernels& kernels);

// The kernels of the highest level that this processor has and ATen uses. Capped by ATen's own
// choice (at::get_cpu_capability, which ATEN_CPU_CAPABILITY lowers), since bits depend on it.
const StreamKernels& stream_kernels();

}  // namespace dormant::random
