#include "quantize/kernels.h"

#include "simd/kernels.h"

namespace dormant::quantize {

const Kernels& kernels() {
  static const Kernels& chosen = simd::kernels<Kernels>(simd::highest());
  return chosen;
}

}  // namespace dormant::quantize
