#include "random/stream_kernels.h"

#if defined(__x86_64__)

#include "random/lanes_avx2.h"
#include "random/stream_loops.h"

namespace dormant::random {

const StreamKernels& StreamKernels::at(simd::At<simd::Level::avx2>) {
  static constexpr StreamKernels kernels = StreamLoops<Avx2Lanes>::kernels("AVX2", true);
  return kernels;
}

}  // namespace dormant::random

#endif
