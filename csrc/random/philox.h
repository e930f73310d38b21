// The random numbers of values="fast": PyTorch's distributions, not PyTorch's values, at the speed
// of memory.
//
// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011) maps a counter and a key to four words, so any element is computed from its index alone:
// any tile, on any thread, in any order, is the same part of the same whole.
//
// Resolution: uniform() has 24 random bits (53 for float64) and normal() is Box-Muller on two such
// numbers, as PyTorch's own are, so |normal| <= 5.77 (8.58 for float64) deviations; bernoulli()
// compares 32 bits.
#pragma once

#include <ATen/core/MT19937RNGEngine.h>
#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>

#include "random/philox_kernels.h"

namespace dormant::random {

// An endless sequence of elements for each (seed, stream); take one stream for each tensor. A
// value without state: any number of threads may use it.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t stream) : key_{seed, stream} {}

  // The sequence that stands for what a generator would draw from `place` on: another one for every
  // place, the same wherever the same place is met.
  Philox(uint64_t seed, const at::mt19937_data_pod& place);

  // Each writes elements [begin, begin + n) of the sequence to `out`. Floating point dtypes, and
  // those of bernoulli_ for bernoulli; others throw c10::NotImplementedError. Bounds and arguments
  // that PyTorch's operator refuses throw c10::ValueError.
  void uniform(c10::ScalarType dtype, void* out, uint64_t begin, size_t n, double from,
               double to) const;
  void normal(c10::ScalarType dtype, void* out, uint64_t begin, size_t n, double mean,
              double std) const;
  void bernoulli(c10::ScalarType dtype, void* out, uint64_t begin, size_t n, double p) const;

 private:
  PhiloxKey key_;
};

}  // namespace dormant::random
