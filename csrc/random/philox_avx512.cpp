#include "random/philox_kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "random/lanes_avx512.h"
#include "random/philox_loops.h"

namespace dormant::random {

const PhiloxKernels* avx512_philox_kernels() {
  static constexpr PhiloxKernels kernels = PhiloxLoops<Avx512Lanes>::kernels("AVX-512");
  return &kernels;
}

}  // namespace dormant::random

#else

namespace dormant::random {

const PhiloxKernels* avx512_philox_kernels() { return nullptr; }

}  // namespace dormant::random

#endif
