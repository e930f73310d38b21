#include "quantize/kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "quantize/lanes_avx512.h"
#include "quantize/loops.h"

namespace dormant::quantize {

const Kernels* avx512_kernels() {
  static constexpr Kernels kernels = Loops<Avx512Lanes>::kernels("AVX-512");
  return &kernels;
}

}  // namespace dormant::quantize

#else

namespace dormant::quantize {

const Kernels* avx512_kernels() { return nullptr; }

}  // namespace dormant::quantize

#endif
