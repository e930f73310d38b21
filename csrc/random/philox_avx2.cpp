#include "random/philox_kernels.h"

#if defined(__x86_64__)

#include "random/lanes_avx2.h"
#include "random/philox_loops.h"

namespace dormant::random {

const PhiloxKernels& PhiloxKernels::at(simd::At<simd::Level::avx2>) {
  static constexpr PhiloxKernels kernels = PhiloxLoops<Avx2Lanes>::kernels("AVX2");
  return kernels;
}

}  // namespace dormant::random

#endif
