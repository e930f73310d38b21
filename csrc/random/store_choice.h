// Turns the store that a caller asks for into a constant of the kernel's loop.
#pragma once

#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {

// Calls kernel.operator()<store>(). Streaming stores need `out` aligned to 64 bytes, and a fence
// before another thread may read what they wrote.
template <class Lanes, class Kernel>
void with_store(Store store, const void* out, Kernel&& kernel) {
  if (store == Store::streaming && reinterpret_cast<uintptr_t>(out) % 64 == 0) {
    kernel.template operator()<Store::streaming>();
    Lanes::fence();
  } else {
    kernel.template operator()<Store::cached>();
  }
}

}  // namespace dormant::random
