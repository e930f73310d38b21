// The mean of float32 numbers in the order in which PyTorch adds them on a CPU.
#pragma once

#include <cstdint>

namespace dormant::quantization {

/// `values.mean()` for `n` contiguous numbers when at::get_num_threads() is `threads`: with several
/// threads, PyTorch adds up parts of 32,768 numbers or more first. NaN for none.
float cascade_mean(const float* values, int64_t n, int threads);

}  // namespace dormant::quantization
