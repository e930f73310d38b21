#include "random/lanes_portable.h"
#include "random/stream_kernels.h"
#include "random/stream_loops.h"

namespace dormant::random {

// No block_normal: at its default level ATen takes log, cos and sin from the C library, whose bits
// are its own.
const StreamKernels& StreamKernels::at(simd::At<simd::Level::portable>) {
  static constexpr StreamKernels kernels = StreamLoops<PortableLanes>::kernels("portable", false);
  return kernels;
}

}  // namespace dormant::random
