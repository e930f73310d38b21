#include "random/stream_kernels.h"

#if defined(__x86_64__)

#include "random/lanes_avx512.h"
#include "random/stream_loops.h"

namespace dormant::random {

const StreamKernels& StreamKernels::at(simd::At<simd::Level::avx512>) {
  static constexpr StreamKernels kernels = StreamLoops<Avx512Lanes>::kernels("AVX-512", true);
  return kernels;
}

}  // namespace dormant::random

#endif
