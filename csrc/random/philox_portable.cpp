#include "random/lanes_portable.h"
#include "random/philox_kernels.h"
#include "random/philox_loops.h"

namespace dormant::random {

const PhiloxKernels& PhiloxKernels::at(simd::At<simd::Level::portable>) {
  static constexpr PhiloxKernels kernels = PhiloxLoops<PortableLanes>::kernels("portable");
  return kernels;
}

}  // namespace dormant::random
