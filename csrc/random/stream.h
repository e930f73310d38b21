// Exact values of PyTorch's CPU random operators, many times faster than PyTorch draws them, from
// any place of a generator's stream.
//
// at::mt19937 hands out one number at a time and ATen's loops transform them one at a time; both
// are serial only in form. A Stream twists and tempers whole blocks with vector instructions and
// its kernels transform them in cache. Where own kernels don't give ATen's bits (exact_path.h), or
// there is none (float64 normal_), these functions run ATen's own operator on a generator at the
// same place: the values are always PyTorch's, only the time differs.
//
// Not here, because their bits are the C library's: the serial path of normal_ (fewer than 16
// elements, or not contiguous) and the operators built on log1p and tan (exponential_, cauchy_,
// log_normal_, geometric_).
#pragma once

#include <ATen/core/MT19937RNGEngine.h>
#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {

// A CPU generator's engine, at some place. A value: copies are independent. One thread at a time
// may use a Stream.
class Stream {
 public:
  // Throws c10::ValueError unless `engine` is a state that at::mt19937 can be in (sources may be
  // untrusted).
  explicit Stream(const at::mt19937_data_pod& engine);

  // The state that at::mt19937 would be in, every field included.
  at::mt19937_data_pod engine() const;

  // As `draws` calls of the engine. Costs about 0.1 ns a draw at most, and one jump (mt19937.h) for
  // millions.
  void skip(uint64_t draws);

  // For kernels that draw at least once.
  EngineBlock& block() {
    fresh_ = false;
    return block_;
  }

 private:
  EngineBlock block_;
  uint64_t seed_;
  bool fresh_;  // nothing was drawn since seeding: at::mt19937 then says next_ = 0
};

// out.uniform_(from, to) for `n` elements: one draw each, two for float64. `dtype` is a floating
// point type. Cutting the elements anywhere gives the same values.
void uniform(Stream& stream, c10::ScalarType dtype, void* out, size_t n, double from, double to);

// out.bernoulli_(p) for `n` elements: two draws each. Cutting the elements anywhere gives the same
// values.
void bernoulli(Stream& stream, c10::ScalarType dtype, void* out, size_t n, double p);

// Whole blocks of a contiguous out.normal_(mean, std): `n` is a multiple of 16. One draw an
// element, two for float64. Cutting at multiples of 16 gives the same values.
void block_normal(Stream& stream, c10::ScalarType dtype, void* out, size_t n, double mean,
                  double std);

}  // namespace dormant::random
