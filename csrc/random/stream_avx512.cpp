#include "random/stream_kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "random/lanes_avx512.h"
#include "random/stream_loops.h"

namespace dormant::random {

const StreamKernels* avx512_stream_kernels() {
  static constexpr StreamKernels kernels = StreamLoops<Avx512Lanes>::kernels("AVX-512", true);
  return &kernels;
}

}  // namespace dormant::random

#else

namespace dormant::random {

const StreamKernels* avx512_stream_kernels() { return nullptr; }

}  // namespace dormant::random

#endif
