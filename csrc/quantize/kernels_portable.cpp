#include "quantize/kernels.h"
#include "quantize/lanes_portable.h"
#include "quantize/loops.h"

namespace dormant::quantize {

const Kernels& Kernels::at(simd::At<simd::Level::portable>) {
  static constexpr Kernels kernels = Loops<PortableLanes>::kernels("portable");
  return kernels;
}

}  // namespace dormant::quantize
