#include "random/stream_kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "random/lanes_avx2.h"
#include "random/stream_loops.h"

namespace dormant::random {

const StreamKernels* avx2_stream_kernels() {
  static constexpr StreamKernels kernels = StreamLoops<Avx2Lanes>::kernels("AVX2", true);
  return &kernels;
}

}  // namespace dormant::random

#else

namespace dormant::random {

const StreamKernels* avx2_stream_kernels() { return nullptr; }

}  // namespace dormant::random

#endif
