#include "quantize/kernels.h"

#if defined(__x86_64__)

#include "quantize/lanes_avx512.h"
#include "quantize/loops.h"

namespace dormant::quantize {

const Kernels& Kernels::at(simd::At<simd::Level::avx512>) {
  static constexpr Kernels kernels = Loops<Avx512Lanes>::kernels("AVX-512");
  return kernels;
}

}  // namespace dormant::quantize

#endif
