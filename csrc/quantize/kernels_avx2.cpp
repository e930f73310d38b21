#include "quantize/kernels.h"

#if defined(__x86_64__)

#include "quantize/lanes_avx2.h"
#include "quantize/loops.h"

namespace dormant::quantize {

const Kernels& Kernels::at(simd::At<simd::Level::avx2>) {
  static constexpr Kernels kernels = Loops<Avx2Lanes>::kernels("AVX2");
  return kernels;
}

}  // namespace dormant::quantize

#endif
