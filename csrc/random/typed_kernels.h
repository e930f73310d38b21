// StreamKernels by torch dtype.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <optional>

#include "random/stream_kernels.h"

namespace dormant::random {

// Each fills `n` elements of `dtype` as the kernel in stream_kernels.h says and returns true, or
// returns false, with nothing drawn, where there is no kernel for that dtype at that level.
bool kernel_uniform(const StreamKernels& kernels, EngineBlock& block, c10::ScalarType dtype,
                    void* out, size_t n, double from, double to);
bool kernel_block_normal(const StreamKernels& kernels, EngineBlock& block, c10::ScalarType dtype,
                         void* out, size_t n, double mean, double std);
bool kernel_bernoulli(const StreamKernels& kernels, EngineBlock& block, c10::ScalarType dtype,
                      void* out, size_t n, double p);

// None for a dtype that isn't a real floating point type of at least 16 bits.
std::optional<Format> format_of(c10::ScalarType dtype);

// The bits of the number one.
struct One {
  size_t width;
  uint64_t bits;
};

// What bernoulli_ writes for success; width 0 for a dtype that bernoulli_ doesn't take.
One one_of(c10::ScalarType dtype);

}  // namespace dormant::random
