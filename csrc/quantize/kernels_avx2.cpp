#include "quantize/kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "quantize/lanes_avx2.h"
#include "quantize/loops.h"

namespace dormant::quantize {

const Kernels* avx2_kernels() {
  static constexpr Kernels kernels = Loops<Avx2Lanes>::kernels("AVX2");
  return &kernels;
}

}  // namespace dormant::quantize

#else

namespace dormant::quantize {

const Kernels* avx2_kernels() { return nullptr; }

}  // namespace dormant::quantize

#endif
