#include "random/philox_kernels.h"

#if defined(__x86_64__)

#include "random/lanes_avx512.h"
#include "random/philox_loops.h"

namespace dormant::random {

const PhiloxKernels& PhiloxKernels::at(simd::At<simd::Level::avx512>) {
  static constexpr PhiloxKernels kernels = PhiloxLoops<Avx512Lanes>::kernels("AVX-512");
  return kernels;
}

}  // namespace dormant::random

#endif
