#include "quantize/kernels.h"

#include "random/processor.h"

namespace dormant::quantize {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    if (random::processor_has_avx512() && avx512_kernels() != nullptr) {
      return *avx512_kernels();
    }
    if (random::processor_has_avx2() && avx2_kernels() != nullptr) {
      return *avx2_kernels();
    }
    return *portable_kernels();
  }();
  return chosen;
}

}  // namespace dormant::quantize
