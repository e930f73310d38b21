#include "quantize/kernels.h"
#include "quantize/lanes_portable.h"
#include "quantize/loops.h"

namespace dormant::quantize {

const Kernels* portable_kernels() {
  static constexpr Kernels kernels = Loops<PortableLanes>::kernels("portable");
  return &kernels;
}

}  // namespace dormant::quantize
