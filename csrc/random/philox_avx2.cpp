#include "random/philox_kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "random/lanes_avx2.h"
#include "random/philox_loops.h"

namespace dormant::random {

const PhiloxKernels* avx2_philox_kernels() {
  static constexpr PhiloxKernels kernels = PhiloxLoops<Avx2Lanes>::kernels("AVX2");
  return &kernels;
}

}  // namespace dormant::random

#else

namespace dormant::random {

const PhiloxKernels* avx2_philox_kernels() { return nullptr; }

}  // namespace dormant::random

#endif
