// ATen's own random operators on plain memory and an engine's state: the reference that own kernels
// are compared with, and what runs where they differ.
#pragma once

#include <ATen/core/MT19937RNGEngine.h>
#include <c10/core/ScalarType.h>

#include <cstddef>

namespace dormant::random {

// Each fills `n` contiguous elements as the in-place operator does and leaves `engine` where the
// operator does. None goes through the dispatcher, so a thread that records may call them. An
// engine holds no cached double normal, so n >= 16 for normal_. Throw what ATen throws for
// arguments it refuses.
void aten_uniform(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                  double from, double to);
void aten_normal(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                 double mean, double std);
void aten_bernoulli(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                    double p);

}  // namespace dormant::random
